"""Collecting records: every tier once, whatever happens, through engine and frameworks."""

from __future__ import annotations

import json
import math
import threading

import pytest

from cascadellm.answer import Answer, TokenScore, Usage
from cascadellm.calibration.collect import Question, collect_records, read_questions
from cascadellm.calibration.collected import read_collected, to_records
from cascadellm.calibration.grading import exact_match, judged_by, normalised, same_text
from cascadellm.cascade import Cascade
from cascadellm.errors import CalibrationError, ConfigurationError
from cascadellm.policies import Threshold
from cascadellm.scores import mean_logprob, min_logprob
from cascadellm.testing import FakeModel
from cascadellm.tier import Price, Tier


def _text_of(messages):
    last = messages if isinstance(messages, str) else messages[-1]
    return last["content"] if isinstance(last, dict) else str(getattr(last, "content", last))


def _double(messages, **_):
    """Answer twice the number asked for, with a log-probability that falls with it."""
    number = int("".join(c for c in _text_of(messages) if c.isdigit()))
    token = TokenScore(str(2 * number), -number / 10)
    return Answer(str(2 * number), tokens=(token,), usage=Usage(10, 1))


def _wrong(messages, **_):
    answer = _double(messages)
    return Answer("7", tokens=answer.tokens, usage=answer.usage)


PRICE = Price(input=1.0, output=2.0)


def _cascade(small=_wrong, large=_double, price=PRICE):
    models = FakeModel(small, name="small"), FakeModel(large, name="large")
    tiers = [Tier(m, price=price) for m in models]
    return Cascade(tiers, Threshold(mean_logprob, -0.5)), models


def _questions(n=12):
    return [Question(f"double {i}", str(2 * i)) for i in range(n)]


def test_every_tier_is_asked_once(tmp_path):
    """Each tier answers each question once, and grades, costs and scores are kept."""
    cascade, models = _cascade()
    found = collect_records(cascade, _questions(), tmp_path / "a.jsonl")
    assert [12, 12] == [len(m.calls) for m in models]
    assert 24 == found.asked
    assert 24 * 12e-6 == pytest.approx(found.cost_usd)
    assert not found.stopped
    records = to_records(found.records, mean_logprob, columns={"min": min_logprob})
    assert [-i / 10 for i in range(12)] == pytest.approx(records.scores[:, 0].tolist())
    assert [1.0] * 12 == records.correct[:, 1].tolist()
    assert 0.0 == records.correct[3, 0]
    assert ("mean_logprob",) == records.score_names
    assert 12e-6 == pytest.approx(records.cost[0, 0])
    assert 0 == records.agree.sum()


def test_finished_file_asks_nothing_again(tmp_path):
    """A second run over a finished file makes no call and returns equal records."""
    path = tmp_path / "a.jsonl"
    cascade, _ = _cascade()
    first = collect_records(cascade, _questions(), path)
    again, models = _cascade()
    second = collect_records(again, _questions(), path)
    assert [0, 0] == [len(m.calls) for m in models]
    assert first.records == second.records
    read, left = read_collected(path)
    assert 0 == left
    assert {r.id: r for r in first.records} == {r.id: r for r in read}


def test_killed_run_resumes_without_asking_twice(tmp_path):
    """After a kill at any place, torn last line included, only what is missing is asked."""
    path = tmp_path / "a.jsonl"
    cascade, _ = _cascade()
    collect_records(cascade, _questions(6), path, concurrency=1)
    lines = path.read_bytes().splitlines(keepends=True)
    for kept in range(len(lines)):
        path.write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
        fresh, models = _cascade()
        found = collect_records(fresh, _questions(6), path, concurrency=1)
        assert 12 - kept == sum(len(m.calls) for m in models)
        assert 6 == len(found.records)
        assert 12 == len(path.read_bytes().splitlines())


def test_budget_stops_the_run(tmp_path):
    """No question is begun once the budget is spent, and the rest can be collected later."""
    path = tmp_path / "a.jsonl"
    cascade, _ = _cascade()
    found = collect_records(cascade, _questions(), path, concurrency=1, max_cost_usd=60e-6)
    assert found.stopped
    assert (3, 9) == (len(found.records), found.left)
    assert 72e-6 == pytest.approx(found.cost_usd)


def test_budget_needs_prices(tmp_path):
    """A budget without prices, or no number, is an error before anything is asked."""
    cascade, models = _cascade(price=None)
    with pytest.raises(CalibrationError, match=r"needs a price on every tier.*nothing was asked"):
        collect_records(cascade, _questions(), tmp_path / "a.jsonl", max_cost_usd=1.0)
    for wrong in (-1.0, math.nan):
        with pytest.raises(CalibrationError, match="max_cost_usd must be a number >= 0"):
            collect_records(cascade, _questions(), tmp_path / "a.jsonl", max_cost_usd=wrong)
    assert not (tmp_path / "a.jsonl").exists()
    assert [0, 0] == [len(model.calls) for model in models]


