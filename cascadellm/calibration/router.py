"""A learned router: what the question's embedding says about who must answer it.

Applying a router needs the standard library and the embedding model it was fitted with; fitting
one is in `router_fit`. A saved router is JSON, never a pickle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cascadellm.answer import Request
from cascadellm.calibration.features import Head
from cascadellm.errors import CalibrationError, ConfigurationError
from cascadellm.policies.grounded import nearest_embedder

__all__ = ["LearnedRouter", "name_of_embedder"]

_SCHEMA = "cascadellm.router/1"
# an input that lies further out than anything in training says no more than this
_FURTHEST = 8.0


@dataclass(frozen=True, slots=True)
class LearnedRouter:
    """A score of a request, fitted on graded records, for `Route(router, threshold)`.

    Attributes:
        centers: Mean of each input: the embedding's numbers, then the log of the length.
        scales: Standard deviation of each input.
        small: Chance that this tier is right.
        large: Chance that the larger tier is right.
        embed: The embedding model it was fitted with: a function from texts to vectors, an
            embedding model of either framework, or a `LocalModel`.
        target: `gain` scores by the first chance minus the second, `correct` by the first.
        with_length: Whether the length of the text is an input.
        embedder: Name of the embedding model, checked by nobody and written into the file.
        name: Name in records.
        tuned_on: Digests of the records it was fitted on; calibration refuses them.
        cross_fitted: Metrics of scores that were computed without the record's own fold.
        versions: Versions of the packages that fitted it.
    """

    centers: tuple[float, ...] = field(repr=False)
    scales: tuple[float, ...] = field(repr=False)
    small: Head = field(repr=False)
    large: Head = field(repr=False)
    embed: Any = field(default=None, compare=False, hash=False, repr=False)
    target: Literal["gain", "correct"] = "gain"
    with_length: bool = True
    embedder: str = ""
    name: str = "router"
    tuned_on: tuple[str, ...] = field(default=(), repr=False)
    cross_fitted: Mapping[str, float] = field(default_factory=dict, hash=False)
    versions: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)

    @property
    def low(self) -> float:
        """Least possible value."""
        return -1.0 if self.target == "gain" else 0.0

    @property
    def high(self) -> float:
        """Greatest possible value."""
        return 1.0

    @property
    def width(self) -> int:
        """Numbers of an embedding."""
        return len(self.centers) - self.with_length

    def __call__(self, request: Request) -> float | None:
        """Return the score of a request, None when it has no text.

        Raises:
            ConfigurationError: The router was loaded without its embedding model.
            CalibrationError: The embedding model is another one.
        """
        text = request.text
        if not text.strip():
            return None
        if self.embed is None:
            raise ConfigurationError(
                f"this router needs the embedding model it was fitted with ({self.embedder!r}); "
                "pass it to LearnedRouter.load(path, embed=...)"
            )
        (vector,) = nearest_embedder(self.embed)([text])
        return self.of([float(x) for x in vector], len(text))

    def of(self, vector: Sequence[float], length: float) -> float:
        """Return the score of an embedding and a length in characters.

        Raises:
            CalibrationError: The embedding has another number of dimensions.
        """
        if len(vector) != self.width:
            raise CalibrationError(
                f"expected an embedding of {self.width} numbers, got {len(vector)}; use the "
                f"embedding model that the router was fitted with ({self.embedder!r})"
            )
        raw = [*vector, math.log1p(length)] if self.with_length else list(vector)
        inputs = [
            min(max((x - center) / scale, -_FURTHEST), _FURTHEST)
            for x, center, scale in zip(raw, self.centers, self.scales, strict=True)
        ]
        small = self.small(inputs)
        return small if self.target == "correct" else small - self.large(inputs)

    def to_config(self) -> dict[str, Any]:
        """Return plain JSON data, without the embedding model."""
        kept = {name: getattr(self, name) for name in self.__slots__ if name != "embed"}
        kept["small"], kept["large"] = asdict(self.small), asdict(self.large)
        return json.loads(json.dumps({"schema": _SCHEMA, **kept}))  # type: ignore[no-any-return]

    @classmethod
    def from_config(cls, data: Mapping[str, Any], *, embed: Any = None) -> LearnedRouter:
        """Build from `to_config` data.

        Raises:
            CalibrationError: The data are not those of a router.
        """
        if not isinstance(data, Mapping) or data.get("schema") != _SCHEMA:
            raise CalibrationError(f"expected a router with schema {_SCHEMA!r}")
        try:
            values = {k: v for k, v in data.items() if k != "schema"}
            for name in ("small", "large"):
                head = Head(
                    tuple(map(float, data[name]["weights"])), float(data[name]["intercept"])
                )
                values[name] = head
            for name in ("centers", "scales"):
                values[name] = tuple(float(v) for v in data[name])
            values["tuned_on"] = tuple(data.get("tuned_on") or ())
            made = cls(**values, embed=embed)
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"the router is incomplete: {error}") from error
        sizes = {len(part) for part in (made.scales, made.small.weights, made.large.weights)}
        if sizes != {len(made.centers)} or not all(scale > 0 for scale in made.scales):
            raise CalibrationError("the router's weights, centers and scales do not fit together")
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
    def load(cls, path: str | Path, *, embed: Any) -> LearnedRouter:
        """Read a saved router and give it its embedding model.

        Raises:
            CalibrationError: The file is absent or not a router.
        """
        try:
            return cls.from_config(json.loads(Path(path).read_text("utf-8")), embed=embed)
        except OSError as error:
            raise CalibrationError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise CalibrationError(f"{path} is not JSON: {error}") from error


def name_of_embedder(embed: Any) -> str:
    """Return what an embedding model calls itself, else its class."""
    for attribute in ("model_name", "model", "__name__"):
        value = getattr(embed, attribute, None)
        if isinstance(value, str) and value:
            return value
    return type(embed).__name__
