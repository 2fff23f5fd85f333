"""One list of scenarios for the engine and both adapters, so that they cannot drift.

Data only: what each tier says, the policy, and what must come out. Each test suite builds
the cascade from it in its own framework and compares text, tier and record.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cascadellm import (
    Always,
    Answer,
    Decision,
    Never,
    Policy,
    Threshold,
    ToolCall,
    Valid,
    mean_logprob,
    min_logprob,
)
from cascadellm.policies import Moment
from cascadellm.testing import FakeModel

__all__ = ["ADD", "SCENARIOS", "Scenario", "StraightToLast"]

ADD: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two whole numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
"""A tool in OpenAI form."""


@dataclass(frozen=True, slots=True)
class StraightToLast(Policy):
    """A policy that decides before the first tier is asked."""

    def before(self, moment: Moment) -> Decision:
        """Skip to the last tier."""
        last = len(moment.tiers) - 1
        return Decision(True, self.name, code="route", reason="asked to", goto=last)


@dataclass(frozen=True)
class Scenario:
    """One call and what must come out of it on every path.

    Attributes:
        name: Its name in test ids.
        tiers: Tier name -> keyword arguments of its `FakeModel`, cheap to costly.
        policy: As handed to the cascade.
        text: The accepted answer's text; None when the call raises.
        answered_by: Tier that answered, None when the call raises.
        actions: Action per attempt, in order.
        codes: Code per attempt, in order.
        question: What is asked.
        tools: Tools bound, in OpenAI form.
        tool_calls: (name, arguments) of the accepted answer's tool calls.
        raises: Error type that reaches the caller.
        options: Further arguments of the cascade.
        pin: Tier named in the call.
    """

    name: str
    tiers: Mapping[str, Mapping[str, Any]]
    policy: Any
    text: str | None
    answered_by: str | None
    actions: tuple[str, ...]
    codes: tuple[str, ...]
    question: str = "What is 2 + 2?"
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_calls: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    raises: type[Exception] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    pin: str | None = None

    def models(self) -> list[FakeModel]:
        """Return fresh fakes, which record their calls."""
        return [FakeModel(name=name, **settings) for name, settings in self.tiers.items()]

    @property
    def escalated(self) -> bool:
        """Whether the record must say that a later tier was asked."""
        return any(action in ("escalate", "skip", "error") for action in self.actions)


def _says_dunno(answer: Answer) -> bool:
    return "dunno" in answer.text


def _breaks(answer: Answer) -> bool:
    raise ZeroDivisionError("a broken policy")


SURE: Mapping[str, Any] = {"reply": "It is four.", "logprob": -0.1}
UNSURE: Mapping[str, Any] = {"reply": "Maybe five?", "logprob": -2.0}
LARGE: Mapping[str, Any] = {"reply": "Four, I am certain.", "logprob": -0.05}
MUTE: Mapping[str, Any] = {"reply": "It is four.", "logprob": None}
GOOD_CALL = ToolCall("add", {"a": 2, "b": 2}, id="call_good")
CHOW = Threshold(mean_logprob, -0.35)


def _two(small: Mapping[str, Any], large: Mapping[str, Any] = LARGE) -> dict[str, Any]:
    return {"small": small, "large": large}


def _down(error: Exception) -> dict[str, Any]:
    return {"reply": error}


_ACCEPT: dict[str, Any] = {"text": "It is four.", "answered_by": "small", "actions": ("accept",)}
_ESCALATE: dict[str, Any] = {
    "text": "Four, I am certain.",
    "answered_by": "large",
    "actions": ("escalate", "accept"),
}
_TOOL: dict[str, Any] = {"tools": (ADD,), "tool_calls": (("add", {"a": 2, "b": 2}),), "text": ""}

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("accept", _two(SURE), CHOW, codes=("score",), **_ACCEPT),
    Scenario("defer", _two(UNSURE), CHOW, codes=("score", "last"), **_ESCALATE),
    Scenario("single-tier", {"small": SURE}, None, codes=("last",), **_ACCEPT),
    Scenario(
        "threshold-met-exactly",
        _two(SURE),
        Threshold(min_logprob, -0.1),
        codes=("score",),
        **_ACCEPT,
    ),
    Scenario(
        "threshold-minus-infinity",
        _two(UNSURE),
        Threshold(mean_logprob, -math.inf),
        "Maybe five?",
        "small",
        ("accept",),
        ("score",),
    ),
    Scenario(
        "threshold-plus-infinity",
        _two(SURE),
        Threshold(mean_logprob, math.inf),
        codes=("score", "last"),
        **_ESCALATE,
    ),
    Scenario(
        "three-tiers-reject-twice",
        {"small": UNSURE, "medium": {"reply": "Hm, six?", "logprob": -1.0}, "large": LARGE},
        CHOW,
        "Four, I am certain.",
        "large",
        ("escalate", "escalate", "accept"),
        ("score", "score", "last"),
    ),
    Scenario(
        "three-tiers-middle-accepts",
        {"small": UNSURE, "medium": SURE, "large": LARGE},
        [CHOW, Threshold(min_logprob, -0.5)],
        "It is four.",
        "medium",
        ("escalate", "accept"),
        ("score", "score"),
    ),
    Scenario(
        "missing-logprobs-defer", _two(MUTE), CHOW, codes=("no_logprobs", "last"), **_ESCALATE
    ),
    Scenario(
        "missing-logprobs-accept",
        _two(MUTE),
        Threshold(mean_logprob, -0.35, missing="accept"),
        codes=("no_logprobs",),
        **_ACCEPT,
    ),
    Scenario("always", _two(SURE), Always(), codes=("always", "last"), **_ESCALATE),
    Scenario("never", _two(SURE), Never(), codes=("never",), **_ACCEPT),
    Scenario("empty", _two({"reply": ""}), Valid(), codes=("empty", "last"), **_ESCALATE),
    Scenario(
        "cut-off",
        _two({"reply": Answer("It is", finish_reason="length")}),
        Valid(),
        codes=("length", "last"),
        **_ESCALATE,
    ),
    Scenario(
        "refused",
        _two({"reply": Answer("", refusal="I cannot.", finish_reason="stop")}),
        Valid(),
        codes=("refused", "last"),
        **_ESCALATE,
    ),
    Scenario(
        "any-of-defers",
        _two(SURE),
        Valid() | Always(),
        codes=("always", "last"),
        **_ESCALATE,
    ),
    Scenario(
        "all-of-accepts",
        _two(UNSURE | {"reply": "It is four."}),
        CHOW & Valid(),
        codes=("valid",),
        **_ACCEPT,
    ),
    Scenario("not-always", _two(SURE), ~Always(), codes=("always",), **_ACCEPT),
    Scenario(
        "plain-function",
        _two({"reply": "dunno", "logprob": -0.1}),
        _says_dunno,
        codes=("custom", "last"),
        **_ESCALATE,
    ),
    Scenario(
        "broken-policy-defers", _two(SURE), _breaks, codes=("policy_error", "last"), **_ESCALATE
    ),
    Scenario(
        "route-past-two",
        {"small": SURE, "medium": SURE, "large": LARGE},
        StraightToLast(),
        "Four, I am certain.",
        "large",
        ("skip", "skip", "accept"),
        ("route", "route", "last"),
    ),
    Scenario(
        "pinned",
        _two(SURE),
        CHOW,
        "Four, I am certain.",
        "large",
        ("accept",),
        ("last",),
        pin="large",
    ),
    Scenario(
        "small-fails",
        _two(_down(TimeoutError("too slow"))),
        CHOW,
        "Four, I am certain.",
        "large",
        ("error", "accept"),
        ("timeout", "last"),
    ),
    Scenario(
        "large-fails",
        _two(UNSURE, _down(ConnectionError("gone"))),
        CHOW,
        None,
        None,
        ("escalate", "error"),
        ("score", "connection"),
        raises=ConnectionError,
    ),
    Scenario(
        "both-fail",
        _two(_down(TimeoutError("too slow")), _down(ConnectionError("gone"))),
        CHOW,
        None,
        None,
        ("error", "error"),
        ("timeout", "connection"),
        raises=ConnectionError,
    ),
    Scenario(
        "small-fails-and-raises",
        _two(_down(TimeoutError("too slow"))),
        CHOW,
        None,
        None,
        ("error",),
        ("timeout",),
        raises=TimeoutError,
        options={"on_tier_error": "raise"},
    ),
    Scenario(
        "large-fails-best-draft-stands",
        _two(UNSURE, _down(ConnectionError("gone"))),
        CHOW,
        "Maybe five?",
        "small",
        ("escalate", "error"),
        ("score", "connection"),
        options={"on_exhausted": "best"},
    ),
    Scenario(
        "tool-call-accepted",
        _two({"reply": GOOD_CALL}),
        Valid(),
        answered_by="small",
        actions=("accept",),
        codes=("valid",),
        **_TOOL,
    ),
    Scenario(
        "tool-unknown",
        _two({"reply": ToolCall("subtract", {"a": 2, "b": 2})}, {"reply": GOOD_CALL}),
        Valid(),
        answered_by="large",
        actions=("escalate", "accept"),
        codes=("invalid", "last"),
        **_TOOL,
    ),
    Scenario(
        "tool-arguments-of-wrong-type",
        _two({"reply": ToolCall("add", {"a": "two", "b": 2})}, {"reply": GOOD_CALL}),
        Valid(),
        answered_by="large",
        actions=("escalate", "accept"),
        codes=("invalid", "last"),
        **_TOOL,
    ),
    Scenario(
        "tool-arguments-no-json",
        _two({"reply": ToolCall("add", None, raw='{"a": 2, "b"')}, {"reply": GOOD_CALL}),
        Valid(),
        answered_by="large",
        actions=("escalate", "accept"),
        codes=("invalid", "last"),
        **_TOOL,
    ),
    Scenario(
        "tool-call-scored",
        _two({"reply": GOOD_CALL, "logprob": -2.0}, {"reply": GOOD_CALL}),
        Threshold(mean_logprob, -0.35, over="arguments"),
        answered_by="large",
        actions=("escalate", "accept"),
        codes=("score", "last"),
        **_TOOL,
    ),
)
