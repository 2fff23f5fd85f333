"""Deferral curves and their metrics, against hand values, references and a known law."""

from __future__ import annotations

import html
import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cascadellm.calibration.records import CalibrationRecords
from cascadellm.calibration.threshold import calibrate_threshold
from cascadellm.errors import CalibrationError
from cascadellm.evaluation import compare
from cascadellm.evaluation.compare import evaluate
from cascadellm.evaluation.curve import Curve, Ordering, Pair
from cascadellm.evaluation.plot import figure, save_plot
from cascadellm.report.evaluation import render_evaluation

_spec = importlib.util.spec_from_file_location("known_law", Path(__file__).parent / "known_law.py")
law = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(law)


def _records(n=400, seed=0, **extra):
    return law.draw(n, np.random.default_rng(seed)), extra


def test_curve_when_scores_differ():
    """Each node of the curve is the mean quality after deferring the lowest scores."""
    records = CalibrationRecords.of([0.1, 0.2, 0.3, 0.4], [[0, 1], [1, 0], [0, 1], [1, 1]])
    pair = Pair.of(records)
    curve = Curve.of(pair, Ordering.of(records.scores[:, 0]))
    assert [0, 0.25, 0.5, 0.75, 1] == curve.share.tolist()
    assert [0.5, 0.75, 0.5, 0.75, 0.75] == curve.quality.tolist()


def test_ties_are_averaged_over_all_orders():
    """The area with ties is the mean area over every order of the tied questions."""
    rng = np.random.default_rng(1)
    correct = rng.integers(0, 2, (30, 2)).astype(float)
    score = rng.integers(0, 4, 30).astype(float)
    tied = evaluate(CalibrationRecords.of(score, correct), resamples=0)["score"].values["area"]
    areas = []
    for _ in range(800):
        broken = score + rng.random(30) * 1e-6
        areas.append(
            evaluate(CalibrationRecords.of(broken, correct), resamples=0)["score"].values["area"]
        )
    assert np.mean(areas) == pytest.approx(tied, abs=4 * np.std(areas) / math.sqrt(800))


def test_row_order_does_not_matter():
    """Shuffling the rows changes no metric, also with ties and missing scores."""
    records = law.draw(300, np.random.default_rng(2))
    score = np.round(records.scores[:, 0], 1)
    score[::7] = np.nan
    tied = CalibrationRecords.of(score, records.correct)
    order = np.random.default_rng(3).permutation(300)
    first = evaluate(tied, resamples=0)["score"].values
    second = evaluate(tied.take(order), resamples=0)["score"].values
    for name, value in first.items():
        assert value == pytest.approx(second[name], nan_ok=True)


def test_missing_scores_defer_before_all_others():
    """A NaN score defers before the lowest real score, -inf included."""
    ordering = Ordering.of(np.array([0.5, np.nan, -np.inf, 0.2, np.nan]))
    assert {1, 4} == set(ordering.order[:2].tolist())
    assert [2, 3, 0] == ordering.order[2:].tolist()
    assert 2 == ordering.missing
    assert [0, 2, 3, 4] == ordering.starts.tolist()


def test_random_and_oracle_are_the_ends_of_norm():
    """Random has norm 0, APGR 0.5, CPT 50% and 80%; the oracle has norm 1."""
    found = evaluate(law.draw(500, np.random.default_rng(4)), resamples=0)
    random = found["random"].values
    assert (0, 0.5, 0.5, 0.8) == pytest.approx(
        tuple(random[k] for k in ("norm", "apgr", "cpt50", "cpt80"))
    )
    assert 1 == pytest.approx(found["oracle"].values["norm"])
    assert found["score"].values["area"] <= found["oracle"].values["area"]


def test_error_auc_equals_pair_counting():
    """The error AUC is the share of right-wrong pairs in order, ties counted half."""
    rng = np.random.default_rng(5)
    correct = rng.integers(0, 2, (60, 2)).astype(float)
    score = rng.integers(0, 9, 60).astype(float)
    right, wrong = score[correct[:, 0] == 1], score[correct[:, 0] == 0]
    pairs = (right[:, None] > wrong) + 0.5 * (right[:, None] == wrong)
    found = evaluate(CalibrationRecords.of(score, correct), resamples=0)["score"].values
    assert pairs.mean() == pytest.approx(found["error_auc"])


def test_metrics_of_the_known_law():
    """Area, APGR, CPT and QNC of a known law agree with its reference values."""
    records = law.draw(400_000, np.random.default_rng(6))
    found = evaluate(records, resamples=0, margin=0.03, tier_costs=(0.1, 1))
    score, oracle = found["score"].values, found["oracle"].values
    assert (0.8271, 0.7940, 0.8821) == pytest.approx(
        (score["area"], found["random"].values["area"], oracle["area"]), abs=2e-3
    )
    assert (0.6722, 0.955) == pytest.approx((score["apgr"], oracle["apgr"]), abs=8e-3)
    assert (0.2797, 0.5378) == pytest.approx((score["cpt50"], score["cpt80"]), abs=8e-3)
    assert 0.697 == pytest.approx(score["qnc"], abs=1e-2)


