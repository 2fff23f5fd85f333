"""Tool calls: a good one is parsed, a bad one stays visible as it was written."""

from __future__ import annotations

from typing import Any

import pytest

from cascadellm.answer import ToolCall
from cascadellm.local.toolcalls import hermes_call, schema_call


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            '\n{"name": "calc", "arguments": {"x": "2+3"}}\n',
            ToolCall("calc", {"x": "2+3"}, raw='{"x": "2+3"}'),
        ),
        (
            '{"name": "calc", "arguments": "{\\"x\\": 1}"}',
            ToolCall("calc", {"x": 1}, raw='{"x": 1}'),
        ),
        ('{"name": "now"}', ToolCall("now", {}, raw="{}")),
        ('{"name": "calc", "parameters": {"x": 1}}', ToolCall("calc", {"x": 1}, raw='{"x": 1}')),
        ('{"name": "calc", "arguments": [1]}', ToolCall("calc", None, raw="[1]")),
        ('{"name": "calc", "arguments": "x"}', ToolCall("calc", None, raw="x")),
        ('{"name": "calc", "argum', ToolCall("calc", None, raw='{"name": "calc", "argum')),
        ('{"name": "ca', ToolCall("", None, raw='{"name": "ca')),
        ('{"name": 3}', ToolCall("", None, raw='{"name": 3}')),
        ("[]", ToolCall("", None, raw="[]")),
        ("calc(2)", ToolCall("", None, raw="calc(2)")),
        ("", ToolCall("", None, raw="")),
    ],
)
def test_hermes_call_is_parsed_or_kept_as_written(body: str, expected: ToolCall) -> None:
    """A call in Hermes form is parsed; anything else keeps its text and has no arguments."""
    assert expected == hermes_call(body)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            {"type": "function", "id": "c1", "function": {"name": "f", "arguments": {"a": 1}}},
            [ToolCall("f", {"a": 1}, id="c1", raw='{"a": 1}')],
        ),
        (
            [{"name": "f", "arguments": "{}"}, {"name": "g"}],
            [ToolCall("f", {}, raw="{}"), ToolCall("g", {}, raw="{}")],
        ),
        ("nonsense", [ToolCall("", None, raw="as written")]),
    ],
)
def test_schema_call_reads_what_the_template_found(value: Any, expected: list[ToolCall]) -> None:
    """One block of a response template may hold one call, several, or none that is usable."""
    assert expected == list(schema_call(value, " as written "))
