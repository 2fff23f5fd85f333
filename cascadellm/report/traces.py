"""The traces page: what a file of recorded calls says, on one screen and in detail."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cascadellm.jsonl import BadLine, generations, read_jsonl
from cascadellm.report.calls import calls_table
from cascadellm.report.check import fault
from cascadellm.report.page import (
    Html,
    Section,
    asset,
    element,
    grid,
    page,
    table,
    tiles,
)
from cascadellm.report.trace_charts import trace_charts, written_moment
from cascadellm.summary import Summary, finite, summarise, usd
from cascadellm.tier import Price

__all__ = ["load_traces", "render_traces", "write_report"]

Row = Mapping[str, Any]


def write_report(
    jsonl_path: str | os.PathLike[str],
    html_path: str | os.PathLike[str],
    *,
    title: str = "Cascade traces",
    large_price: Price | None = None,
    most_rows: int = 5000,
) -> list[BadLine]:
    """Write one self-contained HTML page about recorded calls.

    Args:
        jsonl_path: File written by `record_cascade(path)` or a `JsonlSink`; its rotated
            predecessors (`<path>.1`, ...) are read too.
        html_path: The page; its folder is made when missing.
        title: Title of the page.
        large_price: Price of the last tier; see `cascadellm.summary.summarise`.
        most_rows: Calls listed one by one, the latest first; the numbers count all.

    Returns:
        The lines that hold no record; the page lists them too.

    Raises:
        OSError: A file cannot be read or written.
    """
    rows, bad = load_traces(jsonl_path)
    source = Path(jsonl_path).name
    text = render_traces(
        rows, bad, source=source, title=title, large_price=large_price, most_rows=most_rows
    )
    target = Path(html_path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8", errors="replace")
    return bad


def load_traces(path: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], list[BadLine]]:
    """Read recorded calls, oldest first, with the lines that hold none.

    Raises:
        OSError: The file is missing or cannot be read.
    """
    rows: list[dict[str, Any]] = []
    bad: list[BadLine] = []
    for file in generations(path) or [Path(path)]:
        found, broken = read_jsonl(file, check=fault)
        rows += found
        bad += broken
    return rows, bad


def render_traces(
    rows: Sequence[Row],
    bad: Sequence[BadLine] = (),
    *,
    source: str = "",
    title: str = "Cascade traces",
    large_price: Price | None = None,
    most_rows: int = 5000,
) -> str:
    """Return the page as text; see `write_report`."""
    summary = summarise(rows, large_price=large_price)
    names = list(dict.fromkeys(tier.name for tier in summary.tiers))
    colors = {name: place for place, name in enumerate(names)}
    for name in summary.written:
        colors.setdefault(name, len(colors))
    sections: list[Section | Html] = [_lead(summary), _headline(summary)]
    if not rows:
        sections.append(Section("", element("p", "The file holds no finished call.")))
    else:
        sections += [
            Section("Tiers", _tier_table(summary), note=_cost_note(summary)),
            Section("Over time and by score", grid(*trace_charts(rows, summary, colors))),
            Section(
                "Calls",
                calls_table(rows, colors, most_rows),
                note="Open a row for its attempts and for who wrote the answer.",
            ),
        ]
    if bad:
        shown = [(str(one.file.name), one.number or "", one.reason) for one in bad[:50]]
        note = f"{len(bad)} could not be read and are not counted."
        body = table(["file", "line", "what is wrong"], shown, numeric=[1])
        sections.append(Section("Unreadable lines", body, note=note))
    return page(title, sections, subtitle=_subtitle(rows, source), script=asset("traces.js"))


def _subtitle(rows: Sequence[Row], source: str) -> str:
    times = [t for row in rows if (t := finite(row.get("time"))) is not None]
    parts = [source] if source else []
    parts.append(f"{len(rows):,} calls")
    if times:
        parts.append(f"{written_moment(min(times))} to {written_moment(max(times))} UTC")
    return ", ".join(parts)


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def _money(value: float | None) -> str:
    return "unknown" if value is None else f"${usd(value)}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def _ended(summary: Summary) -> str:
    failed = f"{summary.failed} without an answer"
    return f"{failed}, {summary.abandoned} abandoned" if summary.abandoned else failed


def _lead(summary: Summary) -> Html:
    """Return what the numbers say, as sentences."""
    answered = [tier for tier in summary.tiers if tier.answered]
    if not answered:
        return Html("")
    shares = [f"{tier.name} answered {tier.share:.0%}" for tier in answered]
    listed = shares[0] if len(shares) == 1 else f"{', '.join(shares[:-1])} and {shares[-1]}"
    said = [f"{listed} of {sum(tier.answered for tier in answered):,} answers."]
    if summary.cost_usd is not None and summary.savings is not None:
        less = "less" if summary.savings >= 0 else "more"
        said.append(
            f"The calls cost {_money(summary.cost_usd)}, {abs(summary.savings):.0%} {less} than "
            f"{summary.tiers[-1].name} alone."
        )
    if summary.p50_s is not None:
        said.append(f"Half of them ended within {_seconds(summary.p50_s)}.")
    return element("p", " ".join(said), class_="lead")


def _headline(summary: Summary) -> Html:
    answered = sum(tier.answered for tier in summary.tiers)
    first = summary.tiers[0] if summary.tiers else None
    items = [("Calls", f"{summary.calls:,}", _ended(summary))]
    if first is not None:
        items.append(
            (f"Answered by {first.name}", _percent(first.share), f"of {answered:,} answers")
        )
    share = summary.escalated / summary.calls if summary.calls else None
    items.append(("Escalated", _percent(share), "a later tier was asked or wrote"))
    unknown = summary.unknown_cost_calls
    remark = f"unknown in {unknown} calls; known part {_money(summary.known_cost_usd)}"
    items.append(("Cost", _money(summary.cost_usd), remark if unknown else "every paid call"))
    against = f"against the last tier alone, {_money(summary.large_alone_usd)}"
    items.append(("Saved", _percent(summary.savings), against))
    worst = f"p95 {_seconds(summary.p95_s)}"
    items.append(("Median time of a call", _seconds(summary.p50_s), worst))
    return tiles(items)


def _cost_note(summary: Summary) -> str:
    side = (
        f"{summary.side_calls} side calls (judges, resamples) cost {_money(summary.side_cost_usd)}."
    )
    basis = (
        f"The last tier alone is {_money(summary.large_alone_usd)}: {summary.large_alone_basis}."
    )
    return f"{side} {basis}" if summary.side_calls else basis


def _tier_table(summary: Summary) -> Html:
    columns = [
        "tier",
        "asked",
        "answered",
        "share",
        "deferred at its boundary",
        "errors",
        "skipped",
    ]
    columns += ["p50", "p95", "tokens in", "tokens out", "cost"]
    rows = [
        (
            tier.name,
            f"{tier.asked:,}",
            f"{tier.answered:,}",
            _percent(tier.share),
            "no decision" if tier.deferral_rate is None else _percent(tier.deferral_rate),
            tier.errors,
            tier.skipped,
            _seconds(tier.p50_s),
            _seconds(tier.p95_s),
            f"{tier.input_tokens:,}",
            f"{tier.output_tokens:,}",
            _money(tier.cost_usd),
        )
        for tier in summary.tiers
    ]
    return table(columns, rows, numeric=range(1, len(columns)))
