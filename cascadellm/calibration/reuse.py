"""Digests by which records that tuned a score are known again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from cascadellm.calibration.records import CalibrationRecords, Floats, id_digest

__all__ = ["grade_digest", "reused", "tuning_digests"]


def tuning_digests(ids: Sequence[Any] | None, grades: Floats) -> tuple[str, ...]:
    """Return digests of the names, where there are any, and of the grades as a whole.

    Args:
        ids: Names of the records that tuned a score, or None.
        grades: Their grades, in order. Shape (n,) or (n, tiers).
    """
    names = () if ids is None else tuple(id_digest(str(i)) for i in ids)
    whole = grade_digest(grades)
    return names if whole is None else (*names, whole)


def grade_digest(grades: Floats) -> str | None:
    """Return a digest of all grades in order; None where they are all alike.

    Grades of hundreds of records are as good as a name for all of them, unless nothing
    varies: then other records would have the same digest.
    """
    values = np.ascontiguousarray(grades, dtype=np.float64)
    if len(values) < 2 or (values == values[0]).all():
        return None
    return "grades:" + hashlib.blake2b(values.tobytes(), digest_size=16).hexdigest()


def reused(records: CalibrationRecords) -> int:
    """Return how many of the records tuned their score."""
    if not records.tuned_on:
        return 0
    if records.fingerprint in records.tuned_on:
        return len(records)
    if records.correct is not None:
        last = records.tiers - 1
        parts = [records.correct[:, tier] for tier in range(records.tiers)]
        parts += [records.correct[:, [tier, last]] for tier in range(last)]
        if any(grade_digest(part) in records.tuned_on for part in parts):
            return len(records)
    return sum(digest in records.tuned_on for digest in records.id_digests)
