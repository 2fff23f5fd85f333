"""What a constrained answer may look like, in the words of xgrammar's structural tags.

Each family's form is the one that its sections read, so whatever the grammar lets pass is read
back as it was meant.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cascadellm.local.chat import Prompt
from cascadellm.local.families import Family, family_of
from cascadellm.local.settings import Settings

__all__ = ["answer_form"]

Form = dict[str, Any]

# between two parts of JSON; a small model may otherwise write nothing but space
_MOST_SPACE = 1
_THINK_END = "</think>"
# any character that stands for itself in a JSON string
_CHARACTER = "[ !#-\\[\\]-\ud7ff\ue000-\uffff\U00010000-\U0010ffff]"
# what stands under these keys is data, not a schema
_DATA = frozenset({"const", "default", "enum", "examples"})


def answer_form(prompt: Prompt, settings: Settings, template: str, declared: Any) -> Form | None:
    """Return the form of an answer to this prompt, None where nothing is constrained.

    Args:
        prompt: What is answered.
        settings: Says which parts are constrained.
        template: The chat template.
        declared: The tokenizer's own `response_template`, or None.

    Raises:
        ConfigurationError: It is not known how this model writes tool calls.
    """
    schema, demand = settings.response_schema, settings.constrain_tools
    calls = None
    if demand and prompt.tools:
        calls = _calls(prompt.tools, family_of(template, declared), declared is not None)
    if calls is None:
        return None if schema is None else _thought(prompt, _json(schema))
    if demand == "one":
        return _thought(prompt, calls.one)
    if demand == "required":
        return _thought(prompt, calls.several)
    if schema is None:
        return calls.among_text
    return _thought(prompt, _or(calls.several, _json(schema)))


@dataclass(frozen=True, slots=True)
class _Calls:
    """Forms of an answer with exactly one call, with one or more, with text around calls."""

    one: Form
    several: Form
    among_text: Form


def _calls(tools: Sequence[Mapping[str, Any]], family: Family, declared: bool) -> _Calls:
    functions = [tool.get("function", tool) for tool in tools]
    if family == "llama":
        return _llama(functions)
    if family == "mistral-list":
        return _mistral([_call("", one, "}") for one in functions], listed=True)
    if family in ("mistral", "mistral-ids"):
        middle = _sequence(_regex("(\\[CALL_ID\\][a-zA-Z0-9]{9})?"), _const("[ARGS]"))
        if family == "mistral":
            middle = _const("[ARGS]")
        named = [_sequence(_const(f["name"]), middle, _parameters(f)) for f in functions]
        return _mistral([_tag("", form) for form in named], listed=False)
    # a tokenizer's own parser ends a call at the first closing tag, even inside a string
    excludes = ["</tool_call>"] if declared else []
    tags = [_call("<tool_call>\n", one, "}\n</tool_call>", excludes=excludes) for one in functions]
    return _Calls(
        one=_or(*tags),
        several=_joined(tags, "\n"),
        among_text={"type": "triggered_tags", "triggers": ["<tool_call>"], "tags": tags},
    )


def _llama(functions: Sequence[Mapping[str, Any]]) -> _Calls:
    one = _or(*(_call("", function, "}", key="parameters") for function in functions))
    # an answer that begins like a call is read as one
    other = _sequence(_regex("\\s*([^{<\\s]|<[^|])"), {"type": "any_text"})
    return _Calls(one=one, several=one, among_text=_or(one, other, _const("")))


def _mistral(tags: list[Form], *, listed: bool) -> _Calls:
    def whole(form: Form) -> Form:
        inner = (_regex(" ?"), _const("["), form, _const("]")) if listed else (form,)
        return _sequence(_const("[TOOL_CALLS]"), *inner)

    several = whole(_joined(tags, ", " if listed else "[TOOL_CALLS]"))
    text = {"type": "any_text", "excludes": ["[TOOL_CALLS]"]}
    # everything after the first tag is read as calls
    return _Calls(
        one=whole(_or(*tags)),
        several=several,
        among_text=_sequence(text, {"type": "optional", "content": several}),
    )


def _call(
    lead: str,
    function: Mapping[str, Any],
    end: str,
    *,
    key: str = "arguments",
    excludes: Sequence[str] = (),
) -> Form:
    begin = f'{lead}{{"name": {json.dumps(function["name"])}, "{key}": '
    return _tag(begin, _parameters(function, excludes), end)


def _parameters(function: Mapping[str, Any], excludes: Sequence[str] = ()) -> Form:
    form = _json(function.get("parameters") or {"type": "object", "properties": {}})
    return {**form, "excludes": list(excludes)} if excludes else form


def _thought(prompt: Prompt, form: Form) -> Form:
    """Let the reasoning block that the template opened end before the form begins."""
    if not prompt.thinking:
        return form
    return _sequence(_tag("", {"type": "any_text"}, _THINK_END), _regex("\\s{0,4}"), form)


def _json(schema: Mapping[str, Any]) -> Form:
    return {
        "type": "json_schema",
        "json_schema": _lengths_as_patterns(schema),
        "max_whitespace_cnt": _MOST_SPACE,
    }


def _lengths_as_patterns(schema: Any) -> Any:
    """Return a schema whose bounds on the length of strings are patterns.

    xgrammar lets control characters, which JSON has to escape, into strings that have bounds,
    and counts halves of surrogate pairs as characters.
    """
    if isinstance(schema, list):
        return [_lengths_as_patterns(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    copy = {k: v if k in _DATA else _lengths_as_patterns(v) for k, v in schema.items()}
    least, most = copy.get("minLength", 0), copy.get("maxLength", "")
    bounded = isinstance(least, int) and isinstance(most, (int, str)) and (least or most != "")
    if bounded and not {"pattern", "format"} & copy.keys():
        copy["pattern"] = f"^{_CHARACTER}{{{least},{most}}}$"
        copy = {k: v for k, v in copy.items() if k not in ("minLength", "maxLength")}
    return copy


def _tag(begin: str, content: Form, end: str = "") -> Form:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def _joined(tags: list[Form], separator: str) -> Form:
    repeated = {"type": "star", "content": _sequence(_const(separator), _or(*tags))}
    return _sequence(_or(*tags), repeated)


def _or(*forms: Form) -> Form:
    return forms[0] if len(forms) == 1 else {"type": "or", "elements": list(forms)}


def _sequence(*forms: Form) -> Form:
    return {"type": "sequence", "elements": list(forms)}


def _const(text: str) -> Form:
    return {"type": "const_string", "value": text}


def _regex(pattern: str) -> Form:
    return {"type": "regex", "pattern": pattern}
