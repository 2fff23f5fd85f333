"""Agreement of several small models."""

from __future__ import annotations

from typing import Any

import pytest

from cascadellm import Agreement, ConfigurationError, Policy
from cascadellm.testing import FakeModel
from tests.engine.deciding import decide, model
from tests.engine.running import MODES


def voters(*replies: Any, **options: Any) -> list[Any]:
    """Return priced models m0, m1, ... that say these."""
    return [model(reply, name=f"m{i}", **options) for i, reply in enumerate(replies)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("replies", "threshold", "defers", "kept"),
    [
        (("42", "42"), 1.0, False, "42"),
        (("42", "41"), 1.0, True, "from large"),
        (("42", "41"), 0.6, False, "42"),
        (("7", "7"), 0.6, False, "7"),
        (("7", "8"), 0.6, True, "from large"),
    ],
)
def test_agreement_when_models_vote(
    mode: str, replies: tuple[str, ...], threshold: float, defers: bool, kept: str
) -> None:
    """It accepts iff enough models agree, and keeps the best supported answer."""
    policy = Agreement(voters(*replies), threshold, key="numeric")
    found = decide(policy, "42", mode=mode)

    assert (defers, kept) == (found.defer, found.answer.text)
    assert ["m0", "m1"] == [call.name for call in found.first.calls]
    assert all(call.purpose == "agreement" and call.cost_usd for call in found.first.calls)


def test_agreement_when_another_models_answer_is_kept() -> None:
    """The record says who wrote the kept answer."""
    found = decide(Agreement(voters("7", "7"), 0.6, key="numeric"), "42")

    assert ((0, 1, "m0"),) == found.outcome.trace.spans
    assert "the answer of 'm0' is kept" in found.first.reason


def test_agreement_when_groups_are_equal() -> None:
    """Of equal groups the draft's is kept."""
    found = decide(Agreement(voters("7"), 0.5, key="numeric"), "42")

    assert (False, "42") == (found.defer, found.answer.text)


def test_agreement_when_models_are_asked() -> None:
    """Models receive the call's own messages, and the policy's arguments, together."""
    models = voters("42", "42", delay_s=0.1)
    found = decide(Agreement(models, key="numeric", kwargs={"temperature": 0}), "42")

    assert [[([{"role": "user", "content": "What is 6 x 7?"}], {"temperature": 0})]] * 2 == [
        tier.model.calls for tier in models
    ]
    assert found.outcome.trace.latency_s < 0.19


def test_agreement_when_a_model_fails() -> None:
    """A failing model is a vote for nothing; when all fail it defers and says why."""
    some = decide(Agreement(voters("42", OSError("x")), 0.6, key="numeric"), "42")
    none = decide(Agreement(voters(OSError("x"), OSError("y")), 0.3), "42")

    assert (False, 2 / 3) == (some.defer, some.first.score)
    assert (True, "agreement_error") == (none.defer, none.first.code)
    assert None is none.outcome.trace.cost_usd


def test_agreement_when_the_judge_fails() -> None:
    """A judge that raises defers and says why."""
    policy = Agreement(voters("x"), key="judge", judge=model(TimeoutError("slow")))
    found = decide(policy, "42")

    assert (True, "judge_timeout") == (found.defer, found.first.code)


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ([], {}, "at least one model"),
        ("gpt", {}, "a list of models"),
        (None, {}, "a list of models"),
        ([FakeModel()], {"threshold": 2}, "fraction"),
        ([FakeModel()], {"key": "none"}, "one of exact"),
    ],
)
def test_agreement_when_arguments_are_wrong(models: Any, options: Any, message: str) -> None:
    """Wrong arguments are found at construction."""
    with pytest.raises(ConfigurationError, match=message):
        Agreement(models, **options)


def test_agreement_when_written_and_read() -> None:
    """The policy survives its config; models come back by name."""
    models = voters("a", "b")
    policy = Agreement(models, 0.6, key="numeric")
    again = Policy.from_config(policy.to_config(), allow={tier.label: tier for tier in models})

    assert policy == again
    with pytest.raises(ConfigurationError, match="names 'm0'; pass allow="):
        Policy.from_config(policy.to_config())
