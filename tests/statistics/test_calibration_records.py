"""Records and results: read, checked, saved, refused with a sentence."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from cascadellm.calibration.jsonl import read_records, write_records
from cascadellm.calibration.records import CalibrationRecord, CalibrationRecords
from cascadellm.calibration.result import Calibration
from cascadellm.calibration.threshold import calibrate_threshold
from cascadellm.errors import (
    CalibrationError,
    CascadeError,
    InsufficientDataError,
    NoValidThresholdError,
)
from cascadellm.policies import Threshold
from cascadellm.scores import mean_logprob


def _columns(n=600, seed=0, **extra):
    rng = np.random.default_rng(seed)
    score = rng.normal(size=n)
    small = rng.random(n) < 1 / (1 + np.exp(-2 * score))
    large = rng.random(n) < 0.9
    return CalibrationRecords.of(score, np.column_stack([small, large]), **extra)


def test_records_and_columns_are_the_same_thing():
    """Single records and columns give equal thresholds and fingerprints."""
    columns = _columns()
    singles = [
        CalibrationRecord(float(s), tuple(c))
        for s, c in zip(columns.scores[:, 0], columns.correct, strict=True)
    ]
    first = calibrate_threshold(columns, target_risk=0.1)
    second = calibrate_threshold(singles, target_risk=0.1)
    assert first.threshold == second.threshold
    assert first.fingerprint == second.fingerprint


def test_jsonl_round_trip(tmp_path):
    """Written records are read back equal, with missing and infinite scores."""
    rows = [
        CalibrationRecord(0.5, (1, 0), agree=False, cost=(0.1, 1.0), id="a", prompt_length=3),
        CalibrationRecord(None, (0, 1), agree=True, columns={"other": 2.0}, id="b"),
        CalibrationRecord(-math.inf, (None, 1), id="c"),
    ]
    path = tmp_path / "r.jsonl"
    assert 3 == write_records(path, rows)
    read = read_records(path)
    assert [0.5, -math.inf] == [read.scores[0, 0], read.scores[2, 0]]
    assert math.isnan(read.scores[1, 0])
    assert math.isnan(read.correct[2, 0])
    assert ("a", "b", "c") == read.ids
    assert 2.0 == read.columns["other"][1]
    with pytest.raises(CalibrationError, match="exists"):
        write_records(path, rows)


BAD_LINES = [
    ('{"score": 1, "correct": [1, 0]}\n{"score": \n', "line 2: not JSON"),
    ('{"score": 1, "correct": [1, 0]}\n[]\n', "line 2: expected a JSON object"),
    ('{"correct": [1, 0]}\n', "line 1: the field 'score' is missing"),
    ('{"score": "high", "correct": [1, 0]}\n', "line 1: 'score' must be a number"),
    ('{"score": 1, "correct": 1}\n', "line 1: 'correct' must be a list"),
    ('{"score": 1, "correct": [2, 0]}\n', r"line 1: 'correct' must lie in \[0, 1\]"),
    ('{"score": 1, "correct": [1, 0], "cost": [-1, 0]}\n', "line 1: 'cost' must be >= 0"),
    ('{"score": 1, "correct": [1, 0], "x": 1}\n', r"line 1: unknown field\(s\) \['x'\]"),
    ('{"score": 1, "correct": [1]}\n', "line 1: expected 1 score"),
    (
        '{"score": 1, "correct": [1, 0]}\n{"score": [1, 2], "correct": [1, 0, 1]}\n',
        "line 2: expected 1 score",
    ),
    (
        '{"score": 1, "id": "a"}\n{"score": 2, "id": "b"}\n{"score": 3, "id": "a"}\n',
        "line 3: id 'a' was given on line 1",
    ),
    ("\n\n", "holds no records"),
    ('{"score": 1, "columns": 3}\n', "line 1: 'columns' must be an object"),
]


@pytest.mark.parametrize(("text", "message"), BAD_LINES)
def test_bad_lines_are_named(tmp_path, text, message):
    """Each malformed file gives one sentence with the line."""
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(CalibrationError, match=message):
        read_records(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [[1, 0]]), "expected shape"),
        (([1, 2], [[1, 0], [3, 0]]), r"record 2: correct must lie in \[0, 1\]"),
        (([], []), "at least one record"),
        ((["a"], [[1, 0]]), "expected numbers"),
        (([1, 2], [[1, 0, 1], [1, 0, 1]]), "2 tiers"),
    ],
)
def test_bad_columns_are_named(arguments, message):
    """Each malformed array gives one sentence with the place."""
    with pytest.raises(CalibrationError, match=message):
        CalibrationRecords.of(*arguments)


def test_repeated_names_are_counted():
    """Names must be unique; the error counts the repeats."""
    with pytest.raises(CalibrationError, match=r"2 record\(s\) repeat"):
        CalibrationRecords.of([1, 2, 3, 4], np.ones((4, 2)), ids=["a", "a", "b", "b"])


def test_too_few_labels_say_how_many_are_missing():
    """Fewer labels than could ever certify the target are refused, with both counts."""
    with pytest.raises(InsufficientDataError, match="29 are missing") as caught:
        calibrate_threshold(_columns(30), target_risk=0.05, score_range=(-4, 4))
    assert (59, 30) == (caught.value.needed, caught.value.given)


def test_least_number_of_labels_is_exact():
    """With no loss at all, the table's least n certifies and one label fewer does not."""
    for risk, confidence, least in ((0.1, 0.9, 22), (0.05, 0.9, 45), (0.02, 0.95, 149)):
        score, correct = np.ones(least), np.ones((least, 2))
        records = CalibrationRecords.of(score, correct)
        options = {"target_risk": risk, "confidence": confidence, "grid": [0.5]}
        assert least == calibrate_threshold(records, **options).n
        with pytest.raises(InsufficientDataError):
            calibrate_threshold(records.take(np.arange(least - 1)), **options)


