"""The shell that every HTML page of the project shares.

One self-contained file: style and script are inline, a content security policy forbids
every request and every script but the page's own, light and dark follow the reader's
system.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from cascadellm.report.charts import Series, bars, histogram, lines, stacked
from cascadellm.report.html import Html, element, escape, join, json_block

__all__ = [
    "Html",
    "Section",
    "Series",
    "asset",
    "bars",
    "element",
    "escape",
    "figure",
    "grid",
    "histogram",
    "join",
    "json_block",
    "legend",
    "lines",
    "page",
    "spans",
    "stacked",
    "table",
    "tiles",
]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page.

    Attributes:
        title: Its heading; empty for none.
        body: Its markup.
        note: A sentence under the heading.
    """

    title: str
    body: Html
    note: str = ""

    def render(self) -> Html:
        """Return the section's markup."""
        heading = element("h2", self.title) if self.title else None
        note = element("p", self.note, class_="note") if self.note else None
        return element("section", heading, note, self.body)


@lru_cache(maxsize=8)
def asset(name: str) -> str:
    """Return a file of the report's assets folder."""
    return (files("cascadellm.report") / "assets" / name).read_text(encoding="utf-8")


def page(
    title: str,
    sections: Iterable[Section | Html],
    *,
    subtitle: str = "",
    script: str = "",
    style: str = "",
) -> str:
    """Return a whole HTML document.

    Args:
        title: Title of the page and its first heading.
        sections: Sections, or finished markup.
        subtitle: A line under the heading.
        script: JavaScript that runs once; the only script the page permits.
        style: CSS after the shared style.
    """
    body = join(s.render() if isinstance(s, Section) else s for s in sections)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"'sha256-{digest}'" if script else "'none'"
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}; img-src data:"
    head = join(
        (
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=policy),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("title", title),
            Html(f"<style>{asset('page.css')}{style}</style>"),
        )
    )
    header = element(
        "header",
        element("h1", title),
        element("p", subtitle, class_="subtitle") if subtitle else None,
    )
    closing = Html(f"<script>{script}</script>") if script else None
    whole = element(
        "html",
        element("head", head),
        element("body", element("main", header, body), closing),
        lang="en",
    )
    return f"<!doctype html>\n{whole}\n"


def tiles(items: Iterable[tuple[str, str, str]]) -> Html:
    """Return headline numbers.

    Args:
        items: (label, value, remark) each.
    """
    return element(
        "div",
        *(
            element(
                "div",
                element("span", label, class_="label"),
                element("strong", value),
                element("span", remark, class_="remark") if remark else None,
                class_="tile",
            )
            for label, value, remark in items
        ),
        class_="tiles",
    )


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    numeric: Sequence[int] = (),
    caption: str = "",
) -> Html:
    """Return a table; columns whose index is in `numeric` align right."""
    right = set(numeric)

    def cell(tag: str, place: int, value: Any) -> Html:
        scope = "col" if tag == "th" else None
        return element(tag, value, class_="number" if place in right else None, scope=scope)

    head = element("tr", *(cell("th", i, name) for i, name in enumerate(columns)))
    body = [element("tr", *(cell("td", i, v) for i, v in enumerate(row))) for row in rows]
    written = element(
        "table",
        element("caption", caption) if caption else None,
        element("thead", head),
        element("tbody", *body),
    )
    return element("div", written, class_="scroll")


def grid(*parts: Html) -> Html:
    """Set parts side by side where the window is wide enough."""
    return element("div", *parts, class_="grid")


def figure(title: str, chart: Html, note: str = "") -> Html:
    """Return a chart with its title and an explaining sentence."""
    words = element("figcaption", element("strong", title), " ", element("span", note))
    return element("figure", words, chart)


def legend(names: Mapping[str, int]) -> Html:
    """Return a colour key: name to colour index."""
    keys = (
        element("span", element("i", class_=f"swatch c{color % 8}"), name, class_="key")
        for name, color in names.items()
    )
    return element("div", *keys, class_="legend")


def spans(text: str, parts: Sequence[Sequence[Any]], colors: Mapping[str, int]) -> Html:
    """Return a text coloured by who wrote it.

    Args:
        text: The answer.
        parts: (start, end, name) in characters, in order; gaps stay plain.
        colors: Name to colour index.
    """
    written: list[Html] = []
    place = 0
    for start, end, name in parts:
        if start > place:
            written.append(escape(text[place:start]))
        color = f"span c{colors.get(name, 7) % 8}"
        written.append(element("span", text[start:end], class_=color, title=name))
        place = end
    written.append(escape(text[place:]))
    return element("div", *written, class_="answer")
