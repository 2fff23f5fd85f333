"""Turn a certified threshold into the `Calibration` that is handed out."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping

import numpy as np
import scipy
from numpy.typing import NDArray

from cascadellm.calibration import bounds
from cascadellm.calibration.grid import Grid
from cascadellm.calibration.losses import ASSUMPTIONS, LossColumn, Walk
from cascadellm.calibration.records import CalibrationRecords
from cascadellm.calibration.refusals import signal_pvalue
from cascadellm.calibration.result import Calibration, Interval

__all__ = ["common_assumptions", "cost_of", "summarise", "versions"]


def summarise(
    records: CalibrationRecords,
    column: LossColumn,
    grid: Grid,
    walk: Walk,
    index: int,
    *,
    target_risk: float,
    confidence: float,
    method: str,
    boundary: int,
    seed: int,
) -> Calibration:
    """Describe the threshold at one index of the walk."""
    n = len(column)
    names = records.id_digests
    accepted = int(walk.accepted[index])
    # an error rate among accepted answers has the accepted ones as its denominator
    size = accepted if column.name == "selective" else n
    total = float(walk.total[index])
    threshold = float(walk.grid[index])
    kept = column.score >= threshold
    cost, cost_interval, large = cost_of(records, column.rows, boundary, kept)
    bound = float(bounds.upper_bound(math.ceil(round(max(total, 0.0), 9)), size, confidence))
    return Calibration(
        thresholds=(threshold,),
        loss=column.name,
        target_risk=target_risk,
        confidence=confidence,
        method=method,
        risk=total / size,
        risk_bound=min(bound, target_risk),
        n=n,
        n_accepted=accepted,
        share_kept=accepted / n,
        share_kept_interval=bounds.rate_interval(accepted, n),
        boundaries=(boundary,),
        score_names=(records.score_names[boundary],),
        cost_usd=cost,
        cost_interval=cost_interval,
        large_cost_usd=large,
        assumptions=(ASSUMPTIONS[column.name], *common_assumptions(grid.origin)),
        notes=_notes(records, column, n),
        seed=seed,
        fingerprint=records.fingerprint,
        ids=tuple(names[i] for i in column.rows) if names else (),
        versions=versions(),
    )


def common_assumptions(origin: str) -> tuple[str, ...]:
    """Return what every promise rests on."""
    return (
        "records and future traffic are exchangeable (same kind of questions, same order of mix)",
        "models, prompts, decoding settings and score stay as they were when the records were made",
        "no record was used to tune the score or to choose between scores",
        f"the grid was fixed before labels were read: {origin}",
    )


def versions() -> Mapping[str, str]:
    """Return the versions of the packages that take part."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


def cost_of(
    records: CalibrationRecords,
    rows: NDArray[np.intp],
    boundary: int,
    kept: NDArray[np.bool_],
) -> tuple[float | None, Interval | None, float | None]:
    """Return mean cost with interval, and the cost of always asking the last tier.

    The tier before the boundary is always paid; the last one when the answer is deferred.
    """
    if records.cost is None:
        return None, None, None
    cost = records.cost[rows]
    small, large = cost[:, boundary], cost[:, -1]
    each = small + np.where(kept, 0.0, large)
    if np.isnan(each).any() or np.isnan(large).any():
        return None, None, None
    mean = float(each.mean())
    half = 1.96 * float(each.std(ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else 0.0
    return mean, (mean - half, mean + half), float(large.mean())


def _notes(records: CalibrationRecords, column: LossColumn, n: int) -> tuple[str, ...]:
    notes = []
    missing = int(np.isnan(column.score).sum())
    if missing:
        notes.append(f"{missing} of {n} records have no score and always defer")
    unlabelled = len(records) - n
    if unlabelled:
        notes.append(f"{unlabelled} of {len(records)} records were not used for the tests")
    lossy = int((column.value > 0).sum())
    if lossy in (0, n):
        notes.append(f"one class only: {lossy} of {n} records would be a loss if accepted")
    present = column.score[~np.isnan(column.score)]
    if present.size and (present == present[0]).all():
        notes.append(f"all {present.size} scores are equal ({present[0]:g})")
    elif (value := signal_pvalue(column)) is not None and value > 0.05:
        notes.append(f"the score orders the losses no better than chance (rank test {value:.2f})")
    return tuple(notes)