def test_nothing_certifiable_carries_the_best_bound():
    """Where no threshold passes, the error carries the best bound and the way out."""
    with pytest.raises(NoValidThresholdError, match=r"better|labelled records") as caught:
        calibrate_threshold(_columns(), target_risk=0.006, grid=np.linspace(1, -4, 40))
    assert 0.006 < caught.value.best_bound < 1


def test_equal_scores_cannot_be_told_apart():
    """All scores equal: everything is accepted if that is safe, else refused in a sentence."""
    correct = np.column_stack([np.arange(400) % 5 > 0, np.ones(400)])
    records = CalibrationRecords.of(np.zeros(400), correct)
    with pytest.raises(NoValidThresholdError, match="no threshold that accepts something"):
        calibrate_threshold(records, target_risk=0.05, grid=[1, 0, -1])
    whole = calibrate_threshold(records, target_risk=0.3, grid=[1, 0, -1])
    assert 1.0 == whole.share_kept
    assert "all 400 scores are equal (0)" in whole.notes


def _offered(sets=100):
    """Return the share of record sets with a random score for which a threshold is offered."""
    rng = np.random.default_rng(5)
    offered = 0
    for _ in range(sets):
        records = CalibrationRecords.of(
            rng.random(500), np.column_stack([rng.random(500) < 0.7, rng.random(500) < 0.95])
        )
        try:
            calibrate_threshold(records, target_risk=0.1, score_range=(0, 1))
        except NoValidThresholdError:
            continue
        offered += 1
    return offered / sets


def test_random_score_gets_no_threshold():
    """A score that does not order the losses better than chance is refused, but for its level."""
    assert _offered() <= 0.05 + 1.65 * math.sqrt(0.05 * 0.95 / 100)


def test_offering_a_random_threshold_is_detected(monkeypatch):
    """Without the rank test, random scores get thresholds that choose at random."""
    from cascadellm.calibration import threshold

    monkeypatch.setattr(threshold, "no_signal", lambda column: None)
    assert _offered() > 0.5


def test_missing_scores_are_never_accepted():
    """NaN scores defer at every threshold and are counted in a note."""
    records = _columns()
    score = records.scores[:, 0].copy()
    score[:150] = np.nan
    made = calibrate_threshold(
        CalibrationRecords.of(score, records.correct), target_risk=0.1, score_range=(-4, 4)
    )
    assert made.n_accepted == (score[150:] >= made.threshold).sum()
    assert "150 of 600 records have no score and always defer" in made.notes


def test_all_scores_missing_is_refused():
    """Without any score there is no threshold."""
    records = CalibrationRecords.of(np.full(300, np.nan), np.ones((300, 2)))
    with pytest.raises(CalibrationError, match="missing"):
        calibrate_threshold(records, target_risk=0.1)


def test_one_class_only_is_said():
    """Where a loss never or always happens, a note counts it."""
    made = calibrate_threshold(
        CalibrationRecords.of(np.arange(300), np.ones((300, 2))), target_risk=0.05
    )
    assert "one class only: 0 of 240 records would be a loss if accepted" in made.notes


def test_reading_labels_for_the_grid_is_detected(monkeypatch):
    """A grid placed by labels changes when the labels that must not be read are flipped."""
    from cascadellm.calibration import threshold

    real = threshold.choose_grid

    def peeking(data, **options):
        made = real(data, **options)
        spare = np.setdiff1d(np.arange(len(data)), made.rows)
        wrong = data.scores[spare, 0][data.correct[spare, 0] == 0]
        return replace(made, values=np.unique(wrong)[::-1])

    monkeypatch.setattr(threshold, "choose_grid", peeking)
    with pytest.raises(AssertionError):
        test_labels_of_the_grid_share_are_never_read()


