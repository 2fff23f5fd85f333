"""Thirty calls and answers of our own: what a consumer could use passes, the rest is deferred."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from cascadellm import Answer, Request, ToolCall
from cascadellm.policies.validity import find_fault, schema_error

WEATHER: dict[str, Any] = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "minLength": 1},
            "days": {"type": "integer", "minimum": 1, "maximum": 7},
            "unit": {"enum": ["C", "F"]},
            "where": {
                "type": "object",
                "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}},
                "required": ["lat", "lon"],
            },
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
}
LOOSE = {"type": "function", "function": {"name": "note", "parameters": {"type": "object"}}}
ASKED = Request("", tools=({"type": "function", "function": WEATHER}, LOOSE))
SHAPE = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


CALLS = [
    ("weather", {"city": "Rome"}, None),
    ("weather", {"city": "Rome", "days": 3, "unit": "C"}, None),
    ("weather", {"city": "Rome", "days": 3.0}, None),
    ("weather", {"city": "Rome", "where": {"lat": 1, "lon": 2.5}}, None),
    ("weather", {"city": "Rome", "tags": ["a", "b"]}, None),
    ("note", {"anything": [1, {"goes": None}]}, None),
    ("note", {}, None),
    ("wether", {"city": "Rome"}, "unknown tool"),
    ("weather", None, "no JSON object"),
    ("weather", {}, "required"),
    ("weather", {"city": 7}, "not of type 'string'"),
    ("weather", {"city": None}, "not of type 'string'"),
    ("weather", {"city": ""}, "should be non-empty"),
    ("weather", {"city": "Rome", "days": "3"}, "not of type 'integer'"),
    ("weather", {"city": "Rome", "days": 3.5}, "not of type 'integer'"),
    ("weather", {"city": "Rome", "days": 9}, "greater than the maximum"),
    ("weather", {"city": "Rome", "days": True}, "not of type 'integer'"),
    ("weather", {"city": "Rome", "unit": "K"}, "not one of"),
    ("weather", {"city": "Rome", "where": {"lat": 1}}, "required"),
    ("weather", {"city": "Rome", "where": "here"}, "not of type 'object'"),
    ("weather", {"city": "Rome", "tags": ["a", 1]}, "not of type 'string'"),
    ("weather", {"city": "Rome", "tags": list("abc")}, "too long"),
    ("weather", {"city": "Rome", "country": "IT"}, "Additional properties"),
]
ANSWERS = [
    ('{"n": 1}', None),
    ('```json\n{"n": 1}\n```', None),
    ('{"n": 1, "more": true}', None),
    ('{"n": "1"}', "not of type"),
    ("{}", "required"),
    ('{"n": 1', "no JSON"),
    ("n is 1", "no JSON"),
    ("[1]", "not of type 'object'"),
]


@pytest.mark.parametrize(("name", "arguments", "fault"), CALLS)
def test_calls_are_judged_by_name_and_schema(name: str, arguments: Any, fault: str | None) -> None:
    """Only what the tool itself would refuse is a fault, and the sentence says which."""
    found = find_fault(ASKED, Answer("", tool_calls=(ToolCall(name, arguments, raw="{"),)))
    assert (None if fault is None else "invalid") == (found and found[0])
    assert fault is None or (found is not None and fault in found[1])
    if name == "weather" and arguments is not None:
        reference = Draft202012Validator(WEATHER["parameters"]).is_valid(arguments)
        assert reference == (found is None)


@pytest.mark.parametrize(("text", "fault"), ANSWERS)
def test_answers_are_judged_by_the_requested_schema(text: str, fault: str | None) -> None:
    """A response schema is checked on the answer's JSON, fenced or bare."""
    found = find_fault(Request("", response_schema=SHAPE), Answer(text))
    assert (fault is None) == (found is None)
    assert fault is None or (found is not None and fault in found[1])


def test_a_schema_that_cannot_be_evaluated_is_a_named_fault() -> None:
    """Nothing is fetched and nothing is raised: the answer is deferred with the reason."""
    remote = {"$ref": "http://localhost:1/none.json"}
    assert "cannot be evaluated" in (schema_error({}, remote) or "")
    assert "cannot be evaluated" in (schema_error("x", {"pattern": "\\c"}) or "")


def test_the_judge_of_cases_has_power() -> None:
    """Mutation: a policy that only checks required arguments lets mistyped ones through."""

    def required_only(arguments: Any) -> bool:
        return all(key in arguments for key in WEATHER["parameters"]["required"])

    wrong = [a for n, a, fault in CALLS if n == "weather" and fault and a is not None]
    assert any(required_only(arguments) for arguments in wrong)
    assert all(schema_error(arguments, WEATHER["parameters"]) for arguments in wrong)
