"""Labelled records: one value per question, or columns for many of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadellm.errors import CalibrationError

__all__ = ["CalibrationRecord", "CalibrationRecords", "as_records", "id_digest"]

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CalibrationRecord:
    """One question that every tier answered.

    Attributes:
        score: Score of the first tier's answer, or one score per boundary. Higher = more
            trust; NaN or None = missing, which is never accepted.
        correct: Quality of each tier's answer in tier order, in [0, 1]; a bool or 0/1 where
            answers are right or wrong. None = not graded.
        agree: Per boundary, whether the tier's answer equals the last tier's.
        cost: Cost of each tier's call in tier order. Unit: USD.
        prompt_length: Length of the question, for the baseline that reads nothing else.
        columns: Other scores by name, for comparison.
        id: Name of the question; reuse of a question is found by it.
    """

    score: float | Sequence[float | None] | None
    correct: Sequence[float | bool | None] | None = None
    agree: bool | Sequence[bool | None] | None = None
    cost: Sequence[float | None] | None = None
    prompt_length: float | None = None
    columns: Mapping[str, float | None] = field(default_factory=dict)
    id: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationRecords:
    """Many records as columns. Missing values are NaN.

    Attributes:
        scores: Shape (n, tiers - 1).
        correct: Quality per tier. Shape (n, tiers), values in [0, 1].
        agree: Agreement with the last tier per boundary. Shape (n, tiers - 1).
        cost: Cost per tier in USD. Shape (n, tiers).
        prompt_length: Shape (n,).
        columns: Other scores by name, each of shape (n,).
        ids: Names of the questions, or None.
        score_names: One name per boundary.
        score_ranges: Least and largest value per boundary, where a score declares them.
        tuned_on: Digests of records that the scores were tuned on; refused for calibration.
    """

    scores: Floats
    correct: Floats | None = None
    agree: Floats | None = None
    cost: Floats | None = None
    prompt_length: Floats | None = None
    columns: Mapping[str, Floats] = field(default_factory=dict)
    ids: tuple[str, ...] | None = None
    score_names: tuple[str, ...] = ()
    score_ranges: tuple[tuple[float, float] | None, ...] = ()
    tuned_on: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        scores: ArrayLike,
        correct: ArrayLike | None = None,
        *,
        agree: ArrayLike | None = None,
        cost: ArrayLike | None = None,
        prompt_length: ArrayLike | None = None,
        columns: Mapping[str, ArrayLike] | None = None,
        ids: Sequence[str] | None = None,
        score_names: Sequence[str] = (),
        tuned_on: Iterable[str] = (),
    ) -> CalibrationRecords:
        """Build from arrays or lists; one-dimensional `scores` and `agree` mean two tiers.

        Raises:
            CalibrationError: Shapes disagree, a quality lies outside [0, 1], a cost is
                negative, or a name occurs twice.
        """
        score = _column(scores, "scores", 2)
        names = tuple(score_names) or tuple(
            "score" if score.shape[1] == 1 else f"score_{i}" for i in range(score.shape[1])
        )
        records = cls(
            scores=score,
            correct=None if correct is None else _column(correct, "correct", 2),
            agree=None if agree is None else _column(agree, "agree", 2),
            cost=None if cost is None else _column(cost, "cost", 2),
            prompt_length=None if prompt_length is None else _column(prompt_length, "length", 1),
            columns={k: _column(v, k, 1) for k, v in (columns or {}).items()},
            ids=None if ids is None else tuple(ids),
            score_names=names,
            tuned_on=frozenset(tuned_on),
        )
        _check(records)
        return records

    @classmethod
    def from_records(
        cls, records: Iterable[CalibrationRecord], *, score_names: Sequence[str] = ()
    ) -> CalibrationRecords:
        """Build from single records; all must have the same number of tiers.

        Raises:
            CalibrationError: There is no record, or they disagree in shape.
        """
        rows = list(records)
        if not rows:
            raise CalibrationError("expected at least one record, got none")
        names = sorted({name for row in rows for name in row.columns})
        ids = [row.id for row in rows]
        width = len(_listed(rows[0].score))
        scores = np.asarray([_listed(r.score) for r in rows if len(_listed(r.score)) == width])
        if len(scores) < len(rows):
            place = next(i for i, r in enumerate(rows, 1) if len(_listed(r.score)) != width)
            raise CalibrationError(
                f"record {place}: expected {width} score(s) as in the first record, got "
                f"{len(_listed(rows[place - 1].score))}"
            )
        return cls.of(
            scores,
            _stack(rows, "correct", width + 1),
            agree=_stack(rows, "agree", width),
            cost=_stack(rows, "cost", width + 1),
            prompt_length=_stack(rows, "prompt_length", 1),
            columns={k: [_number(r.columns.get(k)) for r in rows] for k in names},
            ids=[str(i) for i in ids] if all(i is not None for i in ids) else None,
            score_names=score_names,
        )

    def __len__(self) -> int:
        return int(self.scores.shape[0])

    @property
    def tiers(self) -> int:
        """Number of tiers."""
        return int(self.scores.shape[1]) + 1

    @property
    def fingerprint(self) -> str:
        """Digest of all values, in order."""
        # names are left out: the same answers under other names are the same data
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.scores, self.correct, self.agree, self.cost):
            digest.update(b"-" if part is None else np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    @property
    def id_digests(self) -> tuple[str, ...]:
        """Digest of each name; empty where records have no names."""
        return () if self.ids is None else tuple(id_digest(i) for i in self.ids)

    def take(self, rows: NDArray[Any]) -> CalibrationRecords:
        """Return the rows at these indices (or where the mask is true)."""
        index = np.flatnonzero(rows) if rows.dtype == bool else rows

        def pick(part: Floats | None) -> Floats | None:
            return None if part is None else part[index]

        return replace(
            self,
            scores=self.scores[index],
            correct=pick(self.correct),
            agree=pick(self.agree),
            cost=pick(self.cost),
            prompt_length=pick(self.prompt_length),
            columns={k: v[index] for k, v in self.columns.items()},
            ids=None if self.ids is None else tuple(self.ids[i] for i in index),
        )

    def described(self, scores: Sequence[Any]) -> CalibrationRecords:
        """Return the records with what their scores declare: ranges, and what tuned them."""
        ranges = tuple(_range(score) for score in scores)
        tuned = {digest for score in scores for digest in getattr(score, "tuned_on", ())}
        return replace(self, score_ranges=ranges, tuned_on=self.tuned_on | tuned)

    def split(self, share: float, *, seed: int) -> tuple[CalibrationRecords, CalibrationRecords]:
        """Split at random into `share` of the records and the rest.

        Raises:
            CalibrationError: One part would be empty.
        """
        first = round(len(self) * share)
        if not 0 < first < len(self):
            raise CalibrationError(f"a share of {share} leaves a part of {len(self)} records empty")
        order = np.random.default_rng(seed).permutation(len(self))
        return self.take(np.sort(order[:first])), self.take(np.sort(order[first:]))


def as_records(records: CalibrationRecords | Iterable[CalibrationRecord]) -> CalibrationRecords:
    """Return columns, whichever form was given."""
    if isinstance(records, CalibrationRecords):
        return records
    return CalibrationRecords.from_records(records)


def id_digest(name: str) -> str:
    """Return a short digest of a record's name."""
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()


