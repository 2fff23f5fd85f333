"""The losses a threshold can be calibrated for, and their running sums over a grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cascadellm.calibration.records import CalibrationRecords, Floats
from cascadellm.errors import CalibrationError

__all__ = ["LOSSES", "Loss", "LossColumn", "Walk", "loss_column", "walk_along"]

Loss = Literal["one_sided", "signed", "selective", "disagreement"]
LOSSES: tuple[str, ...] = get_args(Loss)

ASSUMPTIONS: Mapping[str, str] = {
    "one_sided": "a loss is an accepted wrong answer where the last tier is right",
    "signed": "the loss is the last tier's quality minus the accepted answer's, gains included",
    "selective": "a loss is a wrong answer among the accepted ones",
    "disagreement": (
        "a loss is an accepted answer that differs from the last tier's; it bounds the "
        "accuracy loss if equal answers are graded equally"
    ),
    "deferral": "what is bounded is the share of calls that go on to the next tier",
}


@dataclass(frozen=True, slots=True)
class LossColumn:
    """What accepting each record costs.

    Attributes:
        name: Name of the loss.
        score: Score per record, NaN = never accepted. Shape (n,).
        value: Loss if accepted. Shape (n,).
        rows: Indices of these records in the data given.
        low: Least possible loss.
        binary: Whether all values are 0 or 1.
    """

    name: str
    score: Floats
    value: Floats
    rows: NDArray[np.intp]
    low: float
    binary: bool

    def __len__(self) -> int:
        return len(self.score)


@dataclass(frozen=True, slots=True)
class Walk:
    """Counts at every threshold of a grid, from the safe end on.

    Attributes:
        grid: Thresholds, falling. Shape (m,).
        accepted: Records accepted at each. Shape (m,).
        total: Sum of their losses. Shape (m,).
    """

    grid: Floats
    accepted: NDArray[np.int64]
    total: Floats


def loss_column(records: CalibrationRecords, loss: str, boundary: int) -> LossColumn:
    """Return the loss of accepting at one boundary, for the records that have labels.

    Raises:
        CalibrationError: The loss is unknown, or the records lack what it reads.
    """
    if loss not in LOSSES:
        raise CalibrationError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    if not 0 <= boundary < records.tiers - 1:
        raise CalibrationError(
            f"boundary must lie in 0..{records.tiers - 2} for {records.tiers} tiers, got {boundary}"
        )
    value = _values(records, loss, boundary)
    rows = np.flatnonzero(~np.isnan(value))
    if rows.size == 0:
        raise CalibrationError(
            f"none of the {len(records)} records carries what the loss {loss!r} reads; "
            "grade the records, or use loss='disagreement' with agreement alone"
        )
    kept = value[rows]
    binary = bool(np.isin(kept, (-1.0, 0.0, 1.0)).all()) if loss == "signed" else _is_binary(kept)
    low = -1.0 if loss == "signed" else 0.0
    return LossColumn(loss, records.scores[rows, boundary], kept, rows, low, binary)


def walk_along(column: LossColumn, grid: Floats) -> Walk:
    """Count accepted records and losses at every threshold of a falling grid."""
    # a missing score is never accepted: it stays in n and out of every sum
    present = ~np.isnan(column.score)
    score = column.score[present]
    order = np.argsort(-score, kind="stable")
    falling = -score[order]
    # with a leading zero, so that index = number accepted
    running = np.concatenate(([0.0], np.cumsum(column.value[present][order])))
    accepted = np.searchsorted(falling, -grid, side="right")
    return Walk(grid, accepted.astype(np.int64), running[accepted])


def _values(records: CalibrationRecords, loss: str, boundary: int) -> Floats:
    if loss == "disagreement":
        if records.agree is None:
            raise CalibrationError(
                "loss 'disagreement' reads `agree` (does the tier's answer equal the last "
                "tier's), which these records do not have"
            )
        return 1.0 - records.agree[:, boundary]
    if records.correct is None:
        raise CalibrationError(
            f"loss {loss!r} reads `correct`, which these records do not have; "
            "grade them, or use loss='disagreement'"
        )
    small, large = records.correct[:, boundary], records.correct[:, -1]
    if loss == "selective":
        return 1.0 - small
    return large - small if loss == "signed" else np.maximum(0.0, large - small)


def _is_binary(values: Floats) -> bool:
    return bool(((values == 0) | (values == 1)).all())
