"""Bad input at the command line: a sentence with a line or a count, and nothing overwritten."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cascadellm import cli
from cascadellm.calibration.loading import load_records
from cascadellm.errors import CalibrationError

pytest.importorskip("typer")

APP = """
import sys, time
from cascadellm.answer import Answer, TokenScore, Usage
from cascadellm.cascade import Cascade
from cascadellm.policies import Threshold
from cascadellm.scores import mean_logprob
from cascadellm.testing import FakeModel
from cascadellm.tier import Price, Tier

def said(messages, **_):
    time.sleep(0.02)
    with open("asked.txt", "a") as out:
        out.write(str(messages[-1]["content"]) + chr(10))
    token = TokenScore("x", -0.1)
    return Answer("4", tokens=(token,), usage=Usage(5, 1))

models = FakeModel(said, name="small"), FakeModel(said, name="large")
llm = Cascade([Tier(m, price=Price(input=1, output=1)) for m in models], Threshold(mean_logprob, 0))
free = Cascade(list(models), Threshold(mean_logprob, 0))

def grade(question, reference, answer):
    raise KeyError("no such column")
"""


def _row(i, **changes):
    score = round(i % 100 / 100, 2)
    small = int((i * 37) % 100 < 40 + score * 55)
    return {"score": score, "correct": [small, 1], "id": str(i), **changes}


def _rows(n=400, **changes):
    return [_row(i, **changes) for i in range(n)]


def _lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def _collected(i, tier, **changes):
    line = {"schema": "cascadellm.collected/1", "id": str(i), "tier": tier, "name": f"t{tier}",
            "text": "4", "question": f"q{i}", "correct": 1.0, "tokens": [["4", -0.1, None,
            "answer", []]], "input_tokens": 3, "output_tokens": 1, "cost_usd": 0.1}  # fmt: skip
    return {**line, **changes}


def _whole(n=400, **changes):
    return [_collected(i, tier, **changes) for i in range(n) for tier in (0, 1)]


NAN = [{**row, "score": None} for row in _rows()]
BAD_RECORDS = {
    "no file": (None, "cannot read"),
    "empty": ("", "holds no records"),
    "binary": (b"\xff\xfe\x00\x01", "cannot read|not JSON"),
    "torn last line": (_lines(_rows()) + '{"score": 0.5, "corr', "line 401: not JSON"),
    "a list": (_lines([[1, 2]]), "line 1: expected a JSON object"),
    "unknown field": (_lines([*_rows(5), _row(5, scoer=1)]), "line 6: unknown field"),
    "a text for a score": (_lines([*_rows(3), _row(3, score="high")]), "line 4: 'score' must be"),
    "a grade of 2": (_lines([*_rows(3), _row(3, correct=[2, 1])]), "line 4: 'correct' must lie"),
    "a negative cost": (_lines([*_rows(3), _row(3, cost=[-1, 1])]), "line 4: 'cost' must be >= 0"),
    "one tier only": (_lines([*_rows(3), _row(3, correct=[1])]), "line 4: expected 1 score"),
    "tiers differ": (
        _lines([*_rows(3), _row(3, score=[0.1, 0.2], correct=[1, 1, 1])]),
        "line 4: expected 1 score",
    ),
    "a duplicate": (_lines([*_rows(3), _row(1)]), "line 4: id '1' was given on line 2"),
    "no grades": (_lines([{"score": 0.1}] * 400), "reads `correct`|not recorded"),
    "too few": (_lines(_rows(20)), "59 labelled records are needed .* 20 are given, 39 are miss"),
    "one class only, always wrong": (
        _lines([_row(i, correct=[0, 1]) for i in range(400)]),
        "one class only: all 320 records would be a loss",
    ),
    "all scores equal": (
        _lines([_row(i, score=0.5) for i in range(400)]),
        "no threshold|all .* scores are equal",
    ),
    "all scores missing": (_lines(NAN), "all .*scores are missing"),
    "random score": (
        _lines([_row(i, score=((i * 7919) % 1000) / 1000) for i in range(400)]),
        "better than chance|no threshold that accepts something",
    ),
    "collected, missing tiers": (
        _lines([_collected(i, 0) for i in range(5)]),
        "no question with the answers of all tiers .5 questions, 1 tiers",
    ),
    "collected, a tier twice": (
        _lines([*_whole(5), _collected(2, 1)]),
        "line 11: tier 1 answered '2' on an earlier line",
    ),
    "collected, another name": (
        _lines([*_whole(5), _collected(5, 0, name="other")]),
        "line 11: tier 0 is 'other' here and 't0'",
    ),
    "collected, a negative index": (
        _lines([*_whole(2), _collected(5, -1)]),
        "line 5: 'tier' must be an index",
    ),
    "collected, a grade of 7": (
        _lines([*_whole(2), _collected(5, 0, correct=7)]),
        r"line 5: 'correct' must lie in \[0, 1\]",
    ),
    "collected, tokens of another form": (
        _lines([*_whole(2), _collected(5, 0, tokens=[["a"]])]),
        "line 5: the answer is malformed",
    ),
    "collected, a text as cost": (
        _lines([*_whole(2), _collected(5, 0, cost_usd="cheap")]),
        "line 5: 'cost_usd' must be a finite number",
    ),
}


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run the command line as the console script does; return (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["cascadellm", *(str(a) for a in arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as ended:
            status = ended.code or 0
        said = capfd.readouterr()
        return status, said.out, said.err

    return call


def _given(text, path):
    if isinstance(text, bytes):
        path.write_bytes(text)
    elif text is not None:
        path.write_text(text)


def _flat(text):
    return " ".join(text.split())


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_calibrate_names_what_is_wrong(run, tmp_path, name):
    """`calibrate` says what is wrong in one sentence, and the earlier file stands."""
    text, message = BAD_RECORDS[name]
    _given(text, tmp_path / "r.jsonl")
    kept = tmp_path / "c.json"
    kept.write_text("earlier")
    status, _, err = run("calibrate", "r.jsonl", "--target-risk", 0.05, "-o", "c.json", "--force")
    assert 1 == status, err
    assert re.search(message, _flat(err)), err
    assert 1 == len(err.splitlines())
    assert err.startswith("cascadellm: ")
    assert "earlier" == kept.read_text()


REFUSED_BY_EVALUATE = sorted(
    set(BAD_RECORDS)
    - {"too few", "one class only, always wrong", "all scores equal", "all scores missing",
       "random score"}
)  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_BY_EVALUATE)
def test_evaluate_names_what_is_wrong(run, tmp_path, name):
    """`evaluate` says what is wrong in one sentence and writes no page."""
    text, _ = BAD_RECORDS[name]
    _given(text, tmp_path / "r.jsonl")
    status, _, err = run("evaluate", "r.jsonl", "--html", "e.html", "--resamples", 10)
    assert 1 == status, err
    assert 1 == len(err.splitlines())
    assert err.startswith("cascadellm: ")
    assert not (tmp_path / "e.html").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("all scores equal", "None of the policies beats random"),
        ("all scores missing", "400 of 400 scores are missing"),
        ("random score", "None of the policies beats random"),
        ("one class only, always wrong", "one class only: the smaller tier has quality 0"),
    ],
)
def test_evaluate_says_that_nothing_beats_chance(run, tmp_path, name, said):
    """A useless score, no score and one class only are findings, not crashes."""
    _given(BAD_RECORDS[name][0], tmp_path / "r.jsonl")
    status, out, err = run("evaluate", "r.jsonl", "--html", "e.html", "--resamples", 100)
    assert 0 == status, err
    assert said in _flat(out)
    assert "recommended" in _flat(out)


def test_outputs_that_exist_or_cannot_be_written_are_refused_first(run, tmp_path):
    """No command overwrites a file without `--force`, nor fails after the work was done."""
    _given(_lines(_rows()), tmp_path / "r.jsonl")
    (tmp_path / "here").write_text("mine")
    for arguments in (
        ("calibrate", "r.jsonl", "--target-risk", 0.2, "-o"),
        ("evaluate", "r.jsonl", "--html"),
        ("evaluate", "r.jsonl", "--json"),
        ("evaluate", "r.jsonl", "--png"),
    ):
        for target, message in (
            ("here", "here exists; choose another file or pass --force"),
            ("nowhere/out.json", "lies in a folder that does not exist"),
            (".", "is a folder"),
        ):
            status, _, err = run(*arguments, target)
            assert 1 == status
            assert message in _flat(err)
    assert "mine" == (tmp_path / "here").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("calibrate", "r.jsonl"), "give --target-risk, --deferral-rate or --cost-usd"),
        (("calibrate", "r.jsonl", "--target-risk", 2), "target_risk must lie strictly between"),
        (("calibrate", "r.jsonl", "--target-risk", 0.1, "--loss", "x"), "loss must be one of"),
        (("calibrate", "r.jsonl", "--target-risk", 0.1, "--boundary", 4), "boundary must lie in"),
        (("calibrate", "r.jsonl", "--cost-usd", 1), "cost"),
        (("calibrate", "r.jsonl", "--deferral-rate", 0.5, "--target-risk", 0.1), "not both"),
        (("calibrate", ".", "--target-risk", 0.1), "cannot read"),
        (("evaluate", "r.jsonl", "--calibration", "r.jsonl"), "not JSON|expected a calibration"),
        (("evaluate", "r.jsonl", "--calibration", "gone.json"), "cannot read|gone.json"),
        (("evaluate", "r.jsonl", "--tier-costs", "a,b"), "expected numbers like"),
        (("evaluate", "r.jsonl", "--tier-costs", "1,2,3"), "expected 2 tier costs"),
    ],
)
def test_wrong_options_are_sentences(run, tmp_path, arguments, message):
    """Options that make no sense are named, and nothing is written."""
    _given(_lines(_rows()), tmp_path / "r.jsonl")
    status, _, err = run(*arguments)
    assert 1 == status
    assert re.search(message, _flat(err)), err
    assert "Traceback" not in err
    assert ["r.jsonl"] == [path.name for path in tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("questions", "options", "message"),
    [
        (None, (), "cannot read"),
        ("", (), "holds no questions"),
        ('{"question": "a"}\nnonsense\n', (), "line 2: not JSON"),
        ('{"question": "a"}\n{"question": 3}\n', (), "line 2: expected a text or messages"),
        ('{"question": "a"}\n{"question": "a"}\n', (), "question 2 repeats the name"),
        ('{"question": "a"}\n', ("--cascade", "gone:llm"), "cannot import 'gone'"),
        ('{"question": "a"}\n', ("--cascade", "broken:llm"), "importing 'broken' failed"),
        ('{"question": "a"}\n', ("--cascade", "bad_input_app:nothing"), "has no name 'nothing'"),
        ('{"question": "a"}\n', ("--cascade", "bad_input_app"), "expected module:name"),
        ('{"question": "a"}\n', ("--cascade", "bad_input_app:grade"), "at least two tiers"),
        ('{"question": "a"}\n', ("--grade", "bad_input_app:grade"), "grading function failed on"),
        ('{"question": "a"}\n', ("-o", "q.jsonl"), "expected a collected answer"),
        ('{"question": "a"}\n', ("-o", "no/a.jsonl"), "lies in a folder that does not exist"),
        (
            '{"question": "a"}\n',
            ("--cascade", "bad_input_app:free", "--max-cost", "1"),
            "needs a price on every tier",
        ),
    ],
)
def test_collect_names_what_is_wrong(run, tmp_path, questions, options, message):
    """`collect` says what is wrong in one sentence, and appends to no other file."""
    (tmp_path / "bad_input_app.py").write_text(APP)
    (tmp_path / "broken.py").write_text("def (:\n")
    _given(questions, tmp_path / "q.jsonl")
    before = (tmp_path / "q.jsonl").read_bytes() if questions is not None else None
    default = () if "--cascade" in options else ("--cascade", "bad_input_app:llm")
    status, _, err = run("collect", "q.jsonl", *default, *options)
    assert 1 == status, err
    assert message in _flat(err)
    assert "Traceback" not in err
    if before is not None:
        assert before == (tmp_path / "q.jsonl").read_bytes()


def test_random_damage_never_escapes_as_another_error(tmp_path):
    """Files with random damage load, or raise a sentence of ours that names a line or a count."""
    rng = random.Random(0)
    strange = [None, "", "x", -1, 7, 1e400, [], {}, [1], [None, 2], True, {"a": 1}, "nan", [[1]]]
    path = tmp_path / "r.jsonl"
    refused = []
    for turn in range(600):
        rows = _rows(6, cost=[0.1, 1.0], agree=True, prompt_length=4, columns={"b": 1})
        rows = rows if turn % 2 else _whole(3)
        row = rng.choice(rows)
        for _ in range(rng.randint(1, 2)):
            row[rng.choice(sorted(row))] = rng.choice(strange)
        text = _lines(rows)
        if turn % 5 == 0:
            place = rng.randrange(len(text))
            text = text[:place] + rng.choice(["", '"', "}", "\x00", "9"]) + text[place + 1 :]
        path.write_text(text)
        try:
            load_records(path)
        except CalibrationError as error:
            refused.append(str(error))
    assert 100 < len(refused) < 590
    assert [] == [said for said in refused if str(path) not in said]


def test_mutation_a_stack_trace_is_noticed(run, tmp_path, monkeypatch):
    """Without the sentence for our errors, the checks above see the exception."""

    def raises(error):
        raise error

    monkeypatch.setattr(cli, "_fail", raises)
    _given("nonsense", tmp_path / "r.jsonl")
    with pytest.raises(CalibrationError):
        run("calibrate", "r.jsonl", "--target-risk", 0.1)


def _environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def _start(folder):
    command = "from cascadellm.cli import main; main()"
    arguments = ("collect", "q.jsonl", "--cascade", "bad_input_app:llm", "--concurrency", "2")
    return subprocess.Popen(
        [sys.executable, "-c", command, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_collection_resumes_without_asking_twice(tmp_path, how):
    """After Ctrl-C or a kill a second run asks what is missing, and no answer is lost."""
    (tmp_path / "bad_input_app.py").write_text(APP)
    rows = [{"question": f"What is 2 + 2, time {i}?", "answer": 4} for i in range(60)]
    (tmp_path / "q.jsonl").write_text(_lines(rows))
    answers = tmp_path / "answers.jsonl"
    first = _start(tmp_path)
    until = time.monotonic() + 60
    while time.monotonic() < until and (not answers.exists() or _complete(answers) < 20):
        time.sleep(0.01)
    first.send_signal(how)
    out, err = first.communicate(timeout=60)
    if how == signal.SIGINT:
        assert 130 == first.returncode, (out, err)
        assert "interrupted; every answer so far is in answers.jsonl" in err
    assert "Traceback" not in err
    before = _complete(answers)
    assert 20 <= before < 120
    second = _start(tmp_path)
    out, err = second.communicate(timeout=60)
    assert 0 == second.returncode, err
    assert f"{120 - before} calls in this run" in out
    assert 120 == _complete(answers) == len({(r["id"], r["tier"]) for r in _read(answers)})
    asked = len((tmp_path / "asked.txt").read_text().splitlines())
    # what was under way at the kill is asked again: at most one answer per worker
    assert asked <= 120 + (2 if how == signal.SIGKILL else 0)


def _complete(path):
    return len(_read(path))


def _read(path):
    lines = Path(path).read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1]]


def test_collect_stops_at_its_cost_and_goes_on_later(run, tmp_path):
    """`--max-cost` ends a run with status 3, and a second run collects the rest."""
    (tmp_path / "bad_input_app.py").write_text(APP)
    rows = [{"question": f"What is 2 + 2, time {i}?", "answer": 4} for i in range(30)]
    (tmp_path / "q.jsonl").write_text(_lines(rows))
    command = ("collect", "q.jsonl", "--cascade", "bad_input_app:llm", "--concurrency", "1")
    status, out, _ = run(*command, "--max-cost", "0.000115")
    assert 3 == status
    assert "10 of 30 questions are complete" in out
    assert "stopped at the cost limit; run again to continue" in out
    status, out, _ = run(*command)
    assert 0 == status
    assert "40 calls in this run" in out


def test_collect_shows_how_long_and_how_much(tmp_path):
    """On a terminal a bar counts questions, tells the time left and the cost so far."""
    pty = pytest.importorskip("pty")
    (tmp_path / "bad_input_app.py").write_text(APP)
    rows = [{"question": f"What is 2 + 2, time {i}?", "answer": 4} for i in range(40)]
    (tmp_path / "q.jsonl").write_text(_lines(rows))
    master, slave = pty.openpty()
    command = "from cascadellm.cli import main; main()"
    done = subprocess.Popen(
        [sys.executable, "-c", command, "collect", "q.jsonl", "--cascade", "bad_input_app:llm"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=slave,
        env={**_environment(), "COLUMNS": "100", "TERM": "xterm"},
    )
    os.close(slave)
    shown = b""
    try:
        while part := os.read(master, 65536):
            shown += part
    except OSError:
        # the other end is closed
        pass
    os.close(master)
    assert 0 == done.wait(timeout=60)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    steps = re.findall(r"(\d+)/40 +\d:\d\d:\d\d +(\S+) +([0-9.e-]+) USD", text)
    assert "40" == steps[-1][0]
    assert 40 * 12e-6 == pytest.approx(float(steps[-1][2]))
    # a time left was told before the end, and the cost grew
    assert any(re.fullmatch(r"\d:\d\d:\d\d", left) for count, left, _ in steps if count != "40")
    assert float(steps[0][2]) < float(steps[-1][2])


def test_scores_of_nan_in_part_are_counted(run, tmp_path):
    """Missing scores are counted, and never accepted."""
    rows = [_row(i, score=None if i % 4 == 0 else _row(i)["score"]) for i in range(1200)]
    _given(_lines(rows), tmp_path / "r.jsonl")
    status, out, err = run("calibrate", "r.jsonl", "--target-risk", 0.2, "-o", "c.json")
    assert 0 == status, err
    assert "243 of 960 records have no score and always defer" in _flat(out)
    assert np.isfinite(json.loads((tmp_path / "c.json").read_text())["risk"])
