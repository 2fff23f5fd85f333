"""One HTML page about an evaluation: the sentence, the numbers, the plots, the table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cascadellm.report.page import (
    Html,
    Section,
    Series,
    element,
    figure,
    grid,
    join,
    lines,
    page,
    table,
    tiles,
)

if TYPE_CHECKING:
    from cascadellm.evaluation.compare import Evaluation, PolicyResult

__all__ = ["render_evaluation"]

_COLUMNS = (
    ("norm", "norm", "0 = random, 1 = oracle"),
    ("area", "area", "under the curve of quality over share"),
    ("apgr", "APGR", "the area with small tier = 0, large tier = 1; random 0.5"),
    ("cpt50", "CPT 50", "share of large calls that recovers half of the gap"),
    ("cpt80", "CPT 80", "share of large calls that recovers 80% of the gap"),
    ("qnc", "QNC", "least relative cost within the margin of the large tier"),
    ("peak", "peak", "best quality on the curve"),
    ("error_auc", "error AUC", "chance that a right small answer outranks a wrong one"),
    ("ibc_lift", "IBC lift %", "gain per cost above always asking the large tier"),
)
_HEIGHT = 380
_BASELINE_COLORS = {"random": 7, "oracle": 6, "prompt length": 5}


def render_evaluation(evaluation: Evaluation, *, source: str = "", title: str = "") -> str:
    """Return the page as one self-contained HTML document.

    Args:
        evaluation: What was found.
        source: Name of the records, for the subtitle.
        title: Heading of the page.
    """
    words = f"{evaluation.n} questions" + (f" from {source}" if source else "")
    sections = [
        Section("", element("p", element("strong", evaluation.sentence))),
        Section("", tiles(_tiles(evaluation))),
        Section("Deferral curves", grid(*_figures(evaluation))),
        Section("Policies", _policies(evaluation), note=_legend_of_columns()),
    ]
    if evaluation.points:
        promises = [f"{p.name}: {p.promise}" for p in evaluation.points if p.promise]
        fixed = Section("Fixed thresholds", _points(evaluation), note=" ".join(promises))
        sections.append(fixed)
    if differences := _differences(evaluation):
        sections.append(
            Section(
                "Differences",
                element("ul", join(element("li", one) for one in differences)),
                note="Of norm: 95% intervals, all policies on the same resampled questions.",
            )
        )
    sections.append(Section("Notes", _notes(evaluation)))
    return page(title or "What the cascade saves and loses", sections, subtitle=words)


def _tiles(found: Evaluation) -> list[tuple[str, str, str]]:
    best = found.best
    shown = [
        ("smaller tier", f"{found.small:.1%}", "quality alone"),
        ("larger tier", f"{found.large:.1%}", "quality alone"),
        ("either one", f"{found.union:.1%}", "the better of both, question by question"),
        (f"norm of {best.name}", _number(best.values["norm"]), _range(best, "norm")),
    ]
    unit = "of always asking the larger tier" if found.costs_known else "of its calls"
    cost = best.values["qnc"]
    shown.append(
        (
            f"least cost within {_margin(found.margin)}",
            "never" if math.isnan(cost) else f"{cost:.0%}",
            f"{best.name}, {unit}",
        )
    )
    return shown


def _figures(found: Evaluation) -> list[Html]:
    by_share: list[Series] = []
    by_cost: list[Series] = []
    mine = sum(not result.baseline for result in found.results)
    # to differ from the policies; grey is dashed there and a dot here
    free = [c for c in (3, 2, 1, 4, 0) if c >= mine] or [_BASELINE_COLORS["random"]]
    for place, result in enumerate(found.results):
        curve = result.curve.thinned(200)
        color = _BASELINE_COLORS.get(result.name, place % 5)
        for axis, series in ((curve.share, by_share), (curve.cost, by_cost)):
            points = [(float(x), float(y)) for x, y in zip(axis, curve.quality, strict=True)]
            series.append(Series(result.name, points, color=color, dashed=result.baseline))
    for place, point in enumerate(found.points):
        color = free[place % len(free)]
        at = (point.share_last, point.quality)
        by_share.append(Series(point.name, [at], color=color, dots=True))
        if point.cost is not None:
            at = (point.cost, point.quality)
            by_cost.append(Series(point.name, [at], color=color, dots=True))
    charts = [
        figure(
            "Quality over share",
            lines(
                by_share,
                x_label="share sent to the larger tier",
                x_format=_percent,
                y_format=_percent,
                height=_HEIGHT,
            ),
            "dashed: random, oracle and prompt length",
        )
    ]
    if found.costs_known:
        charts.append(
            figure(
                "Quality over cost",
                lines(
                    by_cost,
                    x_label="cost, always asking the larger tier = 100%",
                    x_format=_percent,
                    y_format=_percent,
                    height=_HEIGHT,
                ),
                "the smaller tier is paid on every question",
            )
        )
    return charts


def _policies(found: Evaluation) -> Html:
    rows = []
    for result in found.results:
        cells = [
            join((element("span", _number(result.values[name], name)), element("small", span)))
            if name != "area" and (span := _range(result, name))
            else _number(result.values[name], name)
            for name, _, _ in _COLUMNS
        ]
        chance = {True: "yes", False: "no", None: ""}[result.beats_chance]
        rows.append([result.name, *cells, "" if result.baseline else chance])
    names = ["policy", *(label for _, label, _ in _COLUMNS), "> random"]
    intervals = f"95% intervals: paired bootstrap, {found.resamples} resamples"
    caption = intervals if found.resamples else "without intervals"
    return table(names, rows, numeric=range(1, len(_COLUMNS) + 1), caption=caption)


def _differences(found: Evaluation) -> list[str]:
    best, words = found.best, []
    for other, (low, high) in best.against.items():
        clear = "is better than" if low > 0 else "is not told apart from"
        words.append(f"{best.name} {clear} {other}: {low:+.3f} to {high:+.3f}")
    return words


def _points(found: Evaluation) -> Html:
    rows = [
        [
            point.name,
            ", ".join(f"{t:.4g}" for t in point.thresholds),
            f"{point.deferral_rate:.1%}",
            f"{point.quality:.1%}",
            (
                f"{100 * point.gap:+.2f} [{100 * point.gap_interval[0]:+.2f}, "
                f"{100 * point.gap_interval[1]:+.2f}]"
            ),
            "unknown" if point.cost is None else f"{point.cost:.0%}",
            "" if point.target_risk is None else f"{point.target_risk:g}",
        ]
        for point in found.points
    ]
    names = ("cascade", "thresholds", "deferred", "quality", "loss in points", "cost", "promise")
    return table(names, rows, numeric=range(1, 7))


def _notes(found: Evaluation) -> Html:
    words = [
        *found.notes,
        (
            "Curves are drawn on the questions that are scored: a threshold read off a curve is "
            "optimistic; a promise needs a threshold calibrated on other questions."
        ),
        f"Records {found.fingerprint}, seed {found.seed}.",
    ]
    return element("ul", join(element("li", note) for note in words))


def _legend_of_columns() -> str:
    return "; ".join(f"{label}: {meaning}" for _, label, meaning in _COLUMNS) + "."


def _margin(margin: float) -> str:
    points = 100 * margin
    return f"{points:g} point" if points == 1 else f"{points:g} points"


def _range(result: PolicyResult, name: str) -> str:
    if name not in result.intervals or result.baseline:
        return ""
    low, high = result.intervals[name]
    return f"[{_number(low, name)}, {_number(high, name)}]"


def _number(value: float, name: str = "") -> str:
    if math.isnan(value):
        return "-"
    digits = 1 if name == "ibc_lift" else 3
    # -0.0004 is shown as 0.000, not as -0.000
    return f"{value:.0f}" if abs(value) >= 100 else f"{round(value, digits) + 0.0:.{digits}f}"


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"