def test_qnc_peak_and_lift_by_hand():
    """Least cost, best quality and gain per cost of four questions, computed with a pencil."""
    records = CalibrationRecords.of([0.1, 0.2, 0.3, 0.4], [[0, 1], [0, 1], [1, 1], [1, 0]])
    values = evaluate(records, resamples=0, margin=0.0, tier_costs=(0.5, 2.0))["score"].values
    # quality .5 .75 1 1 .75 after 0 .. 4 large calls; the large tier alone has .75
    assert (1.0, 0.5) == (values["peak"], values["peak_share"])
    # one call of 2 beside four of .5, of four calls of 2
    assert (4 * 0.5 + 2) / 8 == pytest.approx(values["qnc"])
    # 2310.12963: gain per cost .25/(.5) at that point, of all large calls .25/(2 - .5)
    spent, base = 1.0 / 2 - 0.5 / 2, 0.25 / (2 - 0.5)
    assert 0.25 / (2 * spent) == pytest.approx(base * (1 + values["ibc_lift"] / 100), rel=1e-9)
    assert 200 == pytest.approx(values["ibc_lift"])


def test_costs_are_charged_for_both_tiers_when_deferred():
    """Deferring everything costs the small call and the large one."""
    records = law.draw(200, np.random.default_rng(7))
    curve = evaluate(records, resamples=0, tier_costs=(2.0, 10.0))["score"].curve
    assert (0.2, 1.2) == pytest.approx((curve.cost[0], curve.cost[-1]))


def test_recorded_costs_are_used_per_question():
    """Costs that differ between questions move the cost of the curve, not its share."""
    records = CalibrationRecords.of([0.1, 0.2], [[0, 1], [1, 1]], cost=[[0.0, 3.0], [0.0, 1.0]])
    curve = evaluate(records, resamples=0)["score"].curve
    assert [0, 1.5, 2] == pytest.approx((curve.cost * 2 / curve.cost[-1]).tolist())


def test_bootstrap_covers_the_true_area():
    """The 95% interval of the area covers its true value in about 95% of fresh sets."""
    truth = evaluate(law.draw(500_000, np.random.default_rng(8)), resamples=0)
    area = truth["score"].values["area"] - truth["random"].values["area"]
    rng = np.random.default_rng(9)
    hits = 0
    for _ in range(100):
        found = evaluate(law.draw(400, rng), resamples=200, seed=1)
        low, high = found["score"].intervals["norm"]
        hits += low <= truth["score"].values["norm"] <= high
    assert area > 0
    assert hits >= 88


def test_bootstrap_is_paired():
    """A policy and its monotone copy differ by nothing on every resample."""
    records = law.draw(300, np.random.default_rng(10))
    score = records.scores[:, 0]
    found = evaluate(records, {"a": score, "b": score**3}, resamples=100)
    assert (0, 0) == pytest.approx(found["a"].against["b"])


def test_unpaired_bootstrap_is_detected(monkeypatch):
    """Fresh resamples for every policy make equal policies look different."""

    def unpaired(pair, orders, margin, resamples, seed):
        return {
            name: paired(pair, {name: order, "oracle": orders["oracle"]}, margin, resamples, i)[
                name
            ]
            for i, (name, order) in enumerate(orders.items())
        }

    paired = compare._bootstrap
    monkeypatch.setattr(compare, "_bootstrap", unpaired)
    records = law.draw(300, np.random.default_rng(10))
    score = records.scores[:, 0]
    found = evaluate(records, {"a": score, "b": score**3}, resamples=100)
    low, high = found["a"].against["b"]
    assert high - low > 0.05


def test_useless_score_is_called_useless():
    """A random score is not said to beat chance, and no threshold is recommended."""
    found = evaluate(law.draw(800, np.random.default_rng(11), useless=True), resamples=300)
    assert not found["score"].beats_chance
    assert "no threshold is recommended" in found.sentence


def test_worse_large_tier_is_said():
    """Where the larger tier is not better, the sentence says to use the smaller one."""
    records = law.draw(300, np.random.default_rng(12))
    swapped = CalibrationRecords.of(records.scores, records.correct[:, ::-1])
    found = evaluate(swapped, resamples=0)
    assert "use the smaller tier alone" in found.sentence
    assert math.isnan(found["score"].values["cpt50"])


def test_interval_of_least_cost_needs_a_margin():
    """At margin 0 resamples cover the true least cost hardly ever, so no interval is given."""
    records = law.draw(500, np.random.default_rng(17))
    for margin, given in ((0.0, False), (0.01, True)):
        found = evaluate(records, margin=margin, tier_costs=(0.1, 1), resamples=200)["score"]
        assert given == ("qnc" in found.intervals)
        assert "norm" in found.intervals


def test_apgr_is_withheld_when_the_gap_is_small():
    """APGR is not given where both tiers are about equally good."""
    records = CalibrationRecords.of(np.arange(400), np.tile([[1, 0], [0, 1]], (200, 1)))
    assert math.isnan(evaluate(records, resamples=0)["score"].values["apgr"])


