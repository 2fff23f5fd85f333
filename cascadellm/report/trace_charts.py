"""The charts of the traces page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

from cascadellm.report.charts import nice_ticks
from cascadellm.report.page import Html, Series, bars, figure, histogram, lines, stacked
from cascadellm.scores import SCORES
from cascadellm.summary import Summary, finite

__all__ = ["trace_charts", "written_moment"]

_SLICES = 24
_STEPS = (5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400, 172800, 604800)
"""Distances of ticks on a clock, in seconds."""

_MOST_THRESHOLDS = 3
"""Thresholds of one tier that get a histogram each."""

_ACCEPTED, _DEFERRED = "accepted", "deferred"
_PALE = 7
"""The grey of what did not stand, beside the tier's own colour."""

Row = Mapping[str, Any]


def written_moment(seconds: float, form: str = "%Y-%m-%d %H:%M") -> str:
    """Return a time as text, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime(form)


def trace_charts(rows: Sequence[Row], summary: Summary, colors: Mapping[str, int]) -> list[Html]:
    """Return the charts over recorded calls, of which there is at least one."""
    timed = _in_order(rows)
    named = {tier.name: colors[tier.name] for tier in summary.tiers}
    charts = [_shares(timed, named), *_histograms(rows, named), _latencies(timed, named)]
    return [*charts, *_costs(timed, summary), *_reasons(rows)]


def _in_order(rows: Sequence[Row]) -> list[tuple[float, Row]]:
    """Return (time, row) pairs; the place in the file stands in for a missing time."""
    times = [finite(row.get("time")) for row in rows]
    if None in times:
        return [(float(place), row) for place, row in enumerate(rows, start=1)]
    pairs = [(t, row) for t, row in zip(times, rows, strict=True) if t is not None]
    return sorted(pairs, key=lambda pair: pair[0])


def _axis(timed: Sequence[tuple[float, Row]]) -> tuple[str, Any]:
    """Return the name of the time axis and what writes one of its ticks."""
    if "time" not in timed[0][1]:
        return "call", lambda value: f"{value:.0f}"
    first = timed[0][0]
    span = timed[-1][0] - first
    if span < 20:
        return "seconds since the first call", lambda value: f"{value - first:.2g}"
    form = "%H:%M:%S" if span < 600 else "%H:%M" if span < 172800 else "%m-%d"
    return "time (UTC)", lambda value: written_moment(value, form)


def _time_ticks(timed: Sequence[tuple[float, Row]]) -> list[float]:
    first, last = timed[0][0], timed[-1][0]
    span = last - first
    if span <= 0:
        return []
    if "time" not in timed[0][1] or span < 20:
        return [first + tick for tick in nice_ticks(0.0, span)]
    step = next((step for step in _STEPS if span <= 7 * step), span / 5)
    begin = math.floor(first / step) * step
    return [begin + step * i for i in range(math.ceil((last - begin) / step) + 1)]


def _columns(timed: Sequence[tuple[float, Row]]) -> tuple[float, float, int]:
    """Return (begin, width, count) of columns over time, at round times."""
    first, last = timed[0][0], timed[-1][0]
    span, most = last - first, min(_SLICES, max(1, len(timed) // 4))
    if span <= 0:
        return first, 1.0, 1
    begin = first
    if "time" not in timed[0][1] or span < 20:
        ticks = nice_ticks(0.0, span, most)
        width = ticks[1] - ticks[0]
    else:
        width = next((step for step in _STEPS if span <= most * step), span / most)
        begin = math.floor(first / width) * width
    return begin, width, int((last - begin) / width) + 1


def _shares(timed: Sequence[tuple[float, Row]], colors: Mapping[str, int]) -> Html:
    label, write = _axis(timed)
    begin, width, count = _columns(timed)
    slices: list[Counter[str]] = [Counter() for _ in range(count)]
    for at, row in timed:
        if row.get("answered_by") is not None:
            slices[min(count - 1, int((at - begin) / width))][row["answered_by"]] += 1
    names = list(colors)
    columns = [
        (write(begin + place * width), [counts[name] for name in names])
        for place, counts in enumerate(slices)
    ]
    return figure("Share of answers per tier", stacked(columns, names, x_label=label))


def _histograms(rows: Sequence[Row], colors: Mapping[str, int]) -> list[Html]:
    found: dict[tuple[str, str], list[tuple[float, str, float | None]]] = {}
    for row in rows:
        for attempt in row["attempts"]:
            score = finite(attempt.get("score"))
            if score is None:
                continue
            key = (attempt["name"], str(attempt.get("score_name") or attempt.get("policy")))
            group = _ACCEPTED if attempt["action"] == "accept" else _DEFERRED
            found.setdefault(key, []).append((score, group, finite(attempt.get("threshold"))))
    charts = []
    for (tier, name), scored in found.items():
        used = Counter(threshold for *_, threshold in scored if threshold is not None)
        several = 1 < len(used) <= _MOST_THRESHOLDS
        for threshold in used if several else [used.most_common(1)[0][0] if used else None]:
            drawn = [one for one in scored if not several or one[2] == threshold]
            chart = histogram(
                {group: [s for s, g, _ in drawn if g == group] for group in (_ACCEPTED, _DEFERRED)},
                threshold=threshold,
                x_label=_with_unit(name),
                colors={_ACCEPTED: colors.get(tier, 0), _DEFERRED: _PALE},
            )
            charts.append(figure(f"Scores of {tier}", chart, _about(len(drawn), used, several)))
    return charts


def _about(calls: int, used: Counter[float], several: bool) -> str:
    if several:
        return f"{calls:,} calls with this threshold"
    if len(used) > 1:
        return f"{len(used)} thresholds were used; the most frequent is marked"
    return ""


def _with_unit(score: str) -> str:
    known = SCORES.get(score)
    unit = "nats" if score.startswith("quantile_logprob") else known.unit if known else ""
    return f"{score} ({unit})" if unit else score


def _latencies(timed: Sequence[tuple[float, Row]], colors: Mapping[str, int]) -> Html:
    label, write = _axis(timed)
    clouds = []
    for name, color in colors.items():
        points = [
            (at, row["latency_s"])
            for at, row in timed
            if row.get("answered_by") == name and finite(row.get("latency_s")) is not None
        ]
        # a page of many thousand circles is slow; an even sample keeps the shape
        step = max(1, len(points) // 800)
        clouds.append(Series(name, points[::step], color, dots=True))
    chart = lines(
        clouds,
        x_label=label,
        x_format=write,
        x_ticks=_time_ticks(timed),
        y_label="seconds",
        y_from_zero=True,
    )
    return figure("Time of each call", chart, "coloured by the tier that answered")


def _costs(timed: Sequence[tuple[float, Row]], summary: Summary) -> list[Html]:
    known = [(at, c) for at, row in timed if (c := finite(row.get("cost_usd"))) is not None]
    if len(known) < 2 or (summary.known_cost_usd == 0 and not summary.large_alone_usd):
        return []
    label, write = _axis(timed)
    step = max(1, len(known) // 400)
    places = [*range(0, len(known), step), len(known) - 1]
    sums = list(accumulate(cost for _, cost in known))
    drawn = [Series("cascade", [(known[i][0], sums[i]) for i in places], 0)]
    if summary.large_alone_usd is not None:
        each = summary.large_alone_usd / summary.calls
        alone = [(known[i][0], each * (i + 1)) for i in places]
        drawn.append(Series("last tier alone", alone, 1, dashed=True))
    chart = lines(
        drawn,
        x_label=label,
        x_format=write,
        x_ticks=_time_ticks(timed),
        y_label="USD, summed",
        y_from_zero=True,
    )
    left_out = len(timed) - len(known)
    return [figure("Cost so far", chart, f"without {left_out} of unknown cost" if left_out else "")]


def _reasons(rows: Sequence[Row]) -> list[Html]:
    counts: Counter[str] = Counter()
    for row in rows:
        for attempt in row["attempts"]:
            if attempt["action"] != "accept":
                counts[f"{attempt['action']}: {attempt.get('code') or 'unknown'}"] += 1
    if len(counts) < 2:
        # one reason alone is what the histograms show already
        return []
    drawn = bars(
        [(name, float(n), 5) for name, n in counts.most_common(8)], format=lambda v: f"{v:.0f}"
    )
    return [figure("Why a tier's answer did not stand", drawn, "attempts, by action and code")]
