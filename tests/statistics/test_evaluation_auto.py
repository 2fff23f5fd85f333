"""AutoPolicy: what it recommends, what it certifies, and when the simplest is as good."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cascadellm import MetaVerifier, Route, SelfVerify, Threshold, mean_logprob
from cascadellm.calibration import (
    CalibrationError,
    CalibrationRecords,
    InsufficientDataError,
    calibrate_threshold,
)
from cascadellm.errors import ConfigurationError
from cascadellm.evaluation import AutoPolicy, auto
from tests.engine.deciding import decide, model


def records(n: int, seed: int, *, others: int = 3, better: bool = False) -> CalibrationRecords:
    """Return records with a score, columns that say as much, and maybe one that says more."""
    rng = np.random.default_rng(seed)
    hard = rng.random(n)
    columns = {f"other_{i}": -hard + 0.5 * rng.normal(size=n) for i in range(others)}
    if better:
        columns["verified"] = np.clip(1 - hard + 0.05 * rng.normal(size=n), 0, 1)
    return CalibrationRecords.of(
        -hard + 0.5 * rng.normal(size=n),
        np.column_stack([rng.random(n) > hard, rng.random(n) > 0.1 * hard]).astype(float),
        columns=columns,
        prompt_length=rng.integers(10, 90, n).astype(float),
        ids=[f"{seed}-{i}" for i in range(n)],
        score_names=("mean_logprob",),
    )


def simplest(runs: int) -> float:
    """Return how often the simplest is recommended where nothing else says more."""
    found = [
        AutoPolicy.fit(records(400, seed), target_risk=0.3, resamples=150).recommended
        for seed in range(runs)
    ]
    return sum((one.kind, one.name) == ("score", "mean_logprob") for one in found) / runs


def test_choice_when_the_simplest_is_as_good() -> None:
    """Among columns that say as much the plain score is recommended, and the sentence says why."""
    assert 0.8 < simplest(12)
    told = AutoPolicy.fit(records(400, 1), target_risk=0.3, resamples=150)
    assert "mean_logprob" in told.sentence
    assert "mean_logprob" in str(told)


def test_choice_when_the_best_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check has power: taking whatever scores highest is noticed."""
    compared = auto._compared

    def greedy(*given: Any) -> Any:
        found = compared(*given)
        ahead = [one for one in found if one.behind is None]
        return (*ahead, *(_far(one) for one in found if one.behind is not None))

    monkeypatch.setattr(auto, "_compared", greedy)
    assert simplest(12) < 0.8


def _far(one: Any) -> Any:
    from dataclasses import replace

    return replace(one, behind=(0.1, 0.2))


def test_choice_when_another_score_is_better() -> None:
    """A column that says clearly more is recommended, and beats the simplest on fresh records."""
    found = AutoPolicy.fit(records(1500, 2, better=True), target_risk=0.1, resamples=200)

    assert "verified" == found.recommended.source
    assert found.calibration is not None
    assert 0 < found.calibration.share_kept < 1
    assert "verified" in found.sentence
    order = [one.name for one in found.candidates]
    assert order.index("verified") < order.index("mean_logprob") < order.index("prompt shortness")


def check_certified(runs: int) -> None:
    """Check that the certified risk holds on fresh records as often as is promised."""
    fresh = records(20_000, 999, better=True)
    assert fresh.correct is not None
    loss = np.maximum(0.0, fresh.correct[:, 1] - fresh.correct[:, 0])
    broken = certified = 0
    for seed in range(runs):
        found = AutoPolicy.fit(records(700, seed, better=True), target_risk=0.15, resamples=40)
        if found.calibration is None:
            continue
        certified += 1
        one = found.recommended
        score = auto._scored(fresh, one).scores[:, 0]
        broken += float((loss * (score >= found.calibration.threshold)).mean()) > 0.15
    # 5% promised; more than 5 of 30 has a chance below 0.4%
    assert broken <= 5
    assert certified >= 0.7 * runs


def test_threshold_when_it_is_certified() -> None:
    """The risk of the recommended policy is kept, the choice among candidates included."""
    check_certified(30)


def test_threshold_when_the_choice_has_seen_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check has power: a threshold taken where the records just allow it is noticed."""
    certify = calibrate_threshold
    monkeypatch.setattr(
        auto, "calibrate_threshold", lambda data, **o: certify(data, **{**o, "confidence": 0.05})
    )
    with pytest.raises(AssertionError):
        check_certified(30)


def test_policy_when_it_is_used() -> None:
    """The recommended policy decides in a cascade by the certified threshold."""
    plain = AutoPolicy.fit(records(600, 3, others=0), target_risk=0.25, resamples=100)
    assert plain.calibration is not None
    policy = plain.policy()
    assert Threshold(mean_logprob, plain.calibration.threshold) == policy
    assert not decide(policy, "yes", logprob=0.0).defer

    better = AutoPolicy.fit(records(1500, 2, better=True), target_risk=0.1, resamples=100)
    assert better.calibration is not None
    with pytest.raises(ConfigurationError, match="reads 'verified'; say what it is"):
        better.policy()
    verify = better.policy({"verified": SelfVerify(0.5, 2, model=model("True"))})
    assert better.calibration.threshold == pytest.approx(
        getattr(verify, "threshold", None) or -getattr(verify, "worth", 0.0)
    )


@pytest.mark.parametrize("kind", ["length", "gain", "learned"])
def test_policy_when_it_was_fitted(kind: str) -> None:
    """Length, gain maps and learned scores become policies that decide as they were judged."""
    rng = np.random.default_rng(0)
    base = records(600, 4, others=0)
    score = base.scores[:, 0]
    columns = {"mean": score, "first": rng.normal(size=600)}
    data = CalibrationRecords.of(
        score, base.correct, columns=columns, prompt_length=base.prompt_length,
        score_names=("mean_logprob",),
    )  # fmt: skip
    found = AutoPolicy.fit(data, target_risk=0.25, resamples=50)
    one = next(c for c in found.candidates if c.kind == kind)
    judged = auto._scored(data, one).scores[:, 0]
    assert np.isfinite(judged).all()
    from dataclasses import replace

    policy = replace(found, recommended=one).policy()
    assert isinstance(policy, {"length": Route, "gain": MetaVerifier, "learned": Threshold}[kind])


def test_records_when_they_cannot_be_used() -> None:
    """What cannot be compared is refused with what to do; what is not certified is said."""
    with pytest.raises(InsufficientDataError, match="at least 80"):
        AutoPolicy.fit(records(79, 0), target_risk=0.1)
    three = CalibrationRecords.of(np.zeros((90, 2)), np.ones((90, 3)))
    with pytest.raises(CalibrationError, match="fit_cascade_routing"):
        AutoPolicy.fit(three, target_risk=0.1)
    with pytest.raises(CalibrationError, match="grade the records"):
        AutoPolicy.fit(CalibrationRecords.of(np.zeros(90)), target_risk=0.1)
    with pytest.raises(CalibrationError, match="nothing to compare"):
        AutoPolicy.fit(CalibrationRecords.of(np.zeros(200), np.ones((200, 2))), target_risk=0.1)
    rng = np.random.default_rng(1)
    guess = (rng.random((400, 2)) < (0.3, 0.9)).astype(float)
    noise = CalibrationRecords.of(rng.normal(size=400), guess)
    hopeless = AutoPolicy.fit(noise, target_risk=0.05, resamples=50)
    assert hopeless.calibration is None
    assert "Nothing is certified" in hopeless.sentence
    with pytest.raises(CalibrationError, match="no certified threshold"):
        hopeless.policy()
