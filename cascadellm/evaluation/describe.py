"""An evaluation's notes, and its figures as plain JSON data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cascadellm.calibration.records import CalibrationRecords
from cascadellm.evaluation.curve import Pair
from cascadellm.evaluation.points import OperatingPoint

if TYPE_CHECKING:
    from cascadellm.evaluation.compare import PolicyResult

__all__ = ["notes_on", "plain", "policy_data"]


def notes_on(
    data: CalibrationRecords,
    pair: Pair,
    results: Sequence[PolicyResult],
    points: Sequence[OperatingPoint],
) -> tuple[str, ...]:
    """Return what a reader of the figures should know."""
    notes = []
    if len(pair) < len(data):
        notes.append(f"{len(data) - len(pair)} of {len(data)} records are not graded; left out")
    if not pair.costs_known:
        notes.append("costs are unknown: the smaller tier is counted as free in every cost")
    notes += [
        f"{r.name}: {r.missing} of {len(pair)} scores are missing and defer first"
        for r in results
        if r.missing
    ]
    notes += [
        f"{p.name}: {p.reused} of these records were used for its calibration; its figures are "
        "optimistic"
        for p in points
        if p.reused
    ]
    for name, values in (("smaller", pair.small), ("larger", pair.large)):
        if (values == values[0]).all():
            notes.append(f"one class only: the {name} tier has quality {values[0]:g} everywhere")
    return tuple(notes)


def policy_data(result: PolicyResult) -> dict[str, Any]:
    """Return one policy as plain JSON data, its curve thinned."""
    curve = result.curve.thinned(200)
    return {
        "name": result.name,
        "baseline": result.baseline,
        "missing": result.missing,
        "values": plain(dict(result.values)),
        "intervals": {k: list(v) for k, v in result.intervals.items()},
        "against": {k: list(v) for k, v in result.against.items()},
        "curve": {
            "share": curve.share.tolist(),
            "quality": curve.quality.tolist(),
            "cost": curve.cost.tolist(),
        },
    }


def plain(data: dict[str, Any]) -> dict[str, Any]:
    """Return the data without NaN (null) and infinity (text), which JSON does not know."""

    def clean(value: Any) -> Any:
        if isinstance(value, float):
            if math.isnan(value):
                return None
            return value if math.isfinite(value) else repr(value)
        return [clean(v) for v in value] if isinstance(value, (list, tuple)) else value

    return {k: clean(v) for k, v in data.items()}