def test_unknown_price_is_no_zero(tmp_path):
    """Without a price the cost of the run is unknown."""
    cascade, _ = _cascade(price=None)
    found = collect_records(cascade, _questions(2), tmp_path / "a.jsonl")
    assert found.cost_usd is None
    assert math.isnan(to_records(found.records, mean_logprob).cost[0, 0])


@pytest.mark.parametrize("broken", [0, 1])
def test_failing_tier_leaves_the_question_open(tmp_path, broken):
    """A tier that raises leaves its question incomplete, and the next run asks that tier only."""
    path = tmp_path / "a.jsonl"

    def fails(messages, **_):
        if _text_of(messages) == "double 3":
            raise RuntimeError("overloaded")
        return _double(messages)

    cascade, _ = _cascade(*((fails, _double) if broken == 0 else (_double, fails)))
    found = collect_records(cascade, _questions(5), path)
    assert (4, 1) == (len(found.records), found.left)
    assert ["RuntimeError: overloaded"] == list(found.failed.values())
    repaired, models = _cascade(_double)
    again = collect_records(repaired, _questions(5), path)
    assert [broken == 0, broken == 1] == [len(m.calls) == 1 for m in models]
    assert 5 == len(again.records)


def test_concurrency_is_bounded(tmp_path):
    """Never more questions are in flight than asked for."""
    lock, state = threading.Lock(), {"now": 0, "most": 0}

    def slow(messages, **_):
        with lock:
            state["now"] += 1
            state["most"] = max(state["most"], state["now"])
        threading.Event().wait(0.005)
        with lock:
            state["now"] -= 1
        return _double(messages)

    cascade, _ = _cascade(slow, slow)
    collect_records(cascade, _questions(20), tmp_path / "a.jsonl", concurrency=3)
    assert 1 < state["most"] <= 3


def test_progress_counts_questions_and_cost(tmp_path):
    """Progress is told once per question, with the running cost."""
    seen = []
    cascade, _ = _cascade()
    collect_records(cascade, _questions(4), tmp_path / "a.jsonl", progress=seen.append)
    assert [1, 2, 3, 4] == [p.done for p in seen]
    assert 96e-6 == pytest.approx(seen[-1].cost_usd)


def test_langchain_cascade_is_collected(tmp_path):
    """A LangChain cascade gives the same records, and its own policy is not changed."""
    lc = pytest.importorskip("langchain_cascade")
    _, models = _cascade()
    llm = lc.CascadeLLM(
        tiers=[Tier(m, price=Price(input=1.0, output=2.0)) for m in models],
        policy=Threshold(mean_logprob, -0.5),
    )
    found = collect_records(llm, _questions(4), tmp_path / "a.jsonl")
    records = to_records(found.records, mean_logprob)
    assert [0, -0.1, -0.2, -0.3] == pytest.approx(records.scores[:, 0].tolist())
    assert [4, 4] == [len(m.calls) for m in models]
    assert Threshold(mean_logprob, -0.5) == llm.policy


def test_llamaindex_cascade_is_collected(tmp_path):
    """A LlamaIndex cascade gives the same records."""
    li = pytest.importorskip("llamaindex_cascade")
    _, models = _cascade()
    llm = li.CascadeLLM(
        tiers=[Tier(m, price=Price(input=1.0, output=2.0)) for m in models],
        policy=Threshold(mean_logprob, -0.5),
    )
    found = collect_records(llm, _questions(4), tmp_path / "a.jsonl")
    records = to_records(found.records, mean_logprob)
    assert [0, -0.1, -0.2, -0.3] == pytest.approx(records.scores[:, 0].tolist())


def test_repeated_question_is_refused(tmp_path):
    """Two questions with one name are an error that counts them."""
    cascade, _ = _cascade()
    with pytest.raises(CalibrationError, match="question 2 repeats the name"):
        collect_records(cascade, [Question("double 1")] * 2, tmp_path / "a.jsonl")


def test_file_of_another_cascade_is_refused(tmp_path):
    """Answers of other tiers are never mixed into one file."""
    path = tmp_path / "a.jsonl"
    cascade, models = _cascade()
    collect_records(cascade, _questions(2), path)
    before = path.read_bytes()
    other = Cascade([Tier(models[0], name="tiny"), models[1]], Threshold(mean_logprob, 0))
    with pytest.raises(CalibrationError, match="collect another cascade into another file"):
        collect_records(other, _questions(2), path)
    assert before == path.read_bytes()


def test_file_of_another_kind_is_left_alone(tmp_path):
    """A file that holds something else is not appended to."""
    path = tmp_path / "notes.txt"
    path.write_text("not\njson\nat all\n")
    cascade, _ = _cascade()
    with pytest.raises(CalibrationError, match="refusing to append"):
        collect_records(cascade, _questions(2), path)
    assert "not\njson\nat all\n" == path.read_text()


