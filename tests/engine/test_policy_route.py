"""Routing before any token: by score, by context window, by tools."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import pytest

from cascadellm import (
    Cascade,
    ConfigurationError,
    ContextFits,
    NeedsTools,
    Never,
    Policy,
    Request,
    Route,
    Threshold,
    mean_logprob,
)
from cascadellm.drivers import adrive
from cascadellm.perform import AsyncLocalPerformer
from cascadellm.testing import FakeModel
from tests.engine.running import MODES, run


def shortness(request: Request) -> float:
    """A score of the request: minus its number of words."""
    return -float(len(request.text.split()))


def asked(policy: Any, request: Request, mode: str = "invoke", **each: list[Any]) -> Any:
    """Return the trace of a cascade of three fakes."""
    models = [
        FakeModel(f"t{i}", name=f"t{i}", **{key: values[i] for key, values in each.items()})
        for i in range(3)
    ]
    return run(Cascade(models, policy), mode, request).trace


def words(count: int, **fields: Any) -> Request:
    """Return a request of so many words."""
    return Request("q", " ".join(["word"] * count), **fields)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("count", "tier"), [(3, "t0"), (10, "t0"), (11, "t1"), (99, "t1")])
def test_route_when_one_threshold_is_given(mode: str, count: int, tier: str) -> None:
    """A score below the threshold skips one tier; equal to it asks."""
    trace = asked([Route(shortness, -10), Never()], words(count), mode)

    assert tier == trace.answered_by
    assert ["skip"] * int(tier[1]) == [a.action for a in trace.attempts[:-1]]


@pytest.mark.parametrize(("count", "tier"), [(3, "t0"), (11, "t1"), (51, "t2"), (999, "t2")])
def test_route_when_several_thresholds_are_given(count: int, tier: str) -> None:
    """Each threshold that a score falls short of skips one tier more."""
    trace = asked([Route(shortness, [-10, -50]), Never()], words(count))
    skipped = [a for a in trace.attempts if a.action == "skip"]

    assert tier == trace.answered_by
    assert all(a.score == -count and a.score_name == "shortness" for a in skipped)
    assert all(a.score < a.threshold for a in skipped)


@pytest.mark.parametrize(("missing", "tier"), [("ask", "t0"), ("skip", "t1")])
@pytest.mark.parametrize("value", [None, math.nan, ValueError("odd")])
def test_route_when_the_score_is_unknown(missing: str, tier: str, value: Any) -> None:
    """An unknown score asks the tier, or skips it where wanted; an error counts as unknown."""

    def unknown(request: Request) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    trace = asked([Route(unknown, 0, missing=missing), Never()], words(3))

    assert tier == trace.answered_by
    if missing == "skip":
        assert "no_score" == trace.attempts[0].code


def test_route_when_joined_with_an_after_policy() -> None:
    """A route and a threshold stand at one boundary."""
    policy = [Route(shortness, -10) | Threshold(mean_logprob, -0.5), Never()]

    assert "t1" == asked(policy, words(99)).answered_by
    assert "t1" == asked(policy, words(1), logprob=[-1, -0.1, -0.1]).answered_by
    assert "t0" == asked(policy, words(1), logprob=[-0.1, -0.1, -0.1]).answered_by


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0.5, shortness), {}, "function of the request first"),
        ((shortness, []), {}, "several that fall"),
        ((shortness, [1, 2]), {}, "several that fall"),
        ((shortness, [1, 1]), {}, "several that fall"),
        ((shortness, math.nan), {}, "several that fall"),
        ((shortness, "high"), {}, "several that fall"),
        ((shortness, 1), {"missing": "defer"}, "'ask' or 'skip'"),
    ],
)
def test_route_when_arguments_are_wrong(arguments: Any, options: Any, message: str) -> None:
    """Wrong arguments are found at construction."""
    with pytest.raises(ConfigurationError, match=message):
        Route(*arguments, **options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("request_", "tier"),
    [
        (words(3, input_tokens=400), "t0"),
        (words(3, input_tokens=500), "t0"),
        (words(3, input_tokens=501), "t1"),
        (words(3, input_tokens=5000), "t2"),
        (words(3, input_tokens=999999), "t2"),
        (words(3), "t0"),
        (words(2000), "t1"),
    ],
)
def test_context_when_windows_differ(mode: str, request_: Request, tier: str) -> None:
    """The first tier whose window holds prompt and answer is asked, else the last."""
    trace = asked(ContextFits(500), request_, mode, context_window=[1000, 4000, 32000])

    assert tier == trace.answered_by
    assert all(a.code == "context_window" for a in trace.attempts[:-1])


def test_context_when_windows_and_counts_are_given() -> None:
    """Windows by name and a counter of the user's own come first."""
    policy = ContextFits(0, windows={"t0": 10}, count=lambda request: 11)
    trace = asked([policy, Never()], words(1))

    assert "t1" == trace.answered_by
    assert "11 prompt tokens" in trace.attempts[0].reason