def test_one_label_fewer_is_detected(monkeypatch):
    """A table that asks for one label too few is seen by the check of the least numbers."""
    from cascadellm.calibration import bounds

    real = bounds.least_records
    monkeypatch.setattr(bounds, "least_records", lambda *levels: real(*levels) - 1)
    with pytest.raises((AssertionError, pytest.fail.Exception, NoValidThresholdError)):
        test_least_number_of_labels_is_exact()


def test_unlabelled_scores_place_the_grid():
    """Records without labels place the grid, and all labelled ones are tested."""
    records = _columns(600)
    correct = records.correct.copy()
    correct[:200] = np.nan
    made = calibrate_threshold(CalibrationRecords.of(records.scores, correct), target_risk=0.1)
    assert 400 == made.n
    assert any("200 unlabelled scores" in line for line in made.assumptions)


def test_declared_range_makes_the_grid():
    """A score that declares its ends gets 101 even steps, and all labels are tested."""

    class Chance:
        name, low, high = "chance", 0.0, 1.0

    records = _columns()
    chance = 1 / (1 + np.exp(-records.scores[:, 0]))
    declared = CalibrationRecords.of(chance, records.correct).described([Chance()])
    made = calibrate_threshold(declared, target_risk=0.1)
    assert 600 == made.n
    assert made.threshold == pytest.approx(round(made.threshold, 2))
    assert any("101 even steps over [0, 1]" in line for line in made.assumptions)


