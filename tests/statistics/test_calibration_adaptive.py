"""The adaptive threshold, the budget in cost, and thresholds for several boundaries."""

from __future__ import annotations

import json
import math
import threading

import numpy as np
import pytest

from cascadellm.answer import Answer, Request, TokenScore
from cascadellm.calibration import boundaries
from cascadellm.calibration.adaptive import AdaptiveThreshold
from cascadellm.calibration.boundaries import calibrate_cascade, search_cascade
from cascadellm.calibration.budget import calibrate_budget
from cascadellm.calibration.records import CalibrationRecords
from cascadellm.calibration.risks import Risk, calibrate_risks
from cascadellm.calibration.search import answered_by, cascade_loss
from cascadellm.calibration.threshold import first_index
from cascadellm.cascade import Cascade
from cascadellm.drivers import drive
from cascadellm.errors import CalibrationError, ConfigurationError, NoValidThresholdError
from cascadellm.perform import LocalPerformer
from cascadellm.policies.config import policy_from_config
from cascadellm.scores import mean_logprob
from cascadellm.testing import FakeModel
from langchain_cascade.describe import describe


def _policy(**options):
    settings = {"target": 0.1, "low": -2.0, "high": 0.0, **options}
    return AdaptiveThreshold(mean_logprob, -0.5, **settings)


def test_feedback_moves_the_decision():
    """Losses raise the threshold until an answer that was accepted is deferred."""

    def small(*_, **__):
        return Answer("s", tokens=(TokenScore("s", -0.4),))

    policy = _policy()
    cascade = Cascade([FakeModel(small, name="small"), FakeModel("l", name="large")], policy)

    def ask():
        return drive(cascade.plan(Request([{"role": "user", "content": "q"}])), LocalPerformer())

    assert "s" == ask().answer.text
    for _ in range(10):
        policy.observe(loss=1.0)
    found = ask()
    assert "l" == found.answer.text
    assert policy.threshold == found.trace.attempts[0].threshold


def test_mean_loss_approaches_the_target():
    """In the long run the loss of the feedback is the target, also after the law changes."""
    rng = np.random.default_rng(0)
    policy = AdaptiveThreshold(mean_logprob, 0.2, target=0.1, low=0, high=1, rate=0.02)
    for wrong in (0.5, 0.8):
        losses = []
        for _ in range(8000):
            score = rng.random()
            accepted = score >= policy.threshold
            loss = float(accepted and rng.random() < wrong * (1 - score))
            policy.observe(loss=loss, accepted=bool(accepted))
            losses.append(loss)
        assert 0.1 == pytest.approx(np.mean(losses[2000:]), abs=0.015)


def test_deferral_rate_approaches_its_target():
    """Steered by deferrals, the share of deferred calls becomes the target."""
    rng = np.random.default_rng(1)
    policy = AdaptiveThreshold(mean_logprob, 0.9, target=0.3, low=0, high=1, rate=0.02)
    deferred = []
    for _ in range(6000):
        deferred.append(rng.random() < policy.threshold)
        policy.observe_deferral(deferred=bool(deferred[-1]))
    assert 0.3 == pytest.approx(np.mean(deferred[2000:]), abs=0.02)


def test_step_and_ends_are_bounded():
    """No single move exceeds the step, and the threshold stays between its ends."""
    policy = _policy(rate=10.0, step=0.1)
    assert -0.4 == pytest.approx(policy.observe(loss=1.0))
    for _ in range(100):
        policy.observe(loss=1.0)
    assert 0.0 == policy.threshold
    for _ in range(100):
        policy.observe(loss=0.0)
    assert -2.0 == policy.threshold


def test_state_is_saved_and_restored(tmp_path):
    """A restored threshold stands where the saved one stood."""
    first, second = _policy(), _policy()
    for _ in range(7):
        first.observe(loss=1.0)
    first.save(tmp_path / "threshold.json")
    second.restore(json.loads((tmp_path / "threshold.json").read_text()))
    assert (first.threshold, 7) == (second.threshold, second.observations)
    with pytest.raises(CalibrationError, match="expected the state"):
        second.restore({"schema": "x"})


