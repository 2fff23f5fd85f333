"""The deferral curves as a picture, through matplotlib."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
    for point in evaluation.points:
        by_share.plot(point.share_last, point.quality, "o", label=point.name)
        if point.cost is not None:
            by_cost.plot(point.cost, point.quality, "o", label=point.name)
    by_share.set_xlabel("share sent to the larger tier")
    by_cost.set_xlabel("cost relative to always asking the larger tier")
    by_share.set_ylabel("quality")
    by_share.legend(fontsize="small")
    for axes in (by_share, by_cost):
        axes.grid(visible=True, alpha=0.3)
    return drawn


def save_plot(evaluation: Evaluation, path: str | Path) -> Path:
    """Write the picture; the ending of the name chooses the format (png, svg, pdf)."""
    target = Path(path)
    figure(evaluation).savefig(target, dpi=150)
    return target
