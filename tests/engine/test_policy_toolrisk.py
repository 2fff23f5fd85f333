"""Consequential tool calls: sent on, or made only when a second tier agrees."""

from __future__ import annotations

from typing import Any

import pytest

from cascadellm import (
    Answer,
    ConfigurationError,
    Policy,
    Request,
    Threshold,
    ToolCall,
    ToolRisk,
    mean_logprob,
)
from cascadellm.policies import toolrisk
from tests.engine.deciding import decide, model
from tests.engine.running import MODES

modes = pytest.mark.parametrize("mode", MODES)


def tool(name: str) -> dict[str, Any]:
    """Return a tool in OpenAI form."""
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


ASKED = Request("q", "q", tools=tuple(map(tool, ("pay", "look_up", "delete_file"))))


def calls(*made: tuple[str, Any]) -> Answer:
    """Return an answer that calls tools, each with identifiers of its own."""
    found = tuple(ToolCall(name, arguments, id=f"call_{id(made)}") for name, arguments in made)
    return Answer("", tool_calls=found, finish_reason="tool_calls")


@modes
@pytest.mark.parametrize(
    ("draft", "defers"),
    [
        (calls(("pay", {"usd": 5})), True),
        (calls(("delete_file", {"path": "x"})), True),
        (calls(("look_up", {}), ("pay", {"usd": 5})), True),
        (calls(("look_up", {})), False),
        (calls(("repay", {})), False),
        (Answer("pay nothing", finish_reason="stop"), False),
    ],
)
def test_call_when_it_has_consequences(draft: Answer, defers: bool, mode: str) -> None:
    """A draft that writes, deletes or pays goes to the larger tier; any other stands."""
    found = decide(ToolRisk(("pay", "delete_*")), draft, mode=mode, request=ASKED)

    assert (defers, "tool_risk" if defers else "no_risk") == (found.defer, found.first.code)


@modes
@pytest.mark.parametrize(
    ("second", "defers", "code"),
    [
        (calls(("pay", {"to": "a", "usd": 5}), ("look_up", {})), False, "tool_agreed"),
        (calls(("look_up", {}), ("pay", {"usd": 5, "to": "a"})), False, "tool_agreed"),
        (calls(("pay", {"to": "a", "usd": 50}), ("look_up", {})), True, "tool_disagreed"),
        (calls(("pay", {"to": "a", "usd": 5})), True, "tool_disagreed"),
        (calls(*[("pay", {"to": "a", "usd": 5})] * 2, ("look_up", {})), True, "tool_disagreed"),
        (Answer("I would not pay.", finish_reason="stop"), True, "tool_disagreed"),
        (TimeoutError("slow"), True, "agreement_timeout"),
    ],
)
def test_call_when_a_second_tier_must_agree(
    second: Any, defers: bool, code: str, mode: str
) -> None:
    """Only the same calls with the same values agree, in any order; a failure agrees never."""
    draft = calls(("pay", {"usd": 5, "to": "a"}), ("look_up", {}))
    policy = ToolRisk(("pay",), unless="agreed", second=model(second, "second"))
    found = decide(policy, draft, mode=mode, request=ASKED)
    (asked,) = found.first.calls

    assert (defers, code) == (found.defer, found.first.code)
    assert ("second", "tool_agreement") == (asked.name, asked.purpose)
    assert isinstance(second, Exception) or asked.cost_usd


def test_call_when_the_check_compares_names_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test has power: a comparison that leaves the arguments out is noticed."""
    monkeypatch.setattr(toolrisk, "_calls", lambda answer: [c.name for c in answer.tool_calls])
    with pytest.raises(AssertionError):
        test_call_when_a_second_tier_must_agree(
            calls(("pay", {"to": "a", "usd": 50}), ("look_up", {})), True, "tool_disagreed",
            "invoke",
        )  # fmt: skip


def test_second_when_it_is_the_next_tier() -> None:
    """Without a second tier of its own the policy asks the next one."""
    found = decide(ToolRisk(("pay",), unless="agreed"), calls(("pay", {})), request=ASKED)

    assert [("large", "tool_agreement")] == [(c.name, c.purpose) for c in found.first.calls]
    assert "tool_disagreed" == found.first.code
    assert 2 == len(found.large.calls)


def test_policy_when_joined() -> None:
    """Joined with a threshold, other drafts are decided by their score."""
    policy = ToolRisk(("pay",)) | Threshold(mean_logprob, -0.5)
    assert "Threshold" == decide(policy, "well", logprob=-2.0).first.policy
    assert "ToolRisk" == decide(policy, calls(("pay", {})), request=ASKED).first.policy


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ToolRisk("pay"), "a list of tool names"),  # type: ignore[arg-type]
        (lambda: ToolRisk(()), "a list of tool names"),
        (lambda: ToolRisk((1,)), "expects names"),  # type: ignore[arg-type]
        (lambda: ToolRisk(("a",), unless="x"), "'never' or 'agreed'"),  # type: ignore[arg-type]
        (lambda: ToolRisk(("a",), second=model("x")), "unless='agreed'"),
    ],
)
def test_arguments_when_they_are_wrong(make: Any, message: str) -> None:
    """Wrong arguments are found at construction."""
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_config_when_written_and_read() -> None:
    """The policy survives its config; the second tier comes back by name."""
    second = model("x", "second")
    policy = ToolRisk(["pay", "delete_*"], unless="agreed", second=second)  # type: ignore[arg-type]

    assert policy == Policy.from_config(policy.to_config(), allow={"second": second})
