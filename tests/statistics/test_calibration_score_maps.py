"""Score maps and learned scores: honest probabilities, saved and applied without numpy."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from cascadellm.answer import Answer, TokenScore, Usage
from cascadellm.calibration.collected import Collected, answer_table, to_records
from cascadellm.calibration.features import LearnedScore, answer_features, token_features
from cascadellm.calibration.fit import apply_to, fit_learned_score
from cascadellm.calibration.probability import CalibratedScore, ScoreMap
from cascadellm.calibration.records import CalibrationRecords
from cascadellm.calibration.score_maps import (
    fit_score_map,
    reliability,
    save_reliability_plot,
)
from cascadellm.calibration.threshold import calibrate_threshold
from cascadellm.errors import CalibrationError, InsufficientDataError
from cascadellm.scores import mean_logprob


def _overconfident(n, rng):
    score = rng.normal(size=n)
    chance = 1 / (1 + np.exp(-(0.7 * score - 0.4)))
    return score, (rng.random(n) < chance).astype(float)


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_map_makes_a_score_honest(kind):
    """On fresh data the mapped score is within 0.03 of what happens; the raw one is not."""
    rng = np.random.default_rng(0)
    made = fit_score_map(*_overconfident(4000, rng), kind=kind)
    score, correct = _overconfident(8000, rng)
    mapped = [made(s) for s in score]
    assert reliability(mapped, correct).error < 0.03
    raw = 1 / (1 + np.exp(-2 * score))
    assert reliability(raw, correct).error > 0.08


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_map_never_falls(kind):
    """A higher score never gets a lower probability, and a missing one gets none."""
    made = fit_score_map(*_overconfident(500, np.random.default_rng(1)), kind=kind)
    values = [made(s) for s in np.linspace(-5, 5, 400)]
    assert (np.diff(values) >= 0).all()
    assert made(float("nan")) is None
    assert made(None) is None


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_map_survives_saving(tmp_path, kind):
    """A saved map gives equal probabilities and is not overwritten."""
    made = fit_score_map(*_overconfident(200, np.random.default_rng(2)), kind=kind)
    path = made.save(tmp_path / "map.json")
    assert made == ScoreMap.load(path)
    with pytest.raises(CalibrationError, match="exists"):
        made.save(path)


def test_reliability_by_hand():
    """The error is the weighted distance between bins' means."""
    found = reliability([0.2, 0.2, 0.8, 0.8], [0, 1, 1, 1], bins=2)
    assert 0.5 * 0.3 + 0.5 * 0.2 == pytest.approx(found.error)
    assert [2, 2] == found.counts.tolist()


def test_reliability_plot_is_written(tmp_path):
    """The plot is a picture."""
    found = reliability([0.2, 0.2, 0.8, 0.8], [0, 1, 1, 1], bins=2)
    target = save_reliability_plot({"toy": found}, tmp_path / "r.svg")
    assert "<svg" in target.read_text()


@pytest.mark.parametrize(
    ("scores", "correct", "message"),
    [
        ([0.1] * 30, [0, 1] * 15, "all 30 scores are equal"),
        (list(range(30)), [1] * 30, "one class only"),
        (list(range(30)), [1] * 29, "one shape"),
    ],
)
def test_unusable_data_are_named(scores, correct, message):
    """Each unusable sample gives one sentence with its count."""
    with pytest.raises(CalibrationError, match=message):
        fit_score_map(scores, correct)


def test_too_few_records_are_counted():
    """Fewer than 20 usable records are refused with both counts."""
    with pytest.raises(InsufficientDataError, match="got 2") as caught:
        fit_score_map([0.1, 0.2, np.nan], [0, 1, 1])
    assert (20, 2) == (caught.value.needed, caught.value.given)


def test_calibrated_score_reads_an_answer():
    """The probability of an answer is the map of its score."""
    made = ScoreMap("isotonic", (-1.0, 0.0), (0.2, 0.8), 10, ("a",))
    score = CalibratedScore(mean_logprob, made)
    answer = Answer("x", tokens=(TokenScore("x", -0.5),))
    assert 0.5 == pytest.approx(score(answer))
    assert "chance(mean_logprob)" == score.name
    assert ("a",) == score.tuned_on
    assert score(Answer("x")) is None


