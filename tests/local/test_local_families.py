"""Tool calls of other families: Mistral and Llama 3, told apart by the chat template."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascadellm.answer import Answer, ToolCall
from cascadellm.local import LocalModel
from cascadellm.local.families import LlamaSections, MistralSections, sections_for
from cascadellm.local.history import fit_call_ids
from cascadellm.local.sections import Sections, TagSections
from tests.local.tiny_models import CALCULATOR, script_model, tiny_tokenizer

CALL = '{"name": "calc", "parameters": {"x": "1"}}'
ONE = ToolCall("calc", {"x": "1"}, raw='{"x": "1"}')
MISTRAL = "{{ tools }}{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}[TOOL_CALLS]"
LLAMA = "{{ tools }}{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}{# ipython #}"


def _read(make: Callable[[], Sections], text: str) -> tuple[str, str, list[ToolCall]]:
    """Return answer, arguments and calls; the same for the whole text and for its characters."""
    results = []
    for pieces in ([text], list(text)):
        sections = make()
        chunks = [chunk for piece in pieces for chunk in sections.feed(piece)]
        chunks += sections.finish()
        assert text == "".join(chunk for _, chunk in chunks)
        joined = {
            part: "".join(chunk for label, chunk in chunks if label == part)
            for part in ("answer", "arguments")
        }
        results.append((joined["answer"], joined["arguments"], sections.calls))
    assert results[0] == results[1]
    return results[0]


@pytest.mark.parametrize(
    ("text", "answer", "calls"),
    [
        ("plain [TOOL", "plain [TOOL", []),
        ('[TOOL_CALLS][{"name": "calc", "arguments": {"x": "1"}}]', "", [ONE]),
        (
            'Sure.[TOOL_CALLS] [{"name": "calc", "arguments": {"x": "1"}, "id": "abcdefghi"}]',
            "Sure.",
            [ToolCall("calc", {"x": "1"}, id="abcdefghi", raw='{"x": "1"}')],
        ),
        (
            '[TOOL_CALLS]calc[ARGS]{"x": "1"}[TOOL_CALLS]calc[CALL_ID]k1[ARGS]{"x": "1"}',
            "",
            [ONE, ToolCall("calc", {"x": "1"}, id="k1", raw='{"x": "1"}')],
        ),
        ("[TOOL_CALLS]calc[ARGS]{bad", "", [ToolCall("calc", None, raw="{bad")]),
        ("[TOOL_CALLS]{bad", "", [ToolCall("", None, raw="{bad")]),
        (
            '[TOOL_CALLS]calc[ARGS]{"x": "[TOOL_CALLS] [ARGS]"}[TOOL_CALLS]{bad',
            "",
            [
                ToolCall("calc", {"x": "[TOOL_CALLS] [ARGS]"}, raw='{"x": "[TOOL_CALLS] [ARGS]"}'),
                ToolCall("", None, raw="{bad"),
            ],
        ),
        (
            '[TOOL_CALLS] [{"name": "calc", "arguments": {"x": "[ARGS]"}}] so',
            "",
            [ToolCall("", None, raw='[{"name": "calc", "arguments": {"x": "[ARGS]"}}] so')],
        ),
    ],
)
def test_mistral_calls_are_read(text: str, answer: str, calls: list[ToolCall]) -> None:
    """Both of Mistral's forms are read; what is broken keeps its text."""
    found, _, read = _read(MistralSections, text)
    assert (answer, calls) == (found, read)


