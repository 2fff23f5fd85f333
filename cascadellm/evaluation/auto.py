"""Choose a policy from records: candidates compared cross-validated, one of them certified."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from scipy import stats

from cascadellm.answer import Request
from cascadellm.calibration.features import LearnedScore, token_features
from cascadellm.calibration.fit import apply_to, fit_learned_score
from cascadellm.calibration.gain import GainMap
from cascadellm.calibration.gain_fit import fit_gain_map
from cascadellm.calibration.records import (
    CalibrationRecord,
    CalibrationRecords,
    Floats,
    as_records,
)
from cascadellm.calibration.result import Calibration, Interval
from cascadellm.calibration.threshold import calibrate_threshold
from cascadellm.errors import (
    CalibrationError,
    ConfigurationError,
    InsufficientDataError,
    NoValidThresholdError,
)
from cascadellm.evaluation.compare import PolicyResult, evaluate
from cascadellm.policies import MetaVerifier, Policy, Route, Threshold
from cascadellm.scores import SCORES

__all__ = ["AutoPolicy", "Candidate", "shortness"]

Kind = Literal["score", "length", "gain", "learned"]
_ORDER: tuple[Kind, ...] = ("score", "length", "gain", "learned")
_LEAST = 80
_FOLDS = 5
_MOST = 1000
_TOKENS = frozenset(token_features([-1.0], entropies=[0.0], prompt_length=1.0))
_LENGTH = "prompt_length"


def shortness(request: Request) -> float:
    """Return minus the length of the question in characters."""
    return -float(len(request.text))


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way of deciding, judged on records that it was not fitted on.

    Attributes:
        name: Its name.
        kind: `score` (a score as it is), `length` (of the question), `gain` (a score read by a
            gain map), `learned` (from all token features).
        norm: How well it defers: 0 = random, 1 = oracle.
        interval: 95% interval of it.
        behind: Interval of how far it is behind the best, widened for the number of candidates;
            None for the best.
        source: Score or column that it reads.
        fitted: What was fitted, None for a score as it is.
    """

    name: str
    kind: Kind
    norm: float
    interval: Interval
    behind: Interval | None
    source: str
    fitted: LearnedScore | GainMap | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class AutoPolicy:
    """Which policy records recommend at a boundary, and its certified threshold.

    Attributes:
        candidates: All candidates, best first.
        recommended: The simplest candidate that is not clearly behind the best.
        calibration: Its threshold, certified on records that played no part in the choice;
            None where nothing is certified.
        sentence: The finding in words.
    """

    candidates: tuple[Candidate, ...]
    recommended: Candidate
    calibration: Calibration | None
    sentence: str

    @classmethod
    def fit(
        cls,
        records: CalibrationRecords | Iterable[CalibrationRecord],
        *,
        target_risk: float,
        confidence: float = 0.95,
        loss: str = "one_sided",
        share: float = 0.5,
        resamples: int = 500,
        seed: int = 0,
    ) -> AutoPolicy:
        """Compare the scores and columns of records, and what can be fitted on them.

        Args:
            records: Graded records of two tiers. The score of the boundary is the simplest
                candidate; columns are others, in the order of their names.
            target_risk: Promised upper end of the risk.
            confidence: Probability that the promise holds.
            loss: As in `calibrate_threshold`.
            share: Share of the records for the choice; the rest certifies.
            resamples: Bootstrap resamples of the comparison.
            seed: Seed of every random choice.

        Raises:
            InsufficientDataError: Fewer than 80 graded records, or too few to certify.
            CalibrationError: The records are not graded, or have more than two tiers.
        """
        data = _graded(as_records(records))
        choosing, certifying = data.split(share, seed=seed)
        candidates = _compared(choosing, resamples, seed)
        chosen = min(
            (one for one in candidates if one.behind is None or one.behind[0] <= 0),
            key=lambda one: (_ORDER.index(one.kind), one.source != data.score_names[0], -one.norm),
        )
        failed = ""
        calibration: Calibration | None = None
        try:
            calibration = calibrate_threshold(
                _scored(certifying, chosen),
                target_risk=target_risk,
                confidence=confidence,
                loss=loss,
                seed=seed,
            )
        except NoValidThresholdError as error:
            failed = str(error)
        sentence = _sentence(candidates, chosen, calibration, failed)
        return cls(candidates, chosen, calibration, sentence)

    def policy(self, scores: Mapping[str, Any] | None = None) -> Policy:
        """Return the recommended policy.

        Args:
            scores: Name -> the score that stands under it in the records: a function of an
                answer, or a policy with a threshold such as `SelfVerify`. The project's own
                scores need not be named.

        Raises:
            CalibrationError: Nothing was certified.
            ConfigurationError: It is not said what a name stands for.
        """
        if self.calibration is None:
            raise CalibrationError(f"there is no certified threshold: {self.sentence}")
        one, threshold = self.recommended, self.calibration.threshold
        if one.kind == "length":
            return Route(shortness, threshold)
        if isinstance(one.fitted, LearnedScore):
            return Threshold(one.fitted, threshold)
        given = (scores or {}).get(one.source) or SCORES.get(one.source)
        if given is None:
            raise ConfigurationError(
                f"the recommended policy reads {one.source!r}; say what it is: "
                f"policy({{{one.source!r}: score}})"
            )
        if isinstance(one.fitted, GainMap):
            verifier = given if isinstance(given, Policy) else Threshold(given, 0.0)
            # accepted iff minus the gain reaches the threshold
            return MetaVerifier(verifier, one.fitted, worth=-threshold)
        if isinstance(given, Policy):
            return replace(given, threshold=threshold)  # type: ignore[type-var]
        return Threshold(given, threshold)

    def __str__(self) -> str:
        rows = [f"{'candidate':28} {'norm':>6} {'95%':>16}  {'behind the best':>16}"]
        for one in self.candidates:
            behind = "" if one.behind is None else _span(one.behind)
            mark = "*" if one is self.recommended else " "
            rows.append(
                f"{mark}{one.name[:27]:27} {one.norm:6.3f} {_span(one.interval):>16}  {behind:>16}"
            )
        return "\n".join([*rows, self.sentence])


