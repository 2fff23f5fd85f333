"""A map from a score to a probability, applied with the standard library only."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cascadellm.answer import Answer
from cascadellm.errors import CalibrationError

__all__ = ["CalibratedScore", "ScoreMap"]

_SCHEMA = "cascadellm.score_map/1"


@dataclass(frozen=True, slots=True)
class ScoreMap:
    """Score -> probability that the answer is right.

    Attributes:
        kind: `platt` (a logistic curve) or `isotonic` (a rising line through points).
        scores: Platt: slope and intercept. Isotonic: the scores of the points, rising.
        chances: Isotonic: the probabilities of the points, never falling.
        n: Records it was fitted on.
        tuned_on: Digests of those records; threshold calibration refuses them.
    """

    kind: Literal["platt", "isotonic"]
    scores: tuple[float, ...]
    chances: tuple[float, ...] = ()
    n: int = 0
    tuned_on: tuple[str, ...] = field(default=(), repr=False)

    def __call__(self, score: float | None) -> float | None:
        """Return the probability, None for a missing score."""
        if score is None or score != score:
            return None
        if self.kind == "platt":
            slope, intercept = self.scores
            return 1 / (1 + math.exp(-min(max(slope * score + intercept, -40.0), 40.0)))
        place = bisect_right(self.scores, score)
        if place == 0:
            return self.chances[0]
        if place == len(self.scores):
            return self.chances[-1]
        low, high = self.scores[place - 1], self.scores[place]
        part = (score - low) / (high - low)
        return self.chances[place - 1] + part * (self.chances[place] - self.chances[place - 1])

    def to_config(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {"schema": _SCHEMA, **asdict(self)}

    @classmethod
    def from_config(cls, data: Mapping[str, Any]) -> ScoreMap:
        """Build from `to_config` data.

        Raises:
            CalibrationError: The data are not those of a score map.
        """
        if not isinstance(data, Mapping) or data.get("schema") != _SCHEMA:
            raise CalibrationError(f"expected a score map with schema {_SCHEMA!r}")
        try:
            found = cls(
                data["kind"],
                tuple(float(v) for v in data["scores"]),
                tuple(float(v) for v in data["chances"]),
                int(data["n"]),
                tuple(data["tuned_on"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"the score map is incomplete: {error}") from error
        sizes = {"platt": (2, 0), "isotonic": (len(found.scores) or 1, len(found.scores))}
        if (len(found.scores), len(found.chances)) != sizes.get(found.kind):
            raise CalibrationError(f"the score map {found.kind!r} has the wrong number of values")
        return found

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write as JSON.

        Raises:
            CalibrationError: The file exists and `overwrite` is False.
        """
        target = Path(path)
        if target.exists() and not overwrite:
            raise CalibrationError(f"{target} exists; choose another path or pass overwrite=True")
        target.write_text(json.dumps(self.to_config(), allow_nan=False) + "\n", "utf-8")
        return target

    @classmethod
    def load(cls, path: str | Path) -> ScoreMap:
        """Read a saved map.

        Raises:
            CalibrationError: The file is absent or not a score map.
        """
        try:
            return cls.from_config(json.loads(Path(path).read_text("utf-8")))
        except OSError as error:
            raise CalibrationError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise CalibrationError(f"{path} is not JSON: {error}") from error


@dataclass(frozen=True, slots=True)
class CalibratedScore:
    """A score whose unit is a probability, so that it stands in the record as one.

    Attributes:
        score: The score underneath.
        map: Its map to a probability.
    """

    score: Callable[[Answer], float | None]
    map: ScoreMap

    @property
    def name(self) -> str:
        """Name in records."""
        inner = getattr(self.score, "name", None) or getattr(self.score, "__name__", "score")
        return f"chance({inner})"

    @property
    def low(self) -> float:
        """Least possible value."""
        return 0.0

    @property
    def high(self) -> float:
        """Greatest possible value."""
        return 1.0

    @property
    def reads(self) -> frozenset[str]:
        """What an answer must carry."""
        found: frozenset[str] = getattr(self.score, "reads", frozenset())
        return found

    @property
    def tuned_on(self) -> tuple[str, ...]:
        """Digests of the records that the map, or the score itself, was fitted on."""
        return (*self.map.tuned_on, *getattr(self.score, "tuned_on", ()))

    def __call__(self, answer: Answer) -> float | None:
        """Return the probability that the answer is right, None where the score is missing."""
        return self.map(self.score(answer))