def _range(score: Any) -> tuple[float, float] | None:
    ends = (getattr(score, "low", math.nan), getattr(score, "high", math.nan))
    return ends if all(math.isfinite(end) for end in ends) else None


def _number(value: float | bool | None) -> float:
    return math.nan if value is None else float(value)


def _listed(value: Any) -> list[float]:
    if value is None or isinstance(value, (int, float)):
        return [_number(value)]
    return [_number(v) for v in value]


def _stack(rows: Sequence[CalibrationRecord], name: str, width: int) -> Floats | None:
    values = [getattr(row, name) for row in rows]
    if all(v is None for v in values):
        return None
    table = [_listed(v) if v is not None else [math.nan] * width for v in values]
    for number, row in enumerate(table, start=1):
        if len(row) != width:
            raise CalibrationError(
                f"record {number}: expected {width} value(s) in {name!r} as in the other "
                f"records, got {len(row)}"
            )
    array = np.asarray(table, dtype=np.float64)
    return array[:, 0] if name == "prompt_length" else array


def _column(values: ArrayLike, name: str, ndim: int) -> Floats:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CalibrationError(f"{name}: expected numbers, got {error}") from error
    if ndim == 2 and array.ndim == 1:
        array = array[:, None]
    if array.ndim != ndim:
        raise CalibrationError(f"{name}: expected {ndim} dimension(s), got shape {array.shape}")
    return array


def _check(records: CalibrationRecords) -> None:
    n, boundaries = records.scores.shape
    if n == 0:
        raise CalibrationError("expected at least one record, got none")
    expected = {
        "correct": (records.correct, (n, boundaries + 1)),
        "agree": (records.agree, (n, boundaries)),
        "cost": (records.cost, (n, boundaries + 1)),
        "prompt_length": (records.prompt_length, (n,)),
        **{f"columns[{k!r}]": (v, (n,)) for k, v in records.columns.items()},
    }
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise CalibrationError(
                f"{name}: expected shape {shape} for {n} records and {boundaries + 1} tiers, "
                f"got {array.shape}"
            )
    for name, array in (("correct", records.correct), ("agree", records.agree)):
        if array is not None and (bad := np.argwhere((array < 0) | (array > 1))).size:
            raise CalibrationError(
                f"record {bad[0][0] + 1}: {name} must lie in [0, 1], "
                f"got {array[tuple(bad[0])]:g} ({len(bad)} such values)"
            )
    if records.cost is not None and (records.cost < 0).any():
        row = int(np.argwhere(records.cost < 0)[0][0])
        raise CalibrationError(f"record {row + 1}: a cost in USD must be >= 0")
    if len(records.score_names) != boundaries:
        raise CalibrationError(
            f"expected {boundaries} score name(s), got {len(records.score_names)}"
        )
    if records.ids is not None:
        _check_ids(records.ids, n)


def _check_ids(ids: tuple[str, ...], n: int) -> None:
    if len(ids) != n:
        raise CalibrationError(f"expected {n} ids, got {len(ids)}")
    if len(set(ids)) != n:
        seen: set[str] = set()
        double = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise CalibrationError(
            f"{n - len(set(ids))} record(s) repeat the name of another, first {double!r}; "
            "records must be independent, so keep one of each"
        )
