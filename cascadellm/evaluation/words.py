"""The finding of an evaluation as one sentence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cascadellm.evaluation.compare import Evaluation
    from cascadellm.evaluation.points import OperatingPoint

__all__ = ["sentence"]


def sentence(evaluation: Evaluation) -> str:
    """Say what the cascade saves and loses, or that no policy is worth using."""
    if evaluation.points:
        return _of_point(evaluation.points[0])
    if evaluation.large <= evaluation.small:
        return (
            f"The larger tier is not better here ({evaluation.large:.1%} against "
            f"{evaluation.small:.1%}), so use the smaller tier alone."
        )
    best = evaluation.best
    if best.beats_chance is False or not best.values["norm"] > 0:
        return (
            f"None of the policies beats random deferral on these {evaluation.n} questions, so no "
            "threshold is recommended; use one tier alone or another score."
        )
    cost = best.values["qnc"]
    if math.isnan(cost):
        return f"{best.name} never comes within {evaluation.margin:.1%} of the larger tier."
    share = float(np.interp(cost, best.curve.cost, best.curve.share))
    paid = f"costs {cost:.0%} of it" if evaluation.costs_known else "saves the rest of its calls"
    return (
        f"With {best.name}, sending {share:.0%} of the questions to the larger tier comes within "
        f"{_points(evaluation.margin)} of always asking it and {paid} (chosen on these same "
        f"{evaluation.n} questions, so slightly optimistic)."
    )


def _of_point(point: OperatingPoint) -> str:
    low, high = (round(100 * v, 1) + 0.0 for v in point.gap_interval)
    kept = 1 - point.share_last
    cost = "" if point.cost is None else f" at {point.cost:.0%} of the cost of always asking it"
    moved = round(100 * point.gap, 1)
    change = f"falls by {_points(point.gap)}" if moved > 0 else f"rises by {_points(-point.gap)}"
    if moved == 0:
        change = "stays the same"
    return (
        f"With the thresholds {point.name!r}, {kept:.0%} of {point.n} questions are answered "
        f"without the last tier{cost}, and quality {change} (95% interval of the loss: {low:g} to "
        f"{high:g} points)."
    )


def _points(value: float) -> str:
    count = round(100 * value, 1) + 0.0
    return f"{count:g} point" + ("" if count == 1 else "s")