def test_no_cascade_is_refused(tmp_path):
    """An object without tiers is an error that says what is expected."""
    with pytest.raises(ConfigurationError, match="at least two tiers"):
        collect_records(object(), _questions(2), tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": "a"}\nnonsense\n', "line 2: not JSON"),
        ('{"question": "a"}\n\n[1]\n', "line 3: expected a JSON object"),
        ('{"ask": "a"}\n', "line 1: expected a text or messages"),
        ("\n", "holds no questions"),
    ],
)
def test_malformed_questions_name_the_line(tmp_path, text, message):
    """Each malformed line of questions gives one sentence with its number."""
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    with pytest.raises(CalibrationError, match=message):
        read_questions(path)


def test_questions_are_read(tmp_path):
    """Text, messages, reference and id are read."""
    path = tmp_path / "q.jsonl"
    rows = [
        {"question": "a", "answer": 4, "id": "one"},
        {"messages": [{"role": "user", "content": "b"}]},
    ]
    path.write_text("\n".join(json.dumps(r) for r in rows))
    first, second = read_questions(path)
    assert ("one", "4") == (first.name, first.answer)
    assert 16 == len(second.name)


@pytest.mark.parametrize(
    ("reference", "text", "grade"),
    [
        ("Paris", " paris. ", 1.0),
        ("Paris", "It is Paris", 0.0),
        ("1,200", "The sum is 1200.", 1.0),
        ("12", "12 apples and 3 pears", 0.0),
        ("the cat", "A cat!", 1.0),
        (None, "anything", None),
    ],
)
def test_exact_match_ignores_form_only(reference, text, grade):
    """Case, punctuation and articles do not count; numbers compare as numbers."""
    assert grade == exact_match("q", reference, Answer(text))


def test_agreement_compares_texts_and_tool_calls():
    """Answers agree when their normalised texts and calls do."""
    assert same_text(Answer("Yes."), Answer("yes"))
    assert not same_text(Answer("Yes."), Answer("no"))
    assert "x y" == normalised("(X)  the y.")


@pytest.mark.parametrize(
    ("reply", "grade"),
    [("Yes.", 1.0), ("no", 0.0), ("yes and no", None), ("", None), ("I refuse", None)],
)
def test_judge_that_is_unclear_grades_nothing(reply, grade):
    """A judge's clear word is a grade; anything else is no grade."""
    assert grade == judged_by(lambda _: reply)("q", "a", Answer("b"))


def test_grade_out_of_range_is_an_error(tmp_path):
    """A grading function that returns 5 is stopped."""
    cascade, _ = _cascade()
    with pytest.raises(ConfigurationError, match=r"must be a number in \[0, 1\]"):
        collect_records(cascade, _questions(1), tmp_path / "a.jsonl", grade=lambda *_: 5)


APP = """
from cascadellm.answer import Answer, TokenScore, Usage
from cascadellm.cascade import Cascade
from cascadellm.policies import Threshold
from cascadellm.scores import mean_logprob
from cascadellm.testing import FakeModel
from cascadellm.tier import Price, Tier


def small(messages, **_):
    number = int(messages[-1]["content"].split()[-1])
    right = number % 10 < 7
    token = TokenScore("x", -0.1 if number % 10 < 5 else -2.0)
    return Answer(str(2 * number if right else 0), tokens=(token,), usage=Usage(5, 1))


def large(messages, **_):
    return Answer(str(2 * int(messages[-1]["content"].split()[-1])), usage=Usage(5, 1))


models = FakeModel(small, name="small"), FakeModel(large, name="large")
llm = Cascade([Tier(m, price=Price(input=1, output=1)) for m in models], Threshold(mean_logprob, 0))
"""


def test_command_line_from_questions_to_page(tmp_path, monkeypatch):
    """`collect`, `calibrate` and `evaluate --html` work on each other's files."""
    from typer.testing import CliRunner

    from cascadellm.cli import _app
    from cascadellm.policies import Threshold

    monkeypatch.chdir(tmp_path)
    (tmp_path / "collect_app_for_test.py").write_text(APP)
    rows = [json.dumps({"question": f"double {i}", "answer": 2 * i}) for i in range(1, 301)]
    (tmp_path / "q.jsonl").write_text("\n".join(rows))

    def run(*arguments):
        done = CliRunner().invoke(_app(), list(arguments))
        assert 0 == done.exit_code, (done.output, done.exception)
        return done.output

    said = run("collect", "q.jsonl", "--cascade", "collect_app_for_test:llm", "-o", "a.jsonl")
    assert "300 of 300 questions are complete" in said
    assert "600 calls in this run, cost 0.0036 USD" in said
    said = run("calibrate", "a.jsonl", "--target-risk", "0.05", "-o", "c.json")
    assert "accept iff mean_logprob >= -0.1" in said
    assert -0.1 == Threshold.from_calibration(tmp_path / "c.json").threshold
    options = ("--calibration", "c.json", "--html", "e.html", "--json", "e.json")
    said = run("evaluate", "a.jsonl", "--resamples", "50", *options)
    assert "50% of 300 questions are answered without the last tier" in said.replace("\n", " ")
    assert json.loads((tmp_path / "e.json").read_text())["n"] == 300