def test_context_when_a_window_is_unknown() -> None:
    """A tier that does not state its window is asked."""

    class Silent(FakeModel):
        context_window = None  # type: ignore[assignment]

        def __init__(self) -> None:
            super().__init__("ok", name="silent")
            self.context_window = None  # type: ignore[assignment]

    outcome = run(Cascade([Silent(), FakeModel()], ContextFits() | Never()), "invoke", words(9999))

    assert "silent" == outcome.trace.answered_by


@pytest.mark.parametrize("bad", [{"reserve": -1}, {"reserve": 0.5}, {"windows": {"a": "8k"}}])
def test_context_when_arguments_are_wrong(bad: Any) -> None:
    """Token counts are whole numbers."""
    with pytest.raises(ConfigurationError, match="token counts >= 0"):
        ContextFits(**bad)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("tools", "able", "tier"),
    [
        ((), [False, True, True], "t0"),
        (({"name": "add"},), [True, True, True], "t0"),
        (({"name": "add"},), [False, False, True], "t2"),
        (({"name": "add"},), [False, False, False], "t2"),
    ],
)
def test_tools_when_tiers_differ(mode: str, tools: Any, able: list[bool], tier: str) -> None:
    """With tools bound the first tier that can call them is asked."""
    assert tier == asked(NeedsTools(), words(1, tools=tools), mode, tools=able).answered_by


def test_tools_when_names_are_given() -> None:
    """Names of able tiers come before what models say of themselves."""
    policy = NeedsTools(able=("t1",))

    assert "t1" == asked([policy, Never()], words(1, tools=({"name": "x"},))).answered_by


def test_model_when_stating_its_window_fails() -> None:
    """A model whose properties fail states nothing."""

    class Odd:
        @property
        def context_window(self) -> int:
            raise RuntimeError("not loaded")

        @property
        def supports_tools(self) -> bool:
            raise RuntimeError("not loaded")

        def generate(self, messages: Any, **kwargs: Any) -> Any:
            return FakeModel("odd").generate(messages)

    request = words(5000, tools=({"name": "x"},))
    outcome = run(Cascade([Odd(), FakeModel()], ContextFits() | NeedsTools()), "invoke", request)

    assert 0 == outcome.trace.tier


def test_config_when_written_and_read() -> None:
    """The policies survive their configs."""
    allow = {"shortness": shortness}
    for policy in (
        Route(shortness, [-10, -20], missing="skip"),
        Route(shortness, 3),
        ContextFits(100, windows={"a": 5}),
        NeedsTools(),
        NeedsTools(("a", "b")),
    ):
        assert policy == Policy.from_config(policy.to_config(), allow=allow)


async def test_route_when_the_prompt_is_long() -> None:
    """Heavy scoring of a 4,000-word prompt is not done on the event loop's thread."""

    def heavy(request: Request) -> float:
        begun = time.perf_counter()
        while time.perf_counter() < begun + 0.05:
            pass
        return shortness(request)

    worst, last = 0.0, time.thread_time()

    async def beat() -> None:
        nonlocal worst, last
        while True:
            await asyncio.sleep(0.001)
            worst, last = max(worst, time.thread_time() - last), time.thread_time()

    watcher = asyncio.create_task(beat())
    cascade = Cascade([FakeModel("a"), FakeModel("b")], Route(heavy, -10) | ContextFits())
    # thread time, because a busy machine stalls a loop that has nothing to do
    await adrive(cascade.plan(words(4000)), AsyncLocalPerformer())
    await asyncio.sleep(0.002)
    watcher.cancel()

    assert worst < 0.003
