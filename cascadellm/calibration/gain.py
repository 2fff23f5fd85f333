"""A map from a score to what the larger tier gains, applied with the standard library only."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cascadellm.errors import CalibrationError

__all__ = ["GainMap"]

_SCHEMA = "cascadellm.gain_map/1"


@dataclass(frozen=True, slots=True)
class GainMap:
    """Score -> expected quality of the larger tier minus that of the smaller one.

    Attributes:
        scores: Scores of the points, rising.
        gains: Expected gain at each; linear in between, constant outside.
        bandwidth: Width of the kernel. Unit: the score's.
        n: Records it was fitted on.
        tuned_on: Digests of those records.
    """

    scores: tuple[float, ...]
    gains: tuple[float, ...]
    bandwidth: float
    n: int
    tuned_on: tuple[str, ...] = field(default=(), repr=False)

    def __call__(self, score: float | None) -> float | None:
        """Return the expected gain, None for a missing score."""
        if score is None or score != score:
            return None
        place = bisect_right(self.scores, score)
        if place in (0, len(self.scores)):
            return self.gains[min(place, len(self.scores) - 1)]
        low, high = self.scores[place - 1], self.scores[place]
        part = (score - low) / (high - low)
        return self.gains[place - 1] + part * (self.gains[place] - self.gains[place - 1])

    def to_config(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return json.loads(json.dumps({"schema": _SCHEMA, **asdict(self)}))  # type: ignore[no-any-return]

    @classmethod
    def from_config(cls, data: Mapping[str, Any]) -> GainMap:
        """Build from `to_config` data.

        Raises:
            CalibrationError: The data are not those of a gain map.
        """
        if not isinstance(data, Mapping) or data.get("schema") != _SCHEMA:
            raise CalibrationError(f"expected a gain map with schema {_SCHEMA!r}")
        try:
            made = cls(
                tuple(float(v) for v in data["scores"]),
                tuple(float(v) for v in data["gains"]),
                float(data["bandwidth"]),
                int(data["n"]),
                tuple(data.get("tuned_on") or ()),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"the gain map is incomplete: {error}") from error
        rising = all(a < b for a, b in zip(made.scores, made.scores[1:], strict=False))
        if not made.scores or len(made.scores) != len(made.gains) or not rising:
            raise CalibrationError("the gain map's scores must rise, one gain each")
        return made

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
    def load(cls, path: str | Path) -> GainMap:
        """Read a saved map.

        Raises:
            CalibrationError: The file is absent or not a gain map.
        """
        try:
            return cls.from_config(json.loads(Path(path).read_text("utf-8")))
        except OSError as error:
            raise CalibrationError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise CalibrationError(f"{path} is not JSON: {error}") from error