def _graded(data: CalibrationRecords) -> CalibrationRecords:
    if data.tiers != 2:
        raise CalibrationError(
            f"AutoPolicy chooses for two tiers, these records have {data.tiers}; for more see "
            "fit_cascade_routing"
        )
    if data.correct is None:
        raise CalibrationError("AutoPolicy reads `correct`; grade the records first")
    known = ~np.isnan(data.correct).any(axis=1)
    if known.sum() < _LEAST:
        raise InsufficientDataError(
            f"AutoPolicy needs at least {_LEAST} graded records, {int(known.sum())} are given",
            needed=_LEAST,
            given=int(known.sum()),
        )
    return data.take(np.flatnonzero(known))


def _compared(data: CalibrationRecords, resamples: int, seed: int) -> tuple[Candidate, ...]:
    found = _candidates(data, seed)
    told = evaluate(
        data, {name: score for name, (_, score) in found.items()}, resamples=resamples, seed=seed
    )
    results: dict[str, PolicyResult] = {name: told[name] for name in found}
    best = max(results, key=lambda name: results[name].values["norm"])
    rows = []
    for name, (one, _) in found.items():
        value = results[name].values["norm"]
        interval = results[name].intervals.get("norm", (math.nan, math.nan))
        behind = None
        if name != best:
            behind = _widened(results[best].against.get(name, (0.0, 0.0)), len(found) - 1)
        rows.append(replace(one, norm=value, interval=interval, behind=behind))
    return tuple(sorted(rows, key=lambda one: -one.norm))


