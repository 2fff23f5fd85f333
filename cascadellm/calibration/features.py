"""A learned score: what an answer's token log-probabilities say about its being right.

Applying a learned score needs the standard library only; fitting one is in `fit`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cascadellm.answer import Answer
from cascadellm.errors import CalibrationError

__all__ = ["Column", "Head", "LearnedScore", "answer_features", "token_features"]

_SCHEMA = "cascadellm.learned_score/1"
_LEVELS = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75)


def token_features(
    logprobs: Sequence[float],
    *,
    entropies: Sequence[float | None] = (),
    prompt_length: float | None = None,
) -> dict[str, float]:
    """Describe one answer by its token log-probabilities.

    Args:
        logprobs: Log-probability of each token. Unit: nats.
        entropies: Entropy of each next-token law, None where unknown. Unit: nats.
        prompt_length: Length of the question.

    Returns:
        Quantiles, mean, sum, length, first token, mean entropy, prompt length; what is not
        known is absent.

    Source: arXiv 2404.10136 (quantile features).
    """
    found: dict[str, float] = {}
    # a floor keeps -inf (a token of probability zero) a number
    values = [max(float(v), -100.0) for v in logprobs if v == v]
    if values:
        ordered = sorted(values)
        for level in _LEVELS:
            found[f"quantile_{level:g}"] = _quantile(ordered, level)
        found["mean"] = math.fsum(values) / len(values)
        found["sum"] = math.fsum(values)
        found["log_length"] = math.log(len(values))
        found["first"] = values[0]
    known = [float(e) for e in entropies if e is not None and e == e]
    if known:
        found["entropy"] = math.fsum(known) / len(known)
    if prompt_length is not None and prompt_length == prompt_length and prompt_length >= 0:
        found["log_prompt"] = math.log1p(prompt_length)
    return found


def answer_features(answer: Answer, prompt_length: float | None = None) -> dict[str, float]:
    """Describe an answer; empty where it has no token log-probabilities."""
    tokens = answer.over("answer").tokens or ()
    if not tokens:
        # the prompt's length alone is no evidence about the answer
        return {}
    length = prompt_length
    if length is None and answer.usage is not None:
        length = answer.usage.input_tokens
    return token_features(
        [t.logprob for t in tokens], entropies=[t.entropy for t in tokens], prompt_length=length
    )


@dataclass(frozen=True, slots=True)
class Column:
    """How one feature enters: standardised, with hinges at knots.

    Attributes:
        name: Name of the feature.
        center: Its mean.
        scale: Its standard deviation.
        knots: Places, in standardised units, where the slope may change.
        can_miss: Whether it was missing in training, so that its absence has a weight.
    """

    name: str
    center: float
    scale: float
    knots: tuple[float, ...]
    can_miss: bool

    def expand(self, value: float | None) -> list[float]:
        """Return the model's inputs of one value; a missing one counts as the mean."""
        missing = value is None or value != value
        z = 0.0 if missing else (float(value or 0.0) - self.center) / self.scale
        z = min(max(z, -8.0), 8.0)
        inputs = [z, *(max(0.0, z - knot) for knot in self.knots)]
        return [*inputs, float(missing)] if self.can_miss else inputs


@dataclass(frozen=True, slots=True)
class Head:
    """A logistic model over the expanded columns."""

    weights: tuple[float, ...]
    intercept: float

    def __call__(self, inputs: Sequence[float]) -> float:
        """Return a probability."""
        value = self.intercept + math.fsum(w * x for w, x in zip(self.weights, inputs, strict=True))
        return 1 / (1 + math.exp(-min(max(value, -40.0), 40.0)))


@dataclass(frozen=True, slots=True)
class LearnedScore:
    """A score fitted on graded records; call it with an answer.

    Attributes:
        columns: The features.
        small: Probability that the smaller tier is right.
        large: Probability that the larger tier is right.
        target: `correct` scores by the first probability, `gain` by minus the gain of
            escalating (the second minus the first).
        name: Name in records.
        tuned_on: Digests of the records it was fitted on; calibration refuses them.
        cross_fitted: Metrics of scores that were computed without the record's own fold.
        versions: Versions of the packages that fitted it.
    """

    columns: tuple[Column, ...]
    small: Head
    large: Head
    target: Literal["correct", "gain"] = "correct"
    name: str = "learned"
    tuned_on: tuple[str, ...] = field(default=(), repr=False)
    cross_fitted: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def low(self) -> float:
        """Least possible value."""
        return 0.0 if self.target == "correct" else -1.0

    @property
    def high(self) -> float:
        """Greatest possible value."""
        return 1.0

    @property
    def reads(self) -> frozenset[str]:
        """What an answer must carry."""
        return frozenset({"logprobs"})

    def __call__(self, answer: Answer) -> float | None:
        """Return the score of an answer, None when it has no token log-probabilities."""
        return self.of(answer_features(answer))

    def of(self, features: Mapping[str, float | None]) -> float | None:
        """Return the score of given features, None when none of them is known."""
        chances = self.chances(features)
        if chances is None:
            return None
        small, large = chances
        return small if self.target == "correct" else small - large

    def chances(self, features: Mapping[str, float | None]) -> tuple[float, float] | None:
        """Return the probabilities that the smaller and the larger tier are right."""
        values = [features.get(column.name) for column in self.columns]
        if all(v is None or v != v for v in values):
            return None
        inputs = [
            x for column, v in zip(self.columns, values, strict=True) for x in column.expand(v)
        ]
        return self.small(inputs), self.large(inputs)

    def to_config(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {"schema": _SCHEMA, **asdict(self)}

    @classmethod
    def from_config(cls, data: Mapping[str, Any]) -> LearnedScore:
        """Build from `to_config` data.

        Raises:
            CalibrationError: The data are not those of a learned score.
        """
        if not isinstance(data, Mapping) or data.get("schema") != _SCHEMA:
            raise CalibrationError(f"expected a learned score with schema {_SCHEMA!r}")
        try:
            values = {k: v for k, v in data.items() if k != "schema"}
            values["columns"] = tuple(
                Column(**{**c, "knots": tuple(c["knots"])}) for c in data["columns"]
            )
            for head in ("small", "large"):
                values[head] = Head(tuple(data[head]["weights"]), float(data[head]["intercept"]))
            values["tuned_on"] = tuple(data.get("tuned_on") or ())
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"the learned score is incomplete: {error}") from error

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
    def load(cls, path: str | Path) -> LearnedScore:
        """Read a saved score.

        Raises:
            CalibrationError: The file is absent or not a learned score.
        """
        try:
            return cls.from_config(json.loads(Path(path).read_text("utf-8")))
        except OSError as error:
            raise CalibrationError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise CalibrationError(f"{path} is not JSON: {error}") from error


def _quantile(ordered: Sequence[float], level: float) -> float:
    place = level * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
