"""The validity policy: defer what the caller could not use anyway."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cascadellm.answer import Answer, Decision, Request, ToolCall
from cascadellm.effects import Compute, Plan
from cascadellm.errors import MissingDependencyError
from cascadellm.policies.asking import refused
from cascadellm.policies.base import Moment, Policy

__all__ = ["Valid", "schema_error"]


@dataclass(frozen=True, slots=True)
class Valid(Policy):
    """Defers an answer that is empty, cut off, refused, or malformed.

    Malformed: a call of an unknown tool, arguments that do not satisfy the tool's JSON
    schema, a missing call where one was required, or text that does not satisfy the
    requested response schema or parser. A refusal counts only when the provider says so in
    a field of its own, never by its wording. A well-formed call with a wrong value passes.
    """

    def after(self, moment: Moment) -> Decision | Plan[Decision]:
        request, answer = moment.request, moment.draft
        if answer.tool_calls or request.parser or request.response_schema:
            return _checked(request, answer)
        return _decision(find_fault(request, answer))


def _checked(request: Request, answer: Answer) -> Plan[Decision]:
    # a schema or a parser may take milliseconds, and runs off the event loop
    return _decision((yield Compute(lambda: find_fault(request, answer))))


def _decision(fault: tuple[str, str] | None) -> Decision:
    if fault is None:
        return Decision(False, "Valid", code="valid", reason="well-formed")
    code, reason = fault
    return Decision(True, "Valid", code=code, reason=reason)


def find_fault(request: Request, answer: Answer) -> tuple[str, str] | None:
    """Return (code, sentence) for the first fault of an answer, None if there is none."""
    if refused(answer):
        return "refused", answer.refusal or f"the provider ended it: {answer.finish_reason}"
    if answer.finish_reason in ("length", "max_tokens"):
        return "length", "cut off by the token limit"
    if not answer.text.strip() and not answer.tool_calls:
        return "empty", "the answer is empty"
    for call in answer.tool_calls:
        fault = _tool_fault(call, request)
        if fault is not None:
            return "invalid", fault
    if request.tool_required and not answer.tool_calls:
        return "invalid", "a tool call was required and none was made"
    if answer.tool_calls:
        return None
    return _response_fault(request, answer.text)


def _tool_fault(call: ToolCall, request: Request) -> str | None:
    schemas = {_spec(tool).get("name"): _spec(tool).get("parameters") for tool in request.tools}
    if call.name not in schemas:
        known = ", ".join(sorted(str(name) for name in schemas)) or "none"
        return f"unknown tool {call.name!r}; known: {known}"
    if call.arguments is None:
        return f"arguments of {call.name!r} are no JSON object: {call.raw[:80]!r}"
    error = schema_error(call.arguments, schemas[call.name] or {})
    return None if error is None else f"arguments of {call.name!r}: {error}"


def _spec(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = tool.get("function", tool)
    return inner if isinstance(inner, Mapping) else tool


def _response_fault(request: Request, text: str) -> tuple[str, str] | None:
    if request.parser is not None:
        try:
            request.parser(text)
        except Exception as error:
            # the caller's parser would raise on this text, whatever its error class
            return "invalid", f"the parser rejects it: {_first_line(error)}"
        return None
    if request.response_schema is None:
        return None
    try:
        value = json.loads(_unfenced(text))
    except ValueError as error:
        return "invalid", f"the answer is no JSON: {_first_line(error)}"
    fault = schema_error(value, request.response_schema)
    return None if fault is None else ("invalid", f"the answer's JSON: {fault}")


def _unfenced(text: str) -> str:
    """Drop a Markdown code fence, which both frameworks' JSON parsers accept."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        return text.split("\n", 1)[1][:-3]
    return text


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def schema_error(value: Any, schema: Mapping[str, Any]) -> str | None:
    """Return what breaks a JSON schema, None when the value satisfies it.

    The dialect is the one the schema names, else draft 2020-12. References to other documents
    are never fetched; a schema that cannot be evaluated is a fault with that reason.

    Raises:
        MissingDependencyError: `jsonschema` is not installed.
    """
    validator = _validator(json.dumps(schema, sort_keys=True, default=str))
    try:
        error = next(validator.iter_errors(value), None)
    except Exception as broken:
        # an unresolvable reference or a pattern in another regular-expression dialect
        return f"the schema cannot be evaluated: {_first_line(broken)}"
    if error is None:
        return None
    place = "/".join(str(part) for part in error.absolute_path)
    return f"{place + ': ' if place else ''}{error.message}"[:300]


@lru_cache(maxsize=256)
def _validator(schema_json: str) -> Any:
    try:
        from jsonschema.validators import Draft202012Validator, validator_for
    except ImportError as error:  # pragma: no cover - a base dependency
        raise MissingDependencyError.for_extra("jsonschema", "langchain") from error
    schema = json.loads(schema_json)
    cls = validator_for(schema, default=Draft202012Validator)
    return cls(schema)
