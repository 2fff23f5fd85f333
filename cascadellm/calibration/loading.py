"""Read records of either kind: scored ones, or collected answers that are scored now."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cascadellm.answer import Answer
from cascadellm.calibration.collected import read_collected, score_name, to_records
from cascadellm.calibration.features import LearnedScore
from cascadellm.calibration.jsonl import read_lines, read_records
from cascadellm.calibration.records import CalibrationRecords
from cascadellm.errors import CalibrationError, ConfigurationError
from cascadellm.scores import SCORES, score_from_config

__all__ = ["load_records", "score_called"]

Score = Callable[[Answer], float | None]


def load_records(path: str | Path, scores: Sequence[str] = ()) -> CalibrationRecords:
    """Read a file of records, or of collected answers.

    Args:
        path: JSONL file.
        scores: For collected answers: the score of every boundary, then others to compare;
            by default `mean_logprob`, beside every other score that the answers carry. Scored
            records have their scores already.

    Raises:
        CalibrationError: The file is unusable, with the number of the line.
        ConfigurationError: A score is unknown.
    """
    _, first = next(read_lines(path), (0, None))
    if first is None:
        raise CalibrationError(f"{path} holds no records")
    if "tier" not in first or "text" not in first:
        return read_records(path)
    collected, _ = read_collected(path)
    named = [score_called(name) for name in scores] or [SCORES["mean_logprob"]]
    others = named[1:] or [s for s in SCORES.values() if s.name != score_name(named[0])]
    records = to_records(collected, named[0], columns={score_name(s): s for s in others})
    if scores:
        return records
    present = {k: v for k, v in records.columns.items() if not np.isnan(v).all()}
    return replace(records, columns=present)


def score_called(name: str) -> Any:
    """Return a score by its name, `quantile_logprob(0.1)`, or the path of a learned one.

    Raises:
        ConfigurationError: There is no such score.
    """
    if name.endswith(".json"):
        return LearnedScore.load(name)
    if name.startswith("quantile_logprob(") and name.endswith(")"):
        try:
            level = float(json.loads(name[17:-1]))
        except ValueError:
            raise ConfigurationError(f"expected quantile_logprob(0.1), got {name!r}") from None
        return score_from_config({"type": "quantile_logprob", "level": level})
    if name not in SCORES:
        raise ConfigurationError(
            f"unknown score {name!r}; known are {', '.join(sorted(SCORES))}, "
            "quantile_logprob(LEVEL), and the path of a learned score (.json)"
        )
    return SCORES[name]