@pytest.mark.parametrize(
    ("text", "answer", "calls"),
    [
        ("plain", "plain", []),
        ('{"name": "calc", "parameters": {"x": "1"}}', "", [ONE]),
        ('<|python_tag|>{"name": "calc", "parameters": {"x": "1"}}', "", [ONE]),
        (
            f"{CALL}; {CALL}",
            "",
            [ONE, ONE],
        ),
        ('{"answer": 5}', '{"answer": 5}', []),
        ('{"name": "other", "parameters": {}}', '{"name": "other", "parameters": {}}', []),
        ('{"name": "calc", "par', "", [ToolCall("calc", None, raw='{"name": "calc", "par')]),
        ("<|python_tag|>print(1)", "", [ToolCall("", None, raw="print(1)")]),
        ("<|pyth", "<|pyth", []),
        (
            '{"name": "calc", "parameters": {"x": "<|python_tag|>"}}',
            "",
            [ToolCall("calc", {"x": "<|python_tag|>"}, raw='{"x": "<|python_tag|>"}')],
        ),
        ("", "", []),
    ],
)
def test_llama_calls_are_read(text: str, answer: str, calls: list[ToolCall]) -> None:
    """An answer that calls a known tool is a call; other JSON is an answer."""
    found, _, read = _read(lambda: LlamaSections([CALCULATOR]), text)
    assert (answer, calls) == (found, read)


@pytest.mark.parametrize(
    ("template", "tools", "kind"),
    [
        (MISTRAL, [CALCULATOR], MistralSections),
        (LLAMA, [CALCULATOR], LlamaSections),
        ("<tool_call>", [CALCULATOR], TagSections),
        (MISTRAL, [], TagSections),
        (LLAMA, [], TagSections),
    ],
)
def test_the_template_chooses_the_form(template: str, tools: list[Any], kind: type) -> None:
    """The form follows the chat template, and calls are read only when tools are offered."""
    assert kind is type(sections_for(template, None, "", tools, thinking=False))


def test_call_ids_are_fitted_to_templates_that_limit_them() -> None:
    """A call and its result keep one identifier of nine characters; others are left alone."""
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [{"id": "call_1234567890"}]},
        {"role": "tool", "content": "5", "tool_call_id": "call_1234567890"},
        {"role": "tool", "content": "5", "tool_call_id": "abcdefghi"},
    ]
    fitted = fit_call_ids(messages, MISTRAL)
    short = fitted[0]["tool_calls"][0]["id"]
    assert short.isalnum()
    assert (9, short, "abcdefghi") == (
        len(short),
        fitted[1]["tool_call_id"],
        fitted[2]["tool_call_id"],
    )
    assert messages is fit_call_ids(messages, "<tool_call>")
    assert "call_1234567890" == messages[1]["tool_call_id"]


def _answer(folder: Path, text: str, template: str) -> tuple[Answer, Answer]:
    """Return what a model of that family answers, generated and streamed."""
    path = script_model(folder, text, extra=("[TOOL_CALLS]", "[ARGS]"))
    tokenizer = tiny_tokenizer(("[TOOL_CALLS]", "[ARGS]"))
    default = tokenizer.chat_template
    with LocalModel(path, chat_template_kwargs={"chat_template": default + template}) as model:
        pieces = list(model.stream("Hi", tools=[CALCULATOR]))
        answer = model.generate("Hi", tools=[CALCULATOR])
    last = pieces[-1].answer
    assert last is not None
    assert last.text == "".join(piece.text for piece in pieces)
    return answer, last


@pytest.mark.parametrize(
    ("text", "template"),
    [
        ('[TOOL_CALLS]calc[ARGS]{"x": "1"}', "{# [TOOL_CALLS] #}"),
        ('{"name": "calc", "parameters": {"x": "1"}}', "{# ipython #}"),
    ],
)
def test_a_model_of_another_family_calls_a_tool(tmp_path: Path, text: str, template: str) -> None:
    """From prompt to call, streamed and not, with the call's tokens labelled as such."""
    for answer in _answer(tmp_path / "family", text, template):
        assert (ONE,) == answer.tool_calls
        assert ("", "tool_calls") == (answer.text, answer.finish_reason)
        assert answer.tokens is not None
        assert "arguments" in {token.part for token in answer.tokens}
