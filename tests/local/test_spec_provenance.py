"""Who wrote what: the coloured answer as HTML and in the terminal."""

from __future__ import annotations

from dataclasses import replace

from cascadellm.answer import Answer, Attempt, Trace
from cascadellm.report.provenance import (
    answer_fragment,
    answer_page,
    answer_text,
    pieces_of,
    trace_page,
)

TOP = [["a", 0.75], ["<b>", 0.25]]
TOKENS = [["a", 1, TOP, TOP], ["<b>", 0, TOP, []], ["<|end|>", 1, TOP, TOP]]
ANSWER = Answer(
    text="a<b>",
    spans=((0, 1, "small"), (1, 4, "large")),
    speculation={"rule": "TokenV3", "alpha": 0.3, "gamma": 5, "accepted": 1, "tokens": TOKENS},
)


def test_pieces_join_to_the_text_and_hidden_tokens_are_left_out() -> None:
    """Tokens spell the text; an end token that the text does not show is skipped."""
    pieces = pieces_of(ANSWER.text, ANSWER.spans, ANSWER.speculation)
    assert [("a", "small"), ("<b>", "large")] == [piece[:2] for piece in pieces]
    assert "draft: 'a' 0.750, '<b>' 0.250" in pieces[0][2]
    assert "target: not asked" in pieces[1][2]


def test_spans_are_used_where_tokens_do_not_spell_the_text() -> None:
    """A character split over two tokens falls back to spans; gaps stay plain."""
    pieces = pieces_of("é!x", [(0, 1, "small")], {"tokens": [["\ufffd", 1, [], []]]})
    assert [("é", "small"), ("!x", None)] == [piece[:2] for piece in pieces]
    assert "é!x" == "".join(piece[0] for piece in pieces)


def test_the_page_escapes_what_models_write() -> None:
    """Markup in an answer or a candidate is text; the page has no script."""
    for written in (answer_page(ANSWER), str(answer_fragment(ANSWER))):
        assert "&lt;b&gt;" in written
        assert "<b>" not in written
        assert "<script" not in written
    assert "TokenV3(0.3)" in answer_page(ANSWER)


def test_a_trace_page_names_who_answered() -> None:
    """A trace shows its tokens when the text is not given, and its attempts."""
    trace = Trace(
        answered_by="small+large", tier=1, escalated=True,
        attempts=(Attempt(1, "small+large", "accept"),), latency_s=0.1, cost_usd=None,
        tokens_by_tier={}, spans=ANSWER.spans, speculation=ANSWER.speculation,
    )  # fmt: skip
    for written in (trace_page(trace), trace_page(trace, "a<b>")):
        assert "answered by small+large" in written
        assert "written by large" in written


def test_the_terminal_text_is_the_answer_in_two_colours() -> None:
    """Rich text has the answer's characters and one style per writer."""
    text = answer_text(ANSWER)
    assert "a<b>" == text.plain
    assert ["blue", "dark_orange"] == [str(span.style) for span in text.spans]


def test_records_show_themselves() -> None:
    """`Trace.to_html` is the page; an answer shows itself in a notebook."""
    trace = Trace(
        answered_by="small+large", tier=1, escalated=True, attempts=(), latency_s=0.1,
        cost_usd=None, tokens_by_tier={}, spans=ANSWER.spans, speculation=ANSWER.speculation,
    )  # fmt: skip
    assert trace_page(trace, "a<b>") == trace.to_html("a<b>")
    assert "written by small" in ANSWER._repr_html_()
    assert "written by small" in trace._repr_html_()
    assert replace(trace, speculation={"rule": "TokenV3"})._repr_html_() is None
