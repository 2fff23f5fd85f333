"""A tier's retries and timeouts, and why a tier failed."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
import tenacity

from cascadellm import (
    Always,
    Answer,
    Cascade,
    ConfigurationError,
    ContextWindowError,
    MissingDependencyError,
    Never,
    OutOfMemoryError,
    Tier,
)
from cascadellm.drivers import drive
from cascadellm.effects import Sleep
from cascadellm.perform import LocalPerformer
from cascadellm.resilience import classify, retrying, unbilled
from cascadellm.testing import FakeModel
from tests.engine.running import ASKED, MODES, run


class Patient(LocalPerformer):
    """A performer that notes waits in place of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def __call__(self, effect: Any) -> Any:
        if isinstance(effect, Sleep):
            self.waits.append(effect.seconds)
            return None
        return super().__call__(effect)


class ProviderError(Exception):
    """An error as providers raise it."""

    def __init__(self, status: int | None = None, message: str = "failed", code: str = "") -> None:
        super().__init__(message)
        self.status_code = status
        self.code = code


class RateLimitError(Exception):
    """Told by its name alone."""


class APITimeoutError(Exception):
    """Told by its name alone."""


class JSONDecodeProblemError(ValueError):
    """Told by its name alone."""


class WithResponseError(Exception):
    """Told by its response's status."""

    response = SimpleNamespace(status_code=503)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TimeoutError(), "timeout"),
        (ConnectionResetError(), "connection"),
        (MemoryError(), "out_of_memory"),
        (OutOfMemoryError("x"), "out_of_memory"),
        (ContextWindowError("x"), "context_window"),
        (ConfigurationError("x"), "configuration"),
        (MissingDependencyError("x"), "configuration"),
        (ProviderError(429), "rate_limit"),
        (ProviderError(401), "auth"),
        (ProviderError(403), "auth"),
        (ProviderError(404), "not_found"),
        (ProviderError(408), "timeout"),
        (ProviderError(413), "context_window"),
        (ProviderError(422), "bad_request"),
        (ProviderError(418), "bad_request"),
        (ProviderError(500), "server"),
        (ProviderError(529), "server"),
        (ProviderError(400, "This model's maximum context length is 8192"), "context_window"),
        (ProviderError(400, code="context_length_exceeded"), "context_window"),
        (ProviderError(400, code="content_filter"), "content_policy"),
        (WithResponseError(), "server"),
        (RateLimitError(), "rate_limit"),
        (APITimeoutError(), "timeout"),
        (JSONDecodeProblemError(), "error"),
        (ValueError("x"), "error"),
    ],
)
def test_classify_when_a_tier_raises(error: Exception, code: str) -> None:
    """Errors are told apart by type, status and name."""
    expected = "malformed" if isinstance(error, JSONDecodeProblemError) else code

    assert expected == classify(error)


@pytest.mark.parametrize(
    ("code", "free"),
    [("rate_limit", True), ("auth", True), ("timeout", False), ("server", False), ("error", False)],
)
def test_unbilled_when_a_call_failed(code: str, free: bool) -> None:
    """Only refusals before any work are known to cost nothing."""
    assert free == unbilled(code)


def test_retry_when_the_second_attempt_succeeds() -> None:
    """A tier is asked again up to its attempts; the waits grow and are bounded."""
    model = FakeModel([OSError("1"), OSError("2"), "fine"], name="a")
    perform = Patient()
    outcome = drive(Cascade([Tier(model, retry=3)]).plan(ASKED), perform)

    assert ("fine", 3, 2) == (outcome.answer.text, len(model.calls), len(perform.waits))
    assert all(0.4 <= wait <= 20.5 for wait in perform.waits)


def test_retry_when_every_attempt_fails() -> None:
    """After the last attempt the tier's own error counts, and the next tier is asked."""
    model = FakeModel(OSError("down"), name="a")
    cascade = Cascade([Tier(model, retry=3), FakeModel("b", name="b")], Never())
    outcome = drive(cascade.plan(ASKED), Patient())

    assert ("b", 3) == (outcome.trace.answered_by, len(model.calls))
    assert "OSError: down" == outcome.trace.attempts[0].error


@pytest.mark.parametrize("status", [400, 401, 403, 413])
def test_retry_when_asking_again_cannot_help(status: int) -> None:
    """Errors that the same request meets again are not retried."""
    model = FakeModel(ProviderError(status), name="a")
    drive(Cascade([Tier(model, retry=5), FakeModel("b")], Never()).plan(ASKED), Patient())

    assert 1 == len(model.calls)