def test_labels_of_the_grid_share_are_never_read():
    """Flipping the labels of the records that place the grid changes nothing but the digest."""
    records = _columns(600)
    made = calibrate_threshold(records, target_risk=0.1, seed=3)
    picked = np.random.default_rng([3, 1]).permutation(600)[:120]
    flipped = records.correct.copy()
    flipped[picked] = 1 - flipped[picked]
    again = calibrate_threshold(
        CalibrationRecords.of(records.scores, flipped), target_risk=0.1, seed=3
    )
    assert (made.threshold, made.n, made.risk) == (again.threshold, again.n, again.risk)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_risk": 0}, "target_risk must lie strictly"),
        ({"confidence": 1.0}, "confidence must lie strictly"),
        ({"loss": "accuracy"}, "loss must be one of"),
        ({"loss": "disagreement"}, "reads `agree`"),
        ({"boundary": 3}, "boundary must lie in 0..0"),
        ({"method": "guess"}, "method must be"),
        ({"loss": "signed", "method": "binomial"}, "needs losses of 0 and 1"),
        ({"grid": [math.nan]}, "no NaN"),
        ({"score_range": (1, 1)}, "low < high"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    """Each wrong argument gives one sentence."""
    with pytest.raises(CalibrationError, match=message):
        calibrate_threshold(_columns(), **{"target_risk": 0.1, **options})


def test_graded_quality_uses_a_bound_for_fractions():
    """Qualities between 0 and 1 are certified by Hoeffding-Bentkus, not by counting."""
    records = _columns()
    made = calibrate_threshold(
        CalibrationRecords.of(records.scores, 0.2 + 0.7 * records.correct), target_risk=0.1
    )
    assert "hoeffding-bentkus" in made.method
    assert made.risk <= made.target_risk


def test_result_survives_saving(tmp_path):
    """A saved calibration is equal, is not overwritten, and states its promise."""
    made = calibrate_threshold(_columns(), target_risk=0.1)
    path = made.save(tmp_path / "c.json")
    assert made == Calibration.load(path)
    assert "With 95% confidence" in made.promise
    with pytest.raises(CalibrationError, match="exists"):
        made.save(path)
    assert made.save(path, overwrite=True) == path


def test_policy_loads_a_calibration(tmp_path):
    """`Threshold.from_calibration` takes the file and the score that it names."""
    made = calibrate_threshold(_columns(score_names=["mean_logprob"]), target_risk=0.1)
    path = made.save(tmp_path / "c.json")
    policy = Threshold.from_calibration(path)
    assert (mean_logprob, made.threshold) == (policy.score, policy.threshold)


def test_loading_a_calibration_needs_no_numpy(tmp_path):
    """A saved threshold becomes a policy without numpy being imported."""
    made = calibrate_threshold(_columns(score_names=["mean_logprob"]), target_risk=0.1)
    path = made.save(tmp_path / "c.json")
    code = (
        "import sys; from cascadellm.policies import Threshold; "
        f"print(Threshold.from_calibration({str(path)!r}).threshold); "
        "from cascadellm.calibration import Calibration, DriftMonitor;"
        "assert 'numpy' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 0 == run.returncode, run.stderr
    assert made.threshold == pytest.approx(float(run.stdout))


@pytest.mark.parametrize("text", ["", "[]", '{"schema": "other"}', '{"schema": 1', "{}"])
def test_another_file_is_no_calibration(tmp_path, text):
    """Anything else than a calibration is refused with what was expected."""
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(CalibrationError, match=r"expected a calibration|not JSON"):
        Calibration.load(path)


def test_several_thresholds_need_a_boundary():
    """A calibration of several boundaries gives one threshold per boundary only."""
    one = calibrate_threshold(_columns(), target_risk=0.1)
    several = Calibration.from_dict(
        {
            **one.to_dict(),
            "thresholds": [0.5, "inf"],
            "boundaries": [0, 1],
            "score_names": ["a", "b"],
        }
    )
    with pytest.raises(CalibrationError, match="holds 2 thresholds"):
        _ = several.threshold
    assert (math.inf, "b") == (several.for_boundary(1).threshold, several.for_boundary(1).score)
    with pytest.raises(CalibrationError, match="boundary 2 was not calibrated"):
        several.for_boundary(2)


def test_infinite_thresholds_are_written_as_text():
    """The JSON of a calibration has no Infinity."""
    records = CalibrationRecords.of(np.arange(300), np.ones((300, 2)))
    made = calibrate_threshold(records, target_risk=0.05)
    text = json.dumps(made.to_dict(), allow_nan=False)
    assert -math.inf == Calibration.from_dict(json.loads(text)).threshold


def _run(*arguments):
    from cascadellm.cli import _app

    return CliRunner().invoke(_app(), [str(a) for a in arguments])


def test_command_line_saves_what_it_says(tmp_path):
    """`cascadellm calibrate` writes the file, prints the promise, and overwrites nothing."""
    columns = _columns()
    path, out = tmp_path / "r.jsonl", tmp_path / "c.json"
    write_records(
        path,
        (
            CalibrationRecord(float(s), [float(v) for v in c])
            for s, c in zip(columns.scores[:, 0], columns.correct, strict=True)
        ),
    )
    done = _run("calibrate", path, "--target-risk", 0.1, "-o", out)
    assert 0 == done.exit_code, done.output
    assert Calibration.load(out).promise in done.output
    before = out.read_bytes()
    again = _run("calibrate", path, "--target-risk", 0.2, "-o", out)
    assert isinstance(again.exception, CascadeError)
    assert before == out.read_bytes()
    page = tmp_path / "e.html"
    shown = _run("evaluate", path, "--calibration", out, "--html", page, "--resamples", 50)
    assert 0 == shown.exit_code, shown.output
    assert "Deferral curves" in page.read_text()
    assert "http" not in page.read_text().replace("http-equiv", "")


@pytest.mark.parametrize(("text", "message"), BAD_LINES)
def test_command_line_names_bad_lines(tmp_path, text, message):
    """The command line refuses a malformed file with the same sentence and writes nothing."""
    path, out = tmp_path / "r.jsonl", tmp_path / "c.json"
    path.write_text(text)
    done = _run("calibrate", path, "--target-risk", 0.1, "-o", out)
    assert isinstance(done.exception, CalibrationError)
    assert re.search(message, str(done.exception))
    assert not out.exists()


def test_command_line_shows_no_stack_trace(tmp_path):
    """An error of ours is one line on stderr and exit status 1."""
    path = tmp_path / "r.jsonl"
    path.write_text("nonsense")
    run = subprocess.run(
        [sys.executable, "-c", "from cascadellm.cli import main; main()", "calibrate", str(path),
         "--target-risk", "0.1", "-o", str(tmp_path / "c.json")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert 1 == run.returncode
    said = f"cascadellm: {path}, line 1: not JSON (Expecting value: line 1 column 1 (char 0))"
    assert [said] == run.stderr.splitlines()


def test_html_page_escapes_what_it_shows():
    """Names from the records cannot inject markup into the page."""
    from cascadellm.evaluation.compare import evaluate
    from cascadellm.report.evaluation import render_evaluation

    hostile = "<script>alert(1)</script>"
    found = evaluate(_columns(), {hostile: "score"}, resamples=0)
    text = render_evaluation(found, source=hostile)
    assert hostile not in text
    assert "&lt;script&gt;" in text


def test_names_of_the_package_are_complete():
    """Every public name of both packages loads."""
    from cascadellm import calibration, evaluation

    for package in (calibration, evaluation):
        for name in package.__all__:
            assert getattr(package, name) is not None
