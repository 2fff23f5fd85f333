"""Sections and stop strings: the same split for every grouping of the characters."""

from __future__ import annotations

import random

import pytest

from cascadellm.answer import ToolCall
from cascadellm.local.sections import (
    Sections,
    StopStrings,
    TagSections,
    TemplateSections,
    open_suffix,
)

CALL = '<tool_call>\n{"name": "calc", "arguments": {"x": "1"}}\n</tool_call>'
CALC = ToolCall("calc", {"x": "1"}, raw='{"x": "1"}')

# the form that transformers ships for the Qwen family
QWEN = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*(?:<\|im_end\|>)", "content": "text"},
    },
}


def _split(sections: Sections, pieces: list[str]) -> dict[str, str]:
    """Return the joined text of each part, and check that nothing is lost or reordered."""
    chunks = [chunk for piece in pieces for chunk in sections.feed(piece)] + sections.finish()
    assert "".join(pieces) == "".join(text for _, text in chunks)
    joined: dict[str, str] = {}
    for part, text in chunks:
        joined[part] = joined.get(part, "") + text
    return joined


def _groupings(text: str) -> list[list[str]]:
    """Return the text whole, by characters, and in random pieces."""
    rng = random.Random(len(text))
    groupings = [[text], list(text)]
    for _ in range(5):
        cuts = sorted(rng.sample(range(len(text) + 1), min(4, len(text))))
        groupings.append([text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)])
    return groupings


@pytest.mark.parametrize(
    ("text", "answer", "reasoning", "calls"),
    [
        ("plain", "plain", "", []),
        ("<think>\nhm\n</think>\n\nYes", "\n\nYes", "\nhm\n", []),
        (" \n<think>hm</think>Yes", " \nYes", "hm", []),
        ("The tag <think> opens", "The tag <think> opens", "", []),
        ("a < b <thin", "a < b <thin", "", []),
        ("<think>never closed", "", "never closed", []),
        (f"Look:\n{CALL}", "Look:\n", "", [CALC]),
        (f"{CALL}\n{CALL}", "\n", "", [CALC, CALC]),
        (f"<think>so</think>{CALL}ok", "ok", "so", [CALC]),
        ("<tool_call>{bad", "", "", [ToolCall("", None, raw="{bad")]),
    ],
)
def test_tags_split_text_the_same_way_for_every_grouping(
    text: str, answer: str, reasoning: str, calls: list[ToolCall]
) -> None:
    """Reasoning and tool calls are found wherever the pieces are cut."""
    for pieces in _groupings(text):
        sections = TagSections(tools=True)
        parts = _split(sections, pieces)
        assert (answer, reasoning) == (parts.get("answer", ""), parts.get("reasoning", ""))
        assert calls == sections.calls


def test_a_closing_tag_inside_a_string_is_text() -> None:
    """Arguments may hold the closing tag; a line break ends a string that was left open."""
    text = '<tool_call>\n{"name": "calc", "arguments": {"x": "\\"</tool_call>"}}\n</tool_call>ok'
    broken = '<tool_call>\n{"name": "calc, \n</tool_call>ok'
    for pieces in _groupings(text):
        sections = TagSections(tools=True)
        assert "ok" == _split(sections, pieces)["answer"]
        assert {"x": '"</tool_call>'} == sections.calls[0].arguments
    for pieces in _groupings(broken):
        sections = TagSections(tools=True)
        assert "ok" == _split(sections, pieces)["answer"]
        assert sections.calls[0].arguments is None


def test_a_prompt_that_opens_the_block_starts_inside_it() -> None:
    """Where the template wrote the opening tag, the text up to the closing tag is reasoning."""
    parts = _split(TagSections(tools=False, thinking=True), ["hm</think>Yes"])
    assert ("hm", "Yes") == (parts["reasoning"], parts["answer"])


def test_tool_tags_are_text_when_no_tools_were_given() -> None:
    """Without tools an answer about the tag stays an answer."""
    sections = TagSections(tools=False)
    assert CALL == _split(sections, list(CALL))["answer"]
    assert [] == sections.calls


@pytest.mark.parametrize(
    "text", [f"<think>\nso\n</think>\n\nLook\n{CALL}<|im_end|>", "Yes<|im_end|>"]
)
def test_a_tokenizers_own_template_gives_the_same_parts(text: str) -> None:
    """The response template of the tokenizer and the built-in tags agree on the Qwen form."""
    ours = TagSections(tools=True)
    expected = _split(ours, [text.removesuffix("<|im_end|>")])
    for pieces in _groupings(text):
        theirs = TemplateSections(QWEN, "<|im_start|>assistant\n")
        parts = _split(theirs, pieces)
        for part in ("answer", "reasoning", "arguments"):
            assert expected.get(part, "").strip() == parts.get(part, "").strip()
        assert ours.calls == theirs.calls


def test_a_malformed_call_in_a_template_is_kept() -> None:
    """A block that the tokenizer's template cannot read becomes a call without arguments."""
    sections = TemplateSections(QWEN, "<|im_start|>assistant\n")
    chunks = [*sections.feed("<tool_call>{bad</tool_call> more"), *sections.finish()]
    assert [ToolCall("", None, raw="{bad")] == sections.calls
    assert "<tool_call>{bad</tool_call> more" == "".join(text for _, text in chunks)


@pytest.mark.parametrize(
    ("stop", "text", "kept"),
    [
        (["STOP"], "go on STOP there", "go on "),
        (["b", "abc"], "xxabc", "xxa"),
        (["\n\n"], "a\nb\n\nc", "a\nb"),
        (["aab"], "aaaab!", "aa"),
        (["never"], "the whole text nev", "the whole text nev"),
    ],
)
def test_stop_strings_cut_at_the_same_place_for_every_grouping(
    stop: list[str], text: str, kept: str
) -> None:
    """Characters before the first stop string pass, nothing else does."""
    for pieces in _groupings(text):
        strings = StopStrings(stop)
        shown = "".join(map(strings.feed, pieces)) + strings.flush()
        assert kept == shown
        assert strings.hit == (kept != text)


def test_nothing_is_shown_that_could_become_a_stop_string() -> None:
    """The end of the text is held back while it may still be cut; a mutant shows it too early."""
    strings = StopStrings(["END"])
    assert "x" == strings.feed("xE")
    assert "" == strings.feed("N")
    assert "" == strings.feed("D")
    assert strings.hit
    # the mutant that holds nothing back would have shown characters of the stop string
    assert open_suffix("xE", ["END"]) != 0


@pytest.mark.parametrize(
    ("text", "length"), [("", 0), ("abc", 0), ("ab<", 1), ("a<thi", 4), ("<think>", 0)]
)
def test_open_suffix_is_the_longest_unfinished_tag(text: str, length: int) -> None:
    """Only a proper beginning of a tag at the very end counts."""
    assert length == open_suffix(text, ["<think>", "<tool_call>"])
