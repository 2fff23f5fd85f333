"""The deferral curves as a picture, through matplotlib."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cascadellm.evaluation.compare import Evaluation

__all__ = ["figure", "save_plot"]

_GREY = {"random": ":", "oracle": "--", "prompt length": "-."}


def figure(evaluation: Evaluation) -> Figure:
    """Draw quality over the share deferred and over cost."""
    # a figure of its own: pyplot would keep global state and choose a screen
    drawn = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(drawn)
    by_share, by_cost = drawn.subplots(1, 2, sharey=True)
    for result in evaluation.results:
        curve = result.curve.thinned()
        style = {"color": "0.55", "ls": _GREY[result.name]} if result.name in _GREY else {}
        by_share.plot(curve.share, curve.quality, label=result.name, **style)
        by_cost.plot(curve.cost, curve.quality, label=result.name, **style)
    for place, point in enumerate(evaluation.points):
        mark = {"marker": "o", "ms": 9, "mec": "white", "ls": "", "color": f"C{9 - place % 5}"}
        by_share.plot(point.share_last, point.quality, label=point.name, zorder=5, **mark)
        if point.cost is not None:
            by_cost.plot(point.cost, point.quality, label=point.name, zorder=5, **mark)
    by_share.set_xlabel("share sent to the larger tier")
    unknown = "" if evaluation.costs_known else " (smaller tier as free)"
    by_cost.set_xlabel(f"cost relative to always asking the larger tier{unknown}")
    by_share.set_ylabel("quality")
    by_share.legend(fontsize="small", loc="lower right")
    for axes in (by_share, by_cost):
        axes.grid(visible=True, alpha=0.3)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.spines[["top", "right"]].set_visible(False)
    drawn.suptitle(f"Quality of the cascade on {evaluation.n} questions", fontsize="medium")
    return drawn


def save_plot(evaluation: Evaluation, path: str | Path) -> Path:
    """Write the picture; the ending of the name chooses the format (png, svg, pdf)."""
    target = Path(path)
    figure(evaluation).savefig(target, dpi=150)
    return target
