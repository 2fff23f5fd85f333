"""The result of a calibration: thresholds, the promise they carry, and where it comes from.

This module imports the standard library only, so a saved threshold can be loaded by a
program that has neither numpy nor the records.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from cascadellm.errors import CalibrationError

__all__ = ["Calibration", "Interval"]

Interval = tuple[float, float]
"""Lower and upper end of a two-sided 95% interval."""

_SCHEMA = "cascadellm.calibration/1"


@dataclass(frozen=True, slots=True)
class Calibration:
    """Thresholds with a certified bound on the risk.

    Attributes:
        thresholds: One threshold per calibrated boundary, in tier order; an answer is
            accepted iff its score >= threshold. Unit: that of the score.
        loss: What the risk is the mean of: `one_sided`, `signed`, `selective`,
            `disagreement`, `deferral`, `cost`, or several joined by `+`.
        target_risk: The promised upper end of the risk.
        confidence: Probability, over the draw of the records, that the promise holds.
        method: The test and the way the thresholds were walked.
        risk: Mean loss of the records at the thresholds.
        risk_bound: Upper confidence bound on the risk at the thresholds alone. It is
            reported for information; the promise is `target_risk`.
        n: Records used for the tests.
        n_accepted: Records that an earlier tier than the last answers.
        share_kept: Share of records that an earlier tier than the last answers.
        share_kept_interval: Its 95% interval (Clopper-Pearson).
        boundaries: Index of each calibrated boundary.
        score_names: Name of the score of each boundary.
        cost_usd: Mean cost of one call of the cascade; None where costs are unknown.
        cost_interval: Its 95% interval (normal).
        large_cost_usd: Mean cost of always asking the last tier.
        targets: The single promises as (loss, target), where there are several.
        assumptions: What the promise rests on, in words.
        notes: What a reader should know about these records.
        seed: Seed of every random choice.
        fingerprint: Digest of the records.
        ids: Digests of the single records, where they have names; reuse is checked with them.
        versions: Versions of the packages that took part.
    """

    thresholds: tuple[float, ...]
    loss: str
    target_risk: float
    confidence: float
    method: str
    risk: float
    risk_bound: float
    n: int
    n_accepted: int
    share_kept: float
    share_kept_interval: Interval
    boundaries: tuple[int, ...] = (0,)
    score_names: tuple[str, ...] = ("score",)
    cost_usd: float | None = None
    cost_interval: Interval | None = None
    large_cost_usd: float | None = None
    targets: tuple[tuple[str, float], ...] = ()
    assumptions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seed: int = 0
    fingerprint: str = ""
    ids: tuple[str, ...] = field(default=(), repr=False)
    versions: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def threshold(self) -> float:
        """The threshold, where one boundary was calibrated.

        Raises:
            CalibrationError: Several boundaries were calibrated.
        """
        if len(self.thresholds) != 1:
            raise CalibrationError(
                f"this calibration holds {len(self.thresholds)} thresholds, expected one; "
                "use .for_boundary(i)"
            )
        return self.thresholds[0]

    @property
    def score(self) -> str:
        """Name of the first boundary's score, empty where the records do not say."""
        return "" if self.score_names[0].startswith("score") else self.score_names[0]

    def for_boundary(self, boundary: int) -> Calibration:
        """Return the part that belongs to one boundary, for its threshold policy.

        Raises:
            CalibrationError: That boundary was not calibrated.
        """
        if boundary not in self.boundaries:
            raise CalibrationError(
                f"boundary {boundary} was not calibrated; this file holds {self.boundaries}"
            )
        place = self.boundaries.index(boundary)
        return replace(
            self,
            thresholds=(self.thresholds[place],),
            score_names=(self.score_names[place],),
            boundaries=(boundary,),
        )

    @property
    def promise(self) -> str:
        """The promise as one sentence."""
        targets = self.targets or ((self.loss, self.target_risk),)
        claims = " and ".join(f"{_SUBJECTS.get(k, k)} at most {v:.4g}" for k, v in targets)
        return (
            f"With {self.confidence:.0%} confidence {claims}, "
            f"while {self.share_kept:.1%} of the answers stay with an earlier tier "
            f"({self.n} records)."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; infinite thresholds are written as `"inf"`, `"-inf"`."""
        data: dict[str, Any] = {"schema": _SCHEMA}
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            data[name] = _encode(value)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """Build from `to_dict` data.

        Raises:
            CalibrationError: The schema is another, a field is missing or of a wrong type.
        """
        if not isinstance(data, Mapping) or data.get("schema") != _SCHEMA:
            found = data.get("schema") if isinstance(data, Mapping) else type(data).__name__
            raise CalibrationError(
                f"expected a calibration with schema {_SCHEMA!r}, got {found!r}; "
                "write one with Calibration.save or `cascadellm calibrate`"
            )
        known = {f.name for f in fields(cls)}
        values = {k: _decode(v) for k, v in data.items() if k in known}
        values["versions"] = dict(data.get("versions") or {})
        try:
            result = cls(**values)
            # NaN would make every comparison false, which defers silently for ever
            usable = all(not math.isnan(float(t)) for t in result.thresholds)
        except (TypeError, ValueError) as error:
            raise CalibrationError(f"the calibration data are incomplete: {error}") from error
        if not usable or not result.thresholds:
            raise CalibrationError(
                f"expected one number per boundary in thresholds, got {result.thresholds!r}"
            )
        return result

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write as JSON.

        Raises:
            CalibrationError: The file exists and `overwrite` is False.
        """
        target = Path(path)
        if target.exists() and not overwrite:
            raise CalibrationError(
                f"{target} exists; choose another path or pass overwrite=True (CLI: --force)"
            )
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        # in one step, so that a kill leaves the earlier file or the new one
        part = target.with_name(target.name + ".part")
        part.write_text(text, "utf-8")
        part.replace(target)
        return target

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a saved calibration.

        Raises:
            CalibrationError: The file is absent, not JSON, or not a calibration.
        """
        try:
            data = json.loads(Path(path).read_text("utf-8"))
        except OSError as error:
            raise CalibrationError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise CalibrationError(f"{path} is not JSON: {error}") from error
        return cls.from_dict(data)


_SUBJECTS: Mapping[str, str] = {
    "one_sided": "the share of questions where the cascade is wrong and the last tier is right is",
    "signed": "the mean quality of the cascade falls below the last tier's by",
    "selective": "the error rate of the accepted answers is",
    "disagreement": "the share of accepted answers that differ from the last tier's is",
    "deferral": "the share of calls that go on to the next tier is",
    "cost": "the mean cost of a call in USD is",
}


def _encode(value: Any) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, Mapping):
        return {str(k): _encode(v) for k, v in value.items()}
    return [_encode(v) for v in value]


def _decode(value: Any) -> Any:
    if value in ("inf", "-inf"):
        return float(value)
    if isinstance(value, list):
        return tuple(_decode(v) for v in value)
    return value