@pytest.mark.parametrize("mode", MODES)
def test_retry_when_a_tenacity_object_is_given(mode: str) -> None:
    """A user's own tenacity setting decides, on the last tier and before."""
    setting = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(3),
        wait=tenacity.wait_none(),
        retry=tenacity.retry_if_exception_type(OSError),
    )
    first = FakeModel([OSError("x"), ValueError("y")], name="a")
    last = FakeModel([OSError("x"), OSError("x"), "fine"], name="b")
    outcome = run(Cascade([Tier(first, retry=setting), Tier(last, retry=setting)], Never()), mode)

    assert ("fine", 2, 3) == (outcome.answer.text, len(first.calls), len(last.calls))
    assert "ValueError: y" == outcome.trace.attempts[0].error


def test_retry_when_results_are_retried() -> None:
    """A tenacity setting that looks at results works too."""
    setting = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(4),
        wait=tenacity.wait_none(),
        retry=tenacity.retry_if_result(lambda answer: not answer.text),
    )
    model = FakeModel(["", "", "fine"], name="a")

    assert "fine" == run(Cascade([Tier(model, retry=setting)])).answer.text


def test_retry_when_one_setting_serves_many_calls() -> None:
    """A shared setting keeps no count between calls."""
    model = FakeModel(OSError("x"), name="a")
    cascade = Cascade([Tier(model, retry=2), FakeModel("b")], Never())
    for _ in range(3):
        drive(cascade.plan(ASKED), Patient())

    assert 6 == len(model.calls)


@pytest.mark.parametrize("setting", [0, -1, True, 2.5, "3", object()])
def test_retry_when_the_setting_is_wrong(setting: Any) -> None:
    """A setting that is neither a count nor a tenacity object is refused."""
    with pytest.raises(ConfigurationError, match="attempts >= 1 or a tenacity"):
        retrying(setting)


@pytest.mark.parametrize("mode", MODES)
def test_timeout_when_a_tier_is_slow(mode: str) -> None:
    """A tier over its time is escalated past, with code and sentence."""
    slow = FakeModel("late", name="slow", delay_s=0.6)
    cascade = Cascade([Tier(slow, timeout_s=0.05), FakeModel("b", name="b")], Never())
    begun = time.perf_counter()
    outcome = run(cascade, mode)

    assert 0.5 > time.perf_counter() - begun
    assert ("b", "timeout") == (outcome.trace.answered_by, outcome.trace.attempts[0].code)
    assert "did not answer within 0.05 s (its timeout_s)" in (outcome.trace.attempts[0].error or "")


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
def test_timeout_when_the_tier_raises_one_itself(mode: str) -> None:
    """A TimeoutError of the tier's own keeps its own words."""
    model = FakeModel(TimeoutError("upstream"), name="a")
    cascade = Cascade([Tier(model, timeout_s=5), FakeModel("b", name="b")], Never())

    assert "TimeoutError: upstream" == run(cascade, mode).trace.attempts[0].error


def test_timeout_when_the_tier_is_fast() -> None:
    """A tier within its time answers, and its own errors pass."""
    model = FakeModel(["fine", KeyError("mine")], name="a")
    cascade = Cascade([Tier(model, timeout_s=5)])

    assert "fine" == run(cascade).answer.text
    with pytest.raises(KeyError, match="mine"):
        run(cascade)


async def test_cancellation_when_a_retried_tier_runs() -> None:
    """Cancelling the caller is no failure to retry or to escalate past."""
    from cascadellm.drivers import adrive
    from cascadellm.perform import AsyncLocalPerformer

    slow, large = FakeModel("late", name="slow", delay_s=5), FakeModel("b", name="b")
    plan = Cascade([Tier(slow, retry=3), large], Always()).plan(ASKED)
    task = asyncio.create_task(adrive(plan, AsyncLocalPerformer()))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert [] == large.calls


def test_tier_arguments_when_a_call_has_some() -> None:
    """The request's, the tier's and the call's arguments reach the model, later ones winning."""
    model = FakeModel("x", name="a")
    request = type(ASKED)(ASKED.native, kwargs={"stop": ["a"], "temperature": 1}, tools=({"x": 1},))
    run(Cascade([Tier(model, kwargs={"temperature": 0})]), "invoke", request)
    run(Cascade([Tier(model, kwargs={"temperature": 0})]), "ainvoke", request)

    wanted = {"stop": ["a"], "temperature": 0, "tools": [{"x": 1}]}
    assert [wanted, wanted] == [arguments for _, arguments in model.calls]


def test_answer_when_only_one_part_is_kept() -> None:
    """`Answer.over` leaves an answer without tokens as it is."""
    answer = Answer("x")

    assert answer is answer.over("answer")
