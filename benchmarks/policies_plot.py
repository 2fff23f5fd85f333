"""The picture of `policies.py`: accuracy against cost, and the norm of every policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

_KINDS: Mapping[str, str] = {
    "asks nobody": "#1f77b4",
    "asks models": "#d62728",
    "before any token": "#2ca02c",
    "while it writes": "#9467bd",
    "no score": "0.6",
}


def kind_of(policy: str, *, extra: float = 0.0) -> str:
    """Return to which group a policy belongs."""
    if policy.startswith(("Route", "ContextFits", "NeedsTools")):
        return "before any token"
    if policy.startswith(("EarlyAbort", "PrefixCommit", "Hedge")):
        return "while it writes"
    if extra or policy.startswith(("Agreement", "Judge")):
        return "asks models"
    if policy.startswith(("Never", "Always", "Valid", "a function")):
        return "no score"
    return "asks nobody"


def draw(demo: Sequence[Any], replay: Sequence[Any], path: Path) -> None:
    """Write the picture.

    Args:
        demo: Rows of the demo pair, as dictionaries.
        replay: Rows of the replayed records, as dictionaries.
        path: Where to.
    """
    figure = Figure(figsize=(17, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1, 0.8))
    _points(left, demo)
    numbered = [(f"{i}  {r['policy']}", r) for i, r in enumerate(demo, 1)]
    colours = [_KINDS[kind_of(r["policy"], extra=r["extra"])] for _, r in numbered]
    _bars(middle, [(n, r["norm"]) for n, r in numbered], colours, "Demo pair")
    known = [r for r in replay if r["norm"] is not None]
    names = [(f"{r['place']}\n{r['policy']}", r["norm"]) for r in known]
    colours = [_KINDS[kind_of(r["policy"])] for r in known]
    _bars(right, names, colours, "Replayed records")
    figure.savefig(path, dpi=110)


def _points(axes: Any, rows: Sequence[Any]) -> None:
    ends = [next(r for r in rows if r["policy"] == name) for name in ("Never", "Always")]
    axes.plot(
        [r["cost"] for r in ends],
        [r["accuracy"] for r in ends],
        ":",
        color="0.5",
        label="random deferral",
        zorder=1,
    )
    drawn: set[str] = set()
    for number, row in enumerate(rows, 1):
        group = kind_of(row["policy"], extra=row["extra"])
        axes.plot(
            row["cost"],
            row["accuracy"],
            "o",
            ms=15,
            color=_KINDS[group],
            mec="white",
            alpha=0.85,
            label=None if group in drawn else group,
        )
        drawn.add(group)
        place = (row["cost"], row["accuracy"])
        axes.annotate(str(number), place, color="white", ha="center", va="center", fontsize=8)
    axes.axvline(1.0, color="0.8", lw=1, zorder=0)
    axes.set_xlabel("cost relative to always asking the large model (everything charged)")
    axes.set_ylabel("accuracy")
    axes.set_title("Demo pair: one operating point per policy")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(loc="lower right", fontsize="small", markerscale=0.6)
    axes.grid(visible=True, alpha=0.3)


def _bars(
    axes: Any, values: Sequence[tuple[str, float]], colours: Sequence[str], title: str
) -> None:
    places = range(len(values))
    axes.barh(places, [value for _, value in values], color=colours, height=0.7)
    axes.set_yticks(places, [name for name, _ in values], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.axvline(0, color="0.3", lw=0.8)
    axes.set_xlabel("norm (0 = random, 1 = oracle)")
    axes.set_title(title)
    axes.grid(visible=True, axis="x", alpha=0.3)
    for place, (_, value) in zip(places, values, strict=True):
        axes.annotate(
            f"{value:.2f}", (max(value, 0), place), xytext=(3, 0), textcoords="offset points",
            va="center", fontsize=8,
        )  # fmt: skip