def _candidates(data: CalibrationRecords, seed: int) -> dict[str, tuple[Candidate, Floats]]:
    assert data.correct is not None
    raw = {data.score_names[0]: data.scores[:, 0]}
    raw |= {name: data.columns[name] for name in sorted(data.columns) if name not in raw}
    raw = {
        name: score for name, score in raw.items() if np.unique(score[~np.isnan(score)]).size > 1
    }
    found: dict[str, tuple[Candidate, Floats]] = {}

    def add(name: str, kind: Kind, score: Floats, source: str, fitted: Any = None) -> None:
        empty = (math.nan, math.nan)
        found[name] = (Candidate(name, kind, math.nan, empty, None, source, fitted), score)

    for name, score in raw.items():
        add(name, "score", score, name)
    if data.prompt_length is not None and np.ptp(data.prompt_length) > 0:
        add("prompt shortness", "length", -data.prompt_length, _LENGTH)
    for name, score in raw.items():
        made = _gains(score, data.correct, seed)
        if made is not None:
            add(f"gain at {name}", "gain", made[1], name, made[0])
    features = {name: score for name, score in raw.items() if name in _TOKENS}
    if len(features) > 1:
        fitted = fit_learned_score(features, data.correct, ids=data.ids, seed=seed)
        add("learned", "learned", fitted.out_of_fold, "", fitted.score)
    if not found:
        raise CalibrationError("no score or column takes two values; there is nothing to compare")
    return found


def _gains(score: Floats, correct: Floats, seed: int) -> tuple[GainMap, Floats] | None:
    """Return a gain map of all records, and minus the gains by maps that had not seen each."""
    order = np.random.default_rng([seed, 4]).permutation(len(score))
    fold = order % _FOLDS
    out = np.full(len(score), np.nan)
    try:
        for k in range(_FOLDS):
            # a kernel's time grows with the square, and its width is known well before
            seen = order[fold[order] != k][:_MOST]
            out[fold == k] = _minus(
                fit_gain_map(score[seen], correct[seen], seed=seed), score[fold == k]
            )
        return fit_gain_map(score[order[:_MOST]], correct[order[:_MOST]], seed=seed), out
    except CalibrationError:
        # too few of these scores are known
        return None


def _minus(gains: GainMap, score: Floats) -> Floats:
    found: Floats = np.where(np.isnan(score), np.nan, -np.interp(score, gains.scores, gains.gains))
    return found


def _scored(data: CalibrationRecords, chosen: Candidate) -> CalibrationRecords:
    """Return the records with the score of the chosen candidate."""
    if isinstance(chosen.fitted, LearnedScore):
        own = {data.score_names[0]: data.scores[:, 0]}
        return apply_to(chosen.fitted, data, {**data.columns, **own})
    if chosen.kind == "length":
        assert data.prompt_length is not None
        score = -data.prompt_length
    elif chosen.source == data.score_names[0]:
        score = data.scores[:, 0]
    else:
        score = data.columns[chosen.source]
    if isinstance(chosen.fitted, GainMap):
        score = _minus(chosen.fitted, score)
    elif chosen.source == data.score_names[0]:
        return data
    return replace(data, scores=score[:, None], score_names=(chosen.name,), score_ranges=())


def _widened(interval: Interval, count: int) -> Interval:
    """Widen a 95% interval so that as many of them hold together."""
    middle, half = (interval[0] + interval[1]) / 2, (interval[1] - interval[0]) / 2
    half *= float(stats.norm.ppf(1 - 0.025 / max(1, count)) / stats.norm.ppf(0.975))
    return middle - half, middle + half


def _sentence(
    candidates: tuple[Candidate, ...],
    chosen: Candidate,
    calibration: Calibration | None,
    failed: str,
) -> str:
    best = candidates[0]
    if chosen is best:
        words = f"{chosen.name} (norm {chosen.norm:.3f}) is the best of {len(candidates)}"
        simpler = [one for one in candidates if one.kind == "score" and one is not chosen]
        if simpler and chosen.kind != "score":
            words += f"; {simpler[0].name} alone is {_span(simpler[0].behind)} behind"
    else:
        words = (
            f"{chosen.name} (norm {chosen.norm:.3f}) is as good as the best of {len(candidates)}, "
            f"{best.name} ({best.norm:.3f}): it is {_span(chosen.behind)} behind"
        )
    if calibration is None:
        return f"{words}. Nothing is certified: {failed}"
    return (
        f"{words}. Accepting from {calibration.threshold:.4g} on keeps "
        f"{calibration.share_kept:.0%} with a {calibration.loss} risk of at most "
        f"{calibration.target_risk:g} at {calibration.confidence:.0%} confidence."
    )


def _span(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval[0]:+.3f} to {interval[1]:+.3f}"
