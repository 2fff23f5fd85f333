"""The page shell: what it escapes, what it forbids, what its charts draw."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from cascadellm.report.charts import nice_ticks
from cascadellm.report.page import (
    Html,
    Section,
    Series,
    bars,
    element,
    escape,
    histogram,
    json_block,
    legend,
    lines,
    page,
    spans,
    stacked,
    table,
    tiles,
)

HOSTILE = "</script><script>alert('x')</script><img src=x onerror=\"alert(1)\">&"


class Tags(HTMLParser):
    """Collects the tags and attributes that a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.mark.parametrize(
    "markup",
    [
        escape(HOSTILE),
        element("p", HOSTILE, title=HOSTILE),
        table([HOSTILE], [[HOSTILE]], caption=HOSTILE),
        tiles([(HOSTILE, HOSTILE, HOSTILE)]),
        legend({HOSTILE: 0}),
        spans(HOSTILE, [(0, 5, HOSTILE)], {}),
        bars([(HOSTILE, 1.0, 0)]),
        lines([Series(HOSTILE, [(0, 1), (1, 2)])], x_label=HOSTILE, y_label=HOSTILE),
        histogram({HOSTILE: [1.0, 2.0]}, x_label=HOSTILE),
        stacked([(HOSTILE, [1.0])], [HOSTILE], y_label=HOSTILE),
        json_block("data", {HOSTILE: HOSTILE}),
        Section(HOSTILE, Html(""), note=HOSTILE).render(),
    ],
)
def test_markup_when_text_is_hostile(markup: Html) -> None:
    """No helper lets a text add a tag or an event attribute."""
    seen = Tags(markup).tags

    assert "img" not in {tag for tag, _ in seen}
    assert not any(name.startswith("on") for _, attributes in seen for name in attributes)
    assert markup.count("<script") == ("application/json" in markup)


def test_json_block_when_read_back() -> None:
    """The data block holds the same data, also text that would end it."""
    data = {"text": HOSTILE + "\u2028", "number": 1.5}
    inner = re.fullmatch(r"<script[^>]*>(.*)</script>", json_block("d", data))

    assert inner is not None
    assert data == json.loads(inner[1])


def test_page_when_it_has_a_script() -> None:
    """The policy of the page names its own script's hash and forbids every request."""
    script = "document.title = 'x'"
    tags = Tags(page("Title", [], script=script)).tags
    policy = next(a["content"] for t, a in tags if a.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    assert policy is not None
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_page_when_it_has_no_script() -> None:
    """A page without a script permits none."""
    tags = Tags(page("Title", [Section("a", element("p", "b"))])).tags

    assert any("script-src 'none'" in (a.get("content") or "") for _, a in tags)


def test_page_when_searched_for_requests() -> None:
    """Nothing in a page names a file or a host to load."""
    text = page("Title", [Section("a", lines([Series("s", [(0, 1), (1, 1)])]))])
    attributes = [name for _, found in Tags(text).tags for name in found]

    assert not {"src", "href", "srcset"} & set(attributes)
    assert "@import" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize(
    "chart",
    [
        lines([Series("s", [(0, 1), (1, math.nan), (2, 3)], band=[(0, 0, 2), (2, 2, 4)])]),
        lines([Series("s", [(1, 1)], dots=True)], marker=0.5, marker_label="here"),
        lines([Series("s", [(0, 0)])], x_ticks=[0.0, 1.0]),
        histogram({"a": [0.0]}, threshold=math.inf),
        histogram({"a": [-1.0, 0.0], "b": [-2.0]}, threshold=-0.35),
        stacked([("t", [0.0, 0.0])], ["a", "b"]),
        bars([("a", 0.0, 0)]),
    ],
)
def test_chart_when_values_are_at_the_edge(chart: Html) -> None:
    """A chart of one value, equal values, gaps or an infinite threshold is valid SVG."""
    svg = chart[chart.index("<svg") : chart.index("</svg>") + len("</svg>")]
    root = ET.fromstring(svg)

    assert root.tag == "svg"
    assert "nan" not in svg
    assert "inf" not in svg.replace("info", "")


@pytest.mark.parametrize(
    "chart", [lines([]), bars([]), stacked([], ["a"]), histogram({"a": [math.nan]})]
)
def test_chart_when_there_is_no_data(chart: Html) -> None:
    """A chart without a finite value says so."""
    assert "No data" in chart


def test_histogram_when_a_threshold_is_marked() -> None:
    """No column stands on both sides of the threshold, and each value is counted once."""
    values = [-0.9, -0.5, -0.351, -0.35, -0.349, -0.1, 0.0]
    chart = histogram({"deferred": values[:3], "accepted": values[3:]}, threshold=-0.35, bins=9)
    tips = re.findall(r"(accepted|deferred), (\S+) to (\S+): (\d+)", chart)

    assert len(values) == sum(int(count) for *_, count in tips)
    for name, low, high, _ in tips:
        if name == "accepted":
            assert float(low) >= -0.35 - 1e-3
        else:
            assert float(high) <= -0.35 + 1e-3


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3.2, 0.1), (1e-9, 2e-9), (5, 5), (0, 0), (1e6, 3e7)]
)
def test_nice_ticks_when_given_a_range(low: float, high: float) -> None:
    """Ticks rise and cover the range."""
    ticks = nice_ticks(low, high)

    assert ticks == sorted(set(ticks))
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 12


def test_spans_when_text_has_gaps() -> None:
    """Every character of the text is shown once, coloured or plain."""
    markup = spans("abcdef", [(1, 3, "small"), (4, 5, "large")], {"small": 0, "large": 1})

    assert "abcdef" == re.sub(r"<[^>]+>", "", markup)
    assert 'class="span c1" title="large">e<' in markup