def test_operating_point_counts_and_reuse():
    """A calibrated threshold is measured as a point; reused records are noted."""
    records = law.draw(1200, np.random.default_rng(13))
    named = CalibrationRecords.of(
        records.scores, records.correct, ids=[str(i) for i in range(1200)]
    )
    first, second = named.split(0.5, seed=0)
    made = calibrate_threshold(first, target_risk=0.05, score_range=(0, 1))
    fresh = evaluate(second, thresholds={"ours": made}, resamples=0, tier_costs=(0.1, 1))
    point = fresh.points[0]
    kept = (second.scores[:, 0] >= made.threshold).mean()
    assert kept == pytest.approx(1 - point.deferral_rate)
    assert 0.1 + point.deferral_rate == pytest.approx(point.cost)
    assert "without the last tier" in fresh.sentence
    assert 0 == point.reused
    assert made.promise == point.promise
    assert made.promise in html.unescape(render_evaluation(fresh))
    again = evaluate(first, thresholds={"ours": made}, resamples=0)
    assert 600 == again.points[0].reused
    assert any("optimistic" in note for note in again.notes)


def test_thresholds_are_measured_on_the_score_they_are_for():
    """A threshold of another score is measured on that column, or refused, never misread."""
    records = law.draw(900, np.random.default_rng(21))
    sure = records.scores[:, 0]
    by_logit = CalibrationRecords.of(
        np.log(sure / (1 - sure)), records.correct, score_names=("logit",)
    )
    made = calibrate_threshold(by_logit, target_risk=0.05)
    named = {"score_names": ("chance",)}
    beside = CalibrationRecords.of(
        sure, records.correct, columns={"logit": by_logit.scores[:, 0]}, **named
    )
    (found,) = evaluate(beside, thresholds={"ours": made}, resamples=0).points
    (own,) = evaluate(by_logit, thresholds={"ours": made}, resamples=0).points
    assert own == replace(found, reused=own.reused)
    alone = CalibrationRecords.of(sure, records.correct, **named)
    with pytest.raises(CalibrationError, match=r"calibrated for 'logit'.*--score logit"):
        evaluate(alone, thresholds={"ours": made}, resamples=0)
    unnamed = CalibrationRecords.of(by_logit.scores, records.correct)
    assert own.quality == evaluate(unnamed, thresholds={"x": made}, resamples=0).points[0].quality


def test_infinite_thresholds_give_the_single_tiers():
    """Thresholds -inf and +inf reproduce the small and the large tier exactly."""
    records = law.draw(300, np.random.default_rng(14))
    found = evaluate(records, thresholds={"small": [-math.inf], "large": [math.inf]}, resamples=0)
    assert found.points[0].quality == pytest.approx(records.correct[:, 0].mean())
    assert found.points[1].quality == pytest.approx(records.correct[:, 1].mean())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policies": ["nothing"]}, "no score 'nothing'"),
        ({"policies": {"a": [1.0, 2.0]}}, "expected 50 scores"),
        ({"policies": {}}, "at least one policy"),
        ({"policies": {"random": "score"}}, "name of a baseline"),
        ({"tier_costs": (1.0,)}, "expected 2 tier costs"),
        ({"thresholds": {"a": [0.1, 0.2]}}, r"expected 1 threshold"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    """Each wrong argument gives one sentence."""
    with pytest.raises(CalibrationError, match=message):
        evaluate(law.draw(50, np.random.default_rng(15)), resamples=0, **options)


def test_page_and_plot_show_every_policy(tmp_path):
    """The page holds the sentence, a line per policy and baseline, and each point's name."""
    records = law.draw(300, np.random.default_rng(17))
    score = records.scores[:, 0]
    named = CalibrationRecords.of(
        score,
        records.correct,
        columns={"rounded": np.round(score, 1)},
        prompt_length=np.arange(300),
    )
    found = evaluate(named, thresholds={"mine": [0.8]}, resamples=50, tier_costs=(0.1, 1.0))
    page = render_evaluation(found, source="records.jsonl")
    assert found.sentence in html.unescape(page)
    assert 2 == page.count("<svg ")
    assert 10 == page.count("<polyline ")
    low, high = found.best.against["prompt length"]
    assert f"prompt length: {low:+.3f} to {high:+.3f}" in html.unescape(page)
    for name in ("score", "rounded", "random", "oracle", "prompt length", "mine"):
        assert page.count(name) >= 3
    drawn = figure(found)
    labels = [line.get_label() for line in drawn.axes[0].lines]
    assert ["score", "rounded", "random", "oracle", "prompt length", "mine"] == labels
    assert save_plot(found, tmp_path / "curves.svg").read_text().count("<svg ") == 1


def test_result_is_plain_json():
    """The result serialises without NaN or infinity."""
    import json

    records = law.draw(100, np.random.default_rng(16))
    found = evaluate(records, resamples=20, thresholds={"all": [-math.inf]})
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["n"] == 100