def _sequences(n, rng):
    """Answers whose worst token, not the mean, says whether they are right."""
    lengths = rng.integers(3, 30, n)
    rows = [-rng.exponential(0.2, length) for length in lengths]
    worst = np.array([r.min() for r in rows])
    small = rng.random(n) < 1 / (1 + np.exp(-(worst + 0.8) * 4))
    large = rng.random(n) < 0.85
    return rows, np.column_stack([small, large]).astype(float)


def _table(rows):
    found = [token_features(r) for r in rows]
    return {k: np.array([f[k] for f in found]) for k in found[0]}


def test_table_of_collected_answers_is_what_the_score_reads():
    """Columns of collected answers, fitted and applied, give what a call's answer gives."""
    rng = np.random.default_rng(9)
    rows, correct = _sequences(80, rng)
    rows[3] = []
    found = [
        Collected(
            str(i), "q", None, ("s", "l"),
            (Answer("x", tokens=tuple(TokenScore("t", v) for v in row), usage=Usage(9 + i, 2)),
             Answer("y")),
            tuple(grades), (None, None), (0.0, 0.0),
        )
        for i, (row, grades) in enumerate(zip(rows, correct, strict=True))
    ]  # fmt: skip
    table = answer_table(found)
    assert math.isnan(table["mean"][3])
    made = fit_learned_score(table, correct, ids=[item.id for item in found]).score
    records = to_records(found, made)
    again = apply_to(made, records, table)
    assert again.scores[:, 0] == pytest.approx(records.scores[:, 0], nan_ok=True)
    with pytest.raises(CalibrationError, match="80 of 80 records were used to tune"):
        calibrate_threshold(records, target_risk=0.2)
    with pytest.raises(CalibrationError, match="none of the 80 answers of tier 1 has token"):
        answer_table(found, tier=1)


@pytest.mark.parametrize("target", ["correct", "gain"])
def test_learned_score_beats_the_mean_on_fresh_answers(target):
    """Where the worst token matters, the learned score orders fresh answers better."""
    from cascadellm.evaluation.compare import evaluate

    rng = np.random.default_rng(3)
    rows, correct = _sequences(1500, rng)
    made = fit_learned_score(_table(rows), correct, target=target)
    rows, correct = _sequences(3000, rng)
    means = [r.mean() for r in rows]
    fresh = apply_to(made.score, CalibrationRecords.of(means, correct), _table(rows))
    found = evaluate(fresh, {"learned": fresh.scores[:, 0], "mean": means}, resamples=100)
    assert found["learned"].against["mean"][0] > 0.05


def test_learned_score_on_an_answer_equals_its_column():
    """One answer scored at run time gets the value it gets in columns."""
    rng = np.random.default_rng(4)
    rows, correct = _sequences(300, rng)
    made = fit_learned_score(_table(rows), correct, target="gain").score
    records = CalibrationRecords.of(np.zeros(300), correct)
    column = apply_to(made, records, _table(rows)).scores[:, 0]
    for row, value in list(zip(rows, column, strict=True))[:20]:
        answer = Answer("x", tokens=tuple(TokenScore("t", float(v)) for v in row))
        assert value == pytest.approx(made(answer))


def test_out_of_fold_scores_are_honest_about_noise():
    """On features without any signal the out-of-fold score has norm about 0, not above."""
    from cascadellm.evaluation.compare import evaluate

    rng = np.random.default_rng(5)
    correct = rng.integers(0, 2, (600, 2)).astype(float)
    features = {f"noise {i}": rng.normal(size=600) for i in range(20)}
    made = fit_learned_score(features, correct)
    honest = evaluate(CalibrationRecords.of(made.out_of_fold, correct), resamples=0)
    inside = apply_to(made.score, CalibrationRecords.of(np.zeros(600), correct), features)
    fooled = evaluate(inside, resamples=0)
    assert honest["score"].values["norm"] < 0.08
    assert fooled["learned"].values["norm"] > honest["score"].values["norm"] + 0.1


