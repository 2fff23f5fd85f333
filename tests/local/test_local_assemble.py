"""TextAssembler: one answer from token ids, the same for every way of feeding and reading it."""

from __future__ import annotations

from typing import Any

import pytest

from cascadellm.answer import Answer, Piece, ToolCall
from cascadellm.local.assemble import RowScore, TextAssembler
from cascadellm.local.detokenize import TokenTable
from cascadellm.local.sections import TAGS, TagSections
from tests.local.tiny_models import tiny_tokenizer

TOKENIZER = tiny_tokenizer(("stop here", " yes"))
TABLE = TokenTable(TOKENIZER, visible=TAGS)
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
FULL = (
    "<think>\nhm \u20ac\n</think>\n\nLet me see.\n"
    '<tool_call>\n{"name": "calc", "arguments": {"x": 1}}\n</tool_call>'
)


def _assembler(stop: tuple[str, ...] = (), tools: bool = True) -> TextAssembler:
    return TextAssembler(TABLE, eos_ids={END}, stop=stop, sections=TagSections(tools=tools))


def _ids(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text).input_ids
    return ids


def _run(
    assembler: TextAssembler, ids: list[int], sources: list[str] | None = None, block: int = 1
) -> tuple[Answer, list[Piece]]:
    """Feed all ids, look at the text after every `block` tokens, and finish."""
    pieces = []
    for place, token_id in enumerate(ids):
        if assembler.feed(token_id, None if sources is None else sources[place]):
            break
        if place % block == block - 1:
            pieces.append(assembler.delta())
    scores = [RowScore(-1.0, 0.5, ((token, -1.0),)) for token in assembler.token_ids]
    answer, last = assembler.finish(input_tokens=3, scores=scores)
    return answer, [*pieces, last]


def test_an_answer_holds_text_reasoning_and_calls_apart() -> None:
    """Blocks leave the text without the space around them, and are counted all the same."""
    ids = [*_ids(FULL), END]
    answer, _ = _run(_assembler(), ids)
    assert ("Let me see.", "hm \u20ac") == (answer.text, answer.reasoning)
    assert (ToolCall("calc", {"x": 1}, raw='{"x": 1}'),) == answer.tool_calls
    assert "tool_calls" == answer.finish_reason
    assert answer.usage is not None
    assert answer.tokens is not None
    assert len(ids) == answer.usage.output_tokens == len(answer.tokens)


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("stop", [(), ("see",), ("\u20ac",), ("me see.\n<tool",)])
def test_the_answer_is_the_same_however_it_is_read(block: int, stop: tuple[str, ...]) -> None:
    """Joined pieces equal the answer, whose text and cut do not depend on when it was read."""
    ids = [*_ids(FULL), END]
    expected, _ = _run(_assembler(stop), ids)
    answer, pieces = _run(_assembler(stop), ids, block=block)
    assert expected == answer
    assert answer.text == "".join(piece.text for piece in pieces)
    assert (answer.reasoning or "") == "".join(piece.reasoning for piece in pieces)
    assert answer is pieces[-1].answer


def test_pieces_show_nothing_that_is_cut_later() -> None:
    """A mutant that shows raw text at once is caught: its pieces differ from the answer."""
    ids = [*_ids("one END two"), END]
    answer, pieces = _run(_assembler(("END",)), ids)
    assert "one " == answer.text == "".join(piece.text for piece in pieces)
    raw = "".join(TABLE.text(token_id) for token_id in ids[: len(answer.tokens or ())])
    assert raw != answer.text


def test_each_token_is_labelled_with_the_part_it_wrote() -> None:
    """Tags, space around blocks and the end token are scaffolding; the rest is where it stands."""
    answer, _ = _run(_assembler(), [*_ids(FULL), END])
    parts: dict[str, str] = {}
    for token in answer.tokens or ():
        parts[token.part] = parts.get(token.part, "") + token.token
    assert "Let me see." == parts["answer"]
    assert '\n{"name": "calc", "arguments": {"x": 1}}\n' == parts["arguments"]
    # the three bytes of the euro sign are one token each
    assert "hm \ufffd\ufffd\ufffd" == parts["reasoning"]
    assert parts["other"].startswith("<think>\n\n</think>\n\n\n<tool_call></tool_call>")
    assert answer.over("answer").tokens == tuple(
        token for token in answer.tokens or () if token.part == "answer"
    )


