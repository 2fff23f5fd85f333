"""An answer coloured by who wrote it, token by token where the record holds tokens.

Hovering a token shows what both models of a pair found likeliest there. The fragment carries
its own style, so it shows in a notebook as well as on a page; it has no script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cascadellm.report.html import Html, element, join
from cascadellm.report.page import Section, page, tiles

if TYPE_CHECKING:
    from rich.text import Text

    from cascadellm.answer import Answer, Trace

__all__ = [
    "answer_fragment",
    "answer_page",
    "answer_text",
    "pieces_of",
    "trace_fragment",
    "trace_page",
]

_STYLE = """
.cascade-provenance{white-space:pre-wrap;line-height:1.7;font-family:ui-monospace,monospace}
.cascade-provenance span{border-radius:3px;padding:1px 0}
.cascade-provenance .w0{background:#2a7de133}
.cascade-provenance .w1{background:#e0802355}
.cascade-provenance .w2{background:#2e9e5b44}
.cascade-provenance .w3{background:#8a5cc244}
.cascade-key span{border-radius:3px;padding:1px 6px;margin-right:8px;font-size:85%}
"""
_RICH = ("blue", "dark_orange", "green", "magenta")
_COUNTS = (
    ("verify_calls", "target calls"),
    ("draft_steps", "draft steps"),
    ("accepted", "drafts kept"),
    ("rejected", "drafts rejected"),
)


def pieces_of(
    text: str,
    spans: Sequence[Sequence[Any]] | None,
    speculation: Mapping[str, Any] | None = None,
) -> list[tuple[str, str | None, str]]:
    """Cut an answer into (text, writer, hover) pieces that join to the text.

    Tokens are used where the record holds them and they spell the text; spans otherwise.
    """
    parts = [(int(start), int(end), str(name)) for start, end, name in spans or ()]
    tokens = (speculation or {}).get("tokens")
    if tokens:
        cut = _by_token(text, parts, tokens)
        if cut is not None:
            return cut
    found: list[tuple[str, str | None, str]] = []
    place = 0
    for start, end, name in parts:
        if start > place:
            found.append((text[place:start], None, ""))
        found.append((text[start:end], name, name))
        place = end
    if place < len(text):
        found.append((text[place:], None, ""))
    return found


def answer_fragment(answer: Answer) -> Html:
    """Return an answer's coloured text with its key, as markup for a page or notebook."""
    return _fragment(answer.text, answer.spans, answer.speculation)


def answer_page(answer: Answer, *, title: str = "Who wrote what") -> str:
    """Return a whole HTML page for one answer."""
    return _page(title, answer.text, answer.spans, answer.speculation)


def trace_page(trace: Trace, text: str | None = None, *, title: str = "Who wrote what") -> str:
    """Return a whole HTML page for one trace.

    Args:
        trace: The record of a call.
        text: The answer; without it, the tokens of a token-level record are shown.
        title: Heading of the page.
    """
    shown = _spelled(trace) if text is None else text
    names = [attempt.name for attempt in trace.attempts]
    subtitle = f"answered by {trace.answered_by}; asked: {', '.join(names)}"
    return _page(title, shown, trace.spans, trace.speculation, subtitle)


def trace_fragment(trace: Trace) -> Html:
    """Return the tokens of a token-level record, coloured, as markup for a notebook."""
    return _fragment(_spelled(trace), trace.spans, trace.speculation)


def answer_text(answer: Answer) -> Text:
    """Return an answer coloured for the terminal; needs rich."""
    from rich.text import Text

    found = Text()
    names: dict[str, int] = {}
    for text, name, _ in pieces_of(answer.text, answer.spans, answer.speculation):
        color = None if name is None else names.setdefault(name, len(names))
        found.append(text, None if color is None else _RICH[color % len(_RICH)])
    return found


def _spelled(trace: Trace) -> str:
    """Return what the tokens of a record spell, hidden ones included."""
    return "".join(entry[0] for entry in (trace.speculation or {}).get("tokens") or ())


def _by_token(
    text: str, parts: Sequence[tuple[int, int, str]], tokens: Sequence[Sequence[Any]]
) -> list[tuple[str, str | None, str]] | None:
    """Return one piece per token, or None where the tokens do not spell the text."""
    found: list[tuple[str, str | None, str]] = []
    place = 0
    for token, _, draft, target in tokens:
        if not token or not text.startswith(token, place):
            # a hidden token, or one byte of a character
            continue
        name = next((name for start, end, name in parts if start <= place < end), None)
        likely = [f"{role}: {_listed(top)}" for role, top in (("draft", draft), ("target", target))]
        found.append((token, name, "\n".join([f"written by {name}", *likely])))
        place += len(token)
    return found if place == len(text) else None


def _listed(top: Sequence[Sequence[Any]]) -> str:
    return ", ".join(f"{token!r} {prob:.3f}" for token, prob in top) or "not asked"


def _fragment(
    text: str, spans: Sequence[Sequence[Any]] | None, speculation: Mapping[str, Any] | None
) -> Html:
    names: dict[str, int] = {}
    written = []
    for piece, name, hover in pieces_of(text, spans, speculation):
        if name is None:
            written.append(element("span", piece))
            continue
        color = names.setdefault(name, len(names)) % 4
        written.append(element("span", piece, class_=f"w{color}", title=hover))
    # the key sits inside the same class, so that its colours are those of the text
    key = [element("span", name, class_=f"w{color % 4}") for name, color in names.items()]
    return join(
        (
            Html(f"<style>{_STYLE}</style>"),
            element("div", *key, class_="cascade-provenance cascade-key"),
            element("div", *written, class_="cascade-provenance"),
        )
    )


def _page(
    title: str,
    text: str,
    spans: Sequence[Sequence[Any]] | None,
    speculation: Mapping[str, Any] | None,
    subtitle: str = "",
) -> str:
    record = speculation or {}
    sections: list[Section | Html] = []
    if record:
        rule = str(record.get("rule"))
        if record.get("alpha") is not None:
            rule += f"({record['alpha']:g})"
        numbers = [(label, str(record[name]), "") for name, label in _COUNTS if name in record]
        sections.append(tiles([("rule", rule, f"gamma {record.get('gamma')}"), *numbers]))
    note = "Hover a token to see what each model found likeliest." if record.get("tokens") else ""
    sections.append(Section("Answer", _fragment(text, spans, speculation), note))
    return page(title, sections, subtitle=subtitle)