def test_config_holds_the_settings_and_not_the_state():
    """Plain data make an equal policy that starts where the settings say."""
    first = _policy(follow="deferral")
    first.observe(loss=1.0)
    second = policy_from_config(json.loads(json.dumps(first.to_config())))
    assert first == second
    assert (-0.5, math.inf) == (second.threshold, second.step)
    assert describe(first) == describe(second)


def test_concurrent_feedback_loses_no_step():
    """Steps from many threads all count."""
    policy = _policy(rate=0.0001, low=-100, high=100)
    threads = [
        threading.Thread(target=lambda: [policy.observe(loss=1.0) for _ in range(200)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1600 == policy.observations
    assert -0.5 + 1600 * 0.0001 * 0.9 == pytest.approx(policy.threshold)


@pytest.mark.parametrize(
    "options", [{"target": 0}, {"low": 1.0}, {"rate": 0}, {"step": 0}, {"high": math.inf}]
)
def test_wrong_settings_are_refused(options):
    """A setting out of range is an error at construction."""
    with pytest.raises(ConfigurationError, match="must"):
        _policy(**options)


def _costly(n=800, seed=0):
    rng = np.random.default_rng(seed)
    cost = np.column_stack([np.full(n, 0.001), rng.uniform(0.005, 0.02, n)])
    return CalibrationRecords.of(rng.random(n), cost=cost)


def test_cost_budget_with_fixed_costs_is_a_deferral_rate():
    """A budget between the two tiers' costs is translated exactly."""
    made = calibrate_budget(_costly(), cost_usd=0.006, tier_costs=(0.001, 0.01), grid=_grid())
    same = calibrate_budget(_costly(), deferral_rate=0.5, grid=_grid())
    assert made.threshold == same.threshold
    assert "cost" == made.loss


def _grid():
    return np.linspace(0, 1, 101)


def test_cost_budget_with_varying_costs_needs_a_cap():
    """Recorded costs that vary are certified against a cap, and refused without one."""
    made = calibrate_budget(_costly(), cost_usd=0.008, cost_cap_usd=0.05, grid=_grid())
    records = _costly(200_000, seed=1)
    deferred = records.scores[:, 0] < made.threshold
    assert (records.cost[:, 0] + deferred * records.cost[:, 1]).mean() <= 0.008
    assert deferred.mean() > 0.2
    with pytest.raises(CalibrationError, match="cost_cap_usd"):
        calibrate_budget(_costly(), cost_usd=0.008)
    with pytest.raises(CalibrationError, match="must exceed"):
        calibrate_budget(_costly(), cost_usd=0.008, cost_cap_usd=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one"),
        ({"deferral_rate": 0.3, "cost_usd": 1.0}, "exactly one"),
        ({"cost_usd": 0.1, "tier_costs": (0.2, 1.0)}, "must lie between"),
        ({"deferral_rate": 1.5}, "strictly between"),
    ],
)
def test_wrong_budgets_are_named(options, message):
    """Each wrong budget gives one sentence."""
    with pytest.raises(CalibrationError, match=message):
        calibrate_budget(_costly(), **options)


def test_missing_scores_use_up_the_budget():
    """Scores that are missing always defer, so a small budget cannot be promised."""
    score = np.where(np.arange(500) % 2 == 0, np.nan, 0.5)
    with pytest.raises(NoValidThresholdError, match="250 of 500 scores are missing"):
        calibrate_budget(CalibrationRecords.of(score), deferral_rate=0.3, grid=[0, 1])


def test_quality_and_budget_may_exclude_each_other():
    """Where the two ends do not meet, the error says which share each of them needs."""
    rng = np.random.default_rng(2)
    score = rng.random(1000)
    correct = np.column_stack([rng.random(1000) < score, np.ones(1000)])
    records = CalibrationRecords.of(score, correct)
    with pytest.raises(NoValidThresholdError, match="exclude each other"):
        calibrate_risks(records, [Risk("one_sided", 0.02)], deferral_rate=0.3, grid=_grid())
    cheap, best = (
        calibrate_risks(
            records, [Risk("one_sided", 0.1)], deferral_rate=0.8, grid=_grid(), prefer=prefer
        )
        for prefer in ("cost", "quality")
    )
    assert cheap.threshold < best.threshold
    assert (("one_sided", 0.1), ("deferral", 0.8)) == cheap.targets


def _three(n=1500, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.random((n, 2))
    correct = np.column_stack(
        [rng.random(n) < scores[:, 0], rng.random(n) < 0.3 + 0.7 * scores[:, 1], np.ones(n)]
    )
    cost = np.tile([0.1, 0.3, 1.0], (n, 1))
    return CalibrationRecords.of(scores, correct, cost=cost)


def test_answering_tier_is_the_first_whose_score_passes():
    """The first passing score answers, a missing one defers, else the last tier answers."""
    records = CalibrationRecords.of([[0.9, 0], [0.1, 0.9], [np.nan, 0.9], [0.1, np.nan]])
    assert [0, 1, 1, 2] == answered_by(records, np.array([0.5, 0.5])).tolist()


def test_hopeless_boundary_defers_everything():
    """A boundary at which nothing can be certified gets the threshold inf and a note."""
    records = _three()
    correct = records.correct.copy()
    correct[:, 0] = 0
    made = calibrate_cascade(
        CalibrationRecords.of(records.scores, correct, cost=records.cost),
        target_risk=0.1,
        grids=[[0.5, 0.2], _grid()],
    )
    assert math.inf == made.thresholds[0]
    assert math.isfinite(made.thresholds[1])
    assert made.notes[0].startswith("boundary 0 defers everything")
    assert made.cost_usd == pytest.approx(0.1 + 0.3 + (1 - made.share_kept))


def test_joint_search_is_certified_on_other_records():
    """Joint thresholds come with the number of records that certified them."""
    made = search_cascade(_three(), target_risk=0.1)
    assert 750 == made.n
    assert made.risk <= 0.1
    assert 0 < made.share_kept < 1
    assert "joint search on 750 records" in made.method


def _partly_graded(place):
    records = _three(4000, seed=4)
    correct, agree = records.correct.copy(), records.scores * 0
    missing = np.random.default_rng(1).random(len(records)) < 0.2
    correct[missing, place] = np.nan
    agree[missing, min(place, 1)] = np.nan
    return CalibrationRecords.of(records.scores, correct, agree=agree), int(missing.sum())


@pytest.mark.parametrize("loss", ["one_sided", "signed"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_joint_search_leaves_out_what_is_not_graded(loss, place):
    """A missing grade is no evidence: the promise rests on records graded for every tier."""
    records, missing = _partly_graded(place)
    made = search_cascade(records, target_risk=0.1, loss=loss)
    whole = _three(200_000, seed=5)
    answered = answered_by(whole, np.array(made.thresholds))
    assert cascade_loss(whole, answered, loss).mean() <= 0.1
    assert (len(records) - missing + 1) // 2 == made.n
    assert f"{missing} of 4000 records lack a tier's label and were left out" in made.notes


def test_joint_search_that_passes_ungraded_records_is_detected(monkeypatch):
    """Where ungraded records stay in and an unknown p-value passes, the check above sees it."""
    real = boundaries._whole_pvalue
    monkeypatch.setattr(boundaries, "labelled", lambda records, loss: records)
    monkeypatch.setattr(
        boundaries, "_whole_pvalue", lambda *a, **k: np.nan_to_num(real(*a, **k), nan=0.0)
    )
    with pytest.raises(AssertionError, match=r"<= 0\.1"):
        test_joint_search_leaves_out_what_is_not_graded("one_sided", 2)


def test_joint_search_needs_one_record_with_every_label():
    """Where no record is graded for every tier, the error says so; NaN never certifies."""
    records = _three()
    correct = records.correct.copy()
    correct[:, 1] = np.nan
    with pytest.raises(CalibrationError, match="none of the 1500 records is labelled for every"):
        search_cascade(CalibrationRecords.of(records.scores, correct), target_risk=0.1)
    unlabelled = CalibrationRecords.of(records.scores, agree=records.scores * np.nan)
    with pytest.raises(CalibrationError, match="calibrate one boundary"):
        search_cascade(unlabelled, target_risk=0.1, loss="disagreement")
    assert 0 == first_index(np.array([0.01, np.nan, 0.01]), 0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "selective"}, "use search_cascade"),
        ({"shares": [1.0]}, "2 positive numbers"),
        ({"shares": [0.9, 0.9]}, "sum to 1"),
    ],
)
def test_wrong_shares_are_named(options, message):
    """Each wrong argument gives one sentence."""
    with pytest.raises(CalibrationError, match=message):
        calibrate_cascade(_three(), target_risk=0.1, **options)