def test_a_token_across_a_stop_string_belongs_to_what_it_shows() -> None:
    """Tokens of the stop string itself are scaffolding and are counted."""
    answer, _ = _run(_assembler(("here",)), _ids("ok stop here now"))
    assert "ok stop " == answer.text
    assert "stop" == answer.finish_reason
    assert ["answer"] * 4 == [token.part for token in answer.tokens or ()]
    answer, _ = _run(_assembler(("X",)), _ids("okX"))
    assert ["answer", "answer", "other"] == [token.part for token in answer.tokens or ()]


@pytest.mark.parametrize(
    ("text", "end", "reason"),
    [("ok", True, "stop"), ("ok", False, "length"), (FULL, True, "tool_calls")],
)
def test_finish_reason_says_why_it_ended(text: str, end: bool, reason: str) -> None:
    """Stop, tool calls, or the token limit; an unfinished call does not hide the limit."""
    answer, _ = _run(_assembler(), [*_ids(text), *([END] if end else [])])
    assert reason == answer.finish_reason
    cut, _ = _run(_assembler(), _ids(FULL)[:-5])
    assert "length" == cut.finish_reason


def test_a_stop_string_that_is_a_special_token_ends_at_that_token() -> None:
    """Special tokens have no text, so their name as a stop string means the token."""
    start = TOKENIZER.convert_tokens_to_ids("<|im_start|>")
    answer, _ = _run(_assembler(("<|im_start|>",)), [*_ids("ok"), start, *_ids("more")])
    assert ("ok", "stop") == (answer.text, answer.finish_reason)


def test_spans_say_who_wrote_which_characters() -> None:
    """Neighbouring tokens of one source join; text outside the answer has no span."""
    ids = _ids("<think>a</think>bcd\u20ac")
    sources = ["small"] * 5 + ["large"] * (len(ids) - 5)
    answer, _ = _run(_assembler(), ids, sources)
    assert "bcd\u20ac" == answer.text
    assert ((0, 2, "small"), (2, 4, "large")) == answer.spans


def test_spans_cover_the_whole_answer() -> None:
    """Every character of the answer has exactly one writer, for any change of sources."""
    ids = [*_ids(FULL), END]
    sources = ["small" if place % 3 else "large" for place in range(len(ids))]
    answer, _ = _run(_assembler(), ids, sources)
    assert answer.spans is not None
    covered = [place for start, end, _ in answer.spans for place in range(start, end)]
    assert list(range(len(answer.text))) == covered


def test_spans_are_absent_without_sources() -> None:
    """A single model's answer carries no spans of its own."""
    assert _run(_assembler(), _ids("ok"))[0].spans is None


def test_tokens_after_the_end_are_refused() -> None:
    """Whatever follows the end token of an accepted block is not part of the answer."""
    assembler = _assembler()
    assert [False, False, True, True] == [assembler.feed(t) for t in [*_ids("ok"), END, *_ids("x")]]
    answer, _ = assembler.finish(input_tokens=1)
    assert "ok" == answer.text
    assert answer.usage is not None
    assert 3 == answer.usage.output_tokens
    assert answer.tokens is None


@pytest.mark.parametrize("text", ["  two  ", "\n", ""])
def test_space_of_a_plain_answer_is_kept(text: str) -> None:
    """Without blocks the text is exactly what was written."""
    answer, pieces = _run(_assembler(tools=False), _ids(text))
    assert text == answer.text == "".join(piece.text for piece in pieces)


def test_speculation_counters_travel_on_the_answer() -> None:
    """The counters of a token-level cascade reach the record unchanged."""
    assembler = _assembler()
    assembler.feed(END)
    counters: dict[str, Any] = {"rule": "Lossless", "accepted": 3}
    assert counters == assembler.finish(input_tokens=1, speculation=counters)[0].speculation