def test_records_of_the_fit_are_refused_for_calibration():
    """A threshold is never certified on the records that the score was fitted on."""
    rng = np.random.default_rng(6)
    rows, correct = _sequences(600, rng)
    ids = [f"q{i}" for i in range(600)]
    records = CalibrationRecords.of(np.zeros(600), correct, ids=ids)
    made = fit_learned_score(_table(rows[:300]), correct[:300], ids=ids[:300]).score
    scored = apply_to(made, records, _table(rows))
    with pytest.raises(CalibrationError, match="300 of 600 records were used to tune"):
        calibrate_threshold(scored, target_risk=0.1)
    kept = calibrate_threshold(
        scored.take(np.arange(300, 600)), target_risk=0.2, require_signal=False
    )
    assert kept.n > 0


def test_records_without_names_are_refused_by_their_grades():
    """Where nobody gave names, the same grades in the same order are the same records."""
    rng = np.random.default_rng(6)
    rows, correct = _sequences(300, rng)
    records = CalibrationRecords.of([r.mean() for r in rows], correct)
    made = fit_learned_score(_table(rows), correct).score
    chance = fit_score_map(records.scores[:, 0], correct[:, 0])
    mapped = records.described([CalibratedScore(mean_logprob, chance)])
    for again in (apply_to(made, records, _table(rows)), mapped):
        with pytest.raises(CalibrationError, match="300 of 300 records were used to tune"):
            calibrate_threshold(again, target_risk=0.2)
        other = CalibrationRecords.of(again.scores, correct[::-1], tuned_on=again.tuned_on)
        calibrate_threshold(other, target_risk=0.5, require_signal=False)


def test_grades_that_are_all_alike_name_no_records():
    """Grades without variation say nothing, so other records are not refused for them."""
    rng = np.random.default_rng(7)
    score = rng.random(200)
    correct = np.column_stack([rng.random(200) < score, np.ones(200)])
    made = fit_learned_score({"a": score}, np.ones((200, 2))).score
    assert () == made.tuned_on
    fresh = CalibrationRecords.of(score, correct, tuned_on=made.tuned_on)
    assert calibrate_threshold(fresh, target_risk=0.3).n > 0


def test_calibrating_on_the_records_of_the_fit_is_detected(monkeypatch):
    """Without the refusal, the check above sees that used records were accepted."""
    from cascadellm.calibration import threshold

    monkeypatch.setattr(threshold, "check_unused", lambda records: None)
    with pytest.raises(pytest.fail.Exception):
        test_records_of_the_fit_are_refused_for_calibration()


def test_missing_features_are_a_state():
    """A feature that is missing has its own weight; an answer with none has no score."""
    rng = np.random.default_rng(7)
    rows, correct = _sequences(400, rng)
    table = _table(rows)
    table["stated"] = np.where(rng.random(400) < 0.3, np.nan, rng.random(400))
    made = fit_learned_score(table, correct).score
    assert made.of({"mean": -0.2}) is not None
    assert made.of({"stated": float("nan")}) is None
    assert made(Answer("x")) is None
    assert {} == answer_features(Answer("x"))
    # what the prompt costs is known without any token of the answer
    bare = Answer("x", usage=Usage(12, 3))
    assert {} == answer_features(bare)
    table["log_prompt"] = np.full(400, 3.0) + rng.random(400)
    assert fit_learned_score(table, correct).score(bare) is None


def test_learned_score_survives_saving(tmp_path):
    """A saved score is equal, keeps its versions, and loads without numpy."""
    rng = np.random.default_rng(8)
    rows, correct = _sequences(200, rng)
    made = fit_learned_score(_table(rows), correct, ids=[str(i) for i in range(200)]).score
    path = made.save(tmp_path / "score.json")
    assert made == LearnedScore.load(path)
    assert "scikit-learn" in json.loads(path.read_text())["versions"]
    code = (
        "import sys; from cascadellm.calibration.features import LearnedScore; "
        f"s = LearnedScore.load({str(path)!r}); print(s.of({{'mean': -0.3}})); "
        "assert 'numpy' not in sys.modules and 'sklearn' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 0 == run.returncode, run.stderr
    assert made.of({"mean": -0.3}) == pytest.approx(float(run.stdout))


def test_too_little_to_learn_from_is_refused():
    """Fewer than 40 graded records, or features that never change, are refused."""
    with pytest.raises(InsufficientDataError, match="at least 40"):
        fit_learned_score({"a": np.arange(10)}, np.ones((10, 2)))
    with pytest.raises(CalibrationError, match="two different values"):
        fit_learned_score({"a": np.ones(100)}, np.tile([[0, 1], [1, 1]], (50, 1)))
