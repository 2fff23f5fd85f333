"""The validity policy: each fault defers with its reason, a usable answer passes."""

from __future__ import annotations

from typing import Any

import pytest

from cascadellm import Answer, Cascade, Request, ToolCall, Valid
from cascadellm.policies.validity import find_fault, schema_error
from cascadellm.testing import FakeModel
from tests.engine.running import run

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "required": ["a"],
        },
    },
}
FLAT = {"name": "now", "parameters": {"type": "object", "properties": {}}}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
}


def fault(answer: Answer, **request: Any) -> tuple[str, str] | None:
    """Return what Valid finds."""
    return find_fault(Request("q", "q", **request), answer)


FAULTS: list[tuple[str, Answer, dict[str, Any], str]] = [
    ("refused", Answer("No.", refusal="I will not"), {}, "I will not"),
    ("refused", Answer("x", finish_reason="content_filter"), {}, "content_filter"),
    ("refused", Answer("x", finish_reason="refusal"), {}, "refusal"),
    ("refused", Answer("x", finish_reason="safety"), {}, "safety"),
    ("length", Answer("x", finish_reason="length"), {}, "token limit"),
    ("length", Answer("x", finish_reason="max_tokens"), {}, "token limit"),
    ("empty", Answer(""), {}, "empty"),
    ("empty", Answer(" \n\t"), {}, "empty"),
    ("empty", Answer("", reasoning="thought a lot"), {}, "empty"),
    ("invalid", Answer("", tool_calls=(ToolCall("sub", {}),)), {"tools": (ADD,)}, "known: add"),
    ("invalid", Answer("", tool_calls=(ToolCall("add", {"a": 1}),)), {}, "known: none"),
    ("invalid", Answer("", tool_calls=(ToolCall("add", {}),)), {"tools": (ADD,)}, "required"),
    (
        "invalid",
        Answer("", tool_calls=(ToolCall("add", {"a": "1"}),)),
        {"tools": (ADD,)},
        "a: '1' is not of type 'integer'",
    ),
    (
        "invalid",
        Answer("", tool_calls=(ToolCall("add", {"a": 1}), ToolCall("add", None, raw="{'a'"))),
        {"tools": (ADD,)},
        "no JSON object",
    ),
    ("invalid", Answer("text"), {"tools": (ADD,), "tool_required": True}, "none was made"),
    ("invalid", Answer("not json"), {"response_schema": PERSON}, "no JSON"),
    ("invalid", Answer('{"age": 3}'), {"response_schema": PERSON}, "'name' is a required"),
    ("invalid", Answer('{"name": "a", "age": -1}'), {"response_schema": PERSON}, "age: -1"),
    ("invalid", Answer("abc"), {"parser": int}, "invalid literal for int"),
]


@pytest.mark.parametrize(("code", "answer", "request_", "words"), FAULTS)
def test_valid_when_an_answer_cannot_be_used(
    code: str, answer: Answer, request_: dict[str, Any], words: str
) -> None:
    """Each fault has its code and a sentence that names it."""
    found = fault(answer, **request_)

    assert found is not None
    assert code == found[0]
    assert words in found[1]


@pytest.mark.parametrize(
    ("answer", "request_"),
    [
        (Answer("42"), {}),
        (Answer("I cannot answer that, sorry."), {}),
        (Answer("x", finish_reason="tool_calls"), {}),
        (Answer("", tool_calls=(ToolCall("add", {"a": 999}),)), {"tools": (ADD,)}),
        (Answer("", tool_calls=(ToolCall("now", {}),)), {"tools": (FLAT,)}),
        (Answer('{"name": "a"}'), {"response_schema": PERSON}),
        (Answer('```json\n{"name": "a"}\n```'), {"response_schema": PERSON}),
        (Answer("12"), {"parser": int}),
        (
            Answer("", tool_calls=(ToolCall("add", {"a": 1}),)),
            {"tools": (ADD,), "response_schema": PERSON},
        ),
    ],
)
def test_valid_when_an_answer_can_be_used(answer: Answer, request_: dict[str, Any]) -> None:
    """Refusing words, wrong values, fences and tool calls beside a schema are no faults."""
    assert None is fault(answer, **request_)


def test_valid_when_validation_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of faults has power: a validator that finds nothing fails it."""
    monkeypatch.setattr("cascadellm.policies.validity.schema_error", lambda value, schema: None)
    missed = [words for _, a, r, words in FAULTS if fault(a, **r) is None]

    assert 4 <= len(missed)


def test_valid_when_the_dialect_is_named() -> None:
    """A schema is read in the dialect that it names."""
    old = {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 3}
    exclusive = {**old, "exclusiveMinimum": True}

    assert None is schema_error(3, old)
    assert None is not schema_error(3, exclusive)


def test_valid_when_in_a_cascade() -> None:
    """The decision carries code and reason into the record."""
    cascade = Cascade([FakeModel("", name="a"), FakeModel("b", name="b")], Valid())
    first = run(cascade).trace.attempts[0]

    assert ("escalate", "empty", "Valid") == (first.action, first.code, first.policy)
