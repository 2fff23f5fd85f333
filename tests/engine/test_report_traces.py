"""The traces page and the report command: what they show, what they survive."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascadellm import (
    Answer,
    Cascade,
    Price,
    Request,
    Threshold,
    Tier,
    mean_logprob,
    record_cascade,
)
from cascadellm.perform import LocalPerformer, drive
from cascadellm.report import load_traces, render_traces, write_report
from cascadellm.testing import FakeModel

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=document.title='owned'>"
)


def record_calls(path: Path, count: int = 12) -> None:
    """Record calls that accept, escalate and fail over, with hostile text in all places."""
    with record_cascade(path):
        for number in range(count):
            reply: Any = f"{HOSTILE} {number}"
            if number % 5 == 4:
                reply = ConnectionError(HOSTILE)
            small = FakeModel(reply, name="small", logprob=-0.1 * (number % 7))
            tiers = [
                Tier(small, price=Price(0.1, 0.2)),
                Tier(FakeModel(f"large {HOSTILE}", name="large"), price=Price(1, 2)),
            ]
            cascade = Cascade(tiers, Threshold(mean_logprob, -0.35))
            request = Request("q", f"Question {number} {HOSTILE}")
            drive(cascade.plan(request), LocalPerformer())


def data_of(page: str) -> dict[str, Any]:
    """Return the data block of a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])  # type: ignore[no-any-return]


def test_report_when_model_output_holds_markup(tmp_path: Path) -> None:
    """Script tags in questions, answers, errors and reasons never become markup."""
    record_calls(tmp_path / "t.jsonl")
    bad = write_report(tmp_path / "t.jsonl", tmp_path / "new" / "t.html", title=HOSTILE)
    page = (tmp_path / "new" / "t.html").read_text()

    assert [] == bad
    assert 2 == page.count("<script")
    assert 2 == page.count("</script")
    assert "<img" not in page


def test_report_when_escaping_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The markup test has power: with escaping switched off it finds the planted tags."""
    monkeypatch.setattr("cascadellm.report.html.html.escape", lambda text, quote: text)
    record_calls(tmp_path / "t.jsonl")
    page = render_traces(load_traces(tmp_path / "t.jsonl")[0], title=HOSTILE)

    assert 2 < page.count("<script")


def test_report_when_calls_were_recorded(tmp_path: Path) -> None:
    """The page carries headline numbers, every chart and every call, the latest first."""
    record_calls(tmp_path / "t.jsonl")
    rows, _ = load_traces(tmp_path / "t.jsonl")
    page = render_traces(rows, source="t.jsonl")
    calls = data_of(page)["calls"]

    for title in ("Share of answers per tier", "Scores of small", "Time of each call"):
        assert title in page
    assert "threshold -0.35" in page
    assert "mean_logprob (nats)" in page
    assert [f"Question {n}" for n in range(11, -1, -1)] == [
        c["question"].split(" <")[0].split("<")[0].strip() for c in calls
    ]
    assert {"small", "large"} == {c["by"] for c in calls}
    assert all(c["attempts"][0]["threshold"] in (-0.35, None) for c in calls)


def test_report_when_a_token_level_answer_was_recorded(tmp_path: Path) -> None:
    """Spans and counters of a token-level answer reach the page."""
    answer = Answer(
        "ab\U0001f68bcd", spans=((0, 3, "small"), (3, 5, "large")), speculation={"gamma": 5}
    )
    with record_cascade(tmp_path / "t.jsonl"):
        model = FakeModel(answer, name="small+large")
        drive(Cascade([model]).plan(Request("q")), LocalPerformer())
    call = data_of(render_traces(load_traces(tmp_path / "t.jsonl")[0]))["calls"][0]

    assert [[0, 3, "small"], [3, 5, "large"]] == call["spans"]
    assert {"gamma": 5} == call["speculation"]


def test_report_when_most_rows_is_small(tmp_path: Path) -> None:
    """The table lists the latest calls, the numbers count all, and the page says so."""
    record_calls(tmp_path / "t.jsonl")
    page = render_traces(load_traces(tmp_path / "t.jsonl")[0], most_rows=5)

    assert 5 == len(data_of(page)["calls"])
    assert "7 earlier calls are not listed" in page
    assert "12 calls" in page


@pytest.mark.parametrize("count", [1, 2, 3, 60])
def test_report_when_calls_are_few_or_many(tmp_path: Path, count: int) -> None:
    """A page is made from one call as from many, also without times."""
    record_calls(tmp_path / "t.jsonl", count)
    rows, _ = load_traces(tmp_path / "t.jsonl")
    for row in rows:
        del row["time"]

    assert count == len(data_of(render_traces(rows))["calls"])


def test_report_when_the_file_is_empty(tmp_path: Path) -> None:
    """An empty file makes a page that says so."""
    (tmp_path / "t.jsonl").touch()
    write_report(tmp_path / "t.jsonl", tmp_path / "t.html")

    assert "no finished call" in (tmp_path / "t.html").read_text()


def test_report_when_files_were_rotated(tmp_path: Path) -> None:
    """Rotated files are read too, oldest first."""
    record_calls(tmp_path / "t.jsonl", 3)
    (tmp_path / "t.jsonl").rename(tmp_path / "t.jsonl.1")
    record_calls(tmp_path / "t.jsonl", 2)

    assert 5 == len(load_traces(tmp_path / "t.jsonl")[0])


FORMS: list[tuple[dict[str, Any], str]] = [
    ({}, "'attempts' is missing"),
    ({"attempts": 3}, "'attempts' is missing"),
    ({"attempts": [3]}, "an attempt is no object"),
    ({"attempts": [{"tier": "0", "name": "a", "action": "accept"}]}, "'tier' is missing"),
    ({"attempts": [{"tier": 0, "name": None, "action": "accept"}]}, "'name' is missing"),
    ({"attempts": [], "answered_by": 3}, "'answered_by' must be text"),
    ({"attempts": [], "spans": [[0, 1]]}, "'spans' has an unknown form"),
    ({"attempts": [], "drafts": "x"}, "'drafts' has an unknown form"),
    ({"attempts": [], "tokens_by_tier": {"a": 3}}, "'tokens_by_tier' has an unknown form"),
    (
        {"attempts": [{"tier": 0, "name": "a", "action": "accept", "input_tokens": "9"}]},
        "'input_tokens' is no whole number",
    ),
    (
        {"attempts": [{"tier": 0, "name": "a", "action": "accept", "calls": [1]}]},
        "'calls' has an unknown form",
    ),
]


@pytest.mark.parametrize(("row", "reason"), FORMS)
def test_load_when_an_object_is_no_record(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    """An object of another form is a bad line with its number, and the page lists it."""
    path = tmp_path / "t.jsonl"
    path.write_text("\n" + json.dumps(row) + "\n")
    rows, bad = load_traces(path)

    assert ([], 2) == (rows, bad[0].number)
    assert reason in bad[0].reason
    assert "Unreadable lines" in render_traces(rows, bad)


ODD: list[Callable[[dict[str, Any]], None]] = [
    lambda row: row.update(latency_s="slow", cost_usd="free", time="noon"),
    lambda row: row["attempts"][0].update(score="inf", threshold="-inf", policy=3),
    lambda row: row.update(input=3, output=None, drafts=[1, None], speculation=[1]),
    lambda row: [row.pop(key) for key in ("drafts", "spans", "input", "output", "error", "time")],  # type: ignore[func-returns-value]
    lambda row: row.update(spans=[[5, 2, "x"], [0, 99, "y"]]),
]


@pytest.mark.parametrize("spoil", ODD)
def test_report_when_values_are_odd(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None]
) -> None:
    """A record with missing or odd values still makes a page."""
    record_calls(tmp_path / "t.jsonl", 4)
    rows, _ = load_traces(tmp_path / "t.jsonl")
    spoil(rows[0])

    assert 4 == len(data_of(render_traces(rows))["calls"])


def run_command(*arguments: str) -> Any:
    """Run `cascadellm report` in process."""
    typer = pytest.importorskip("typer")
    from typer.testing import CliRunner

    from cascadellm.report.cli import register

    app = typer.Typer()
    register(app)
    app.callback()(lambda: None)
    return CliRunner().invoke(app, ["report", *arguments])


def test_command_when_lines_are_bad(tmp_path: Path) -> None:
    """Bad lines are named with file and number, the rest is reported, the exit is 0."""
    path = tmp_path / "t.jsonl"
    record_calls(path, 3)
    with path.open("a") as file:
        file.write("{torn\n" + "[]\n" * 30)
    result = run_command(str(path))

    assert 0 == result.exit_code
    assert f"{path}:4: no JSON" in result.output
    assert "and 11 more unreadable lines" in result.output
    assert "Traceback" not in result.output
    assert path.with_suffix(".html").exists()


def test_command_when_the_file_is_missing(tmp_path: Path) -> None:
    """A missing file is one sentence and exit code 2."""
    result = run_command(str(tmp_path / "none.jsonl"))

    assert 2 == result.exit_code
    assert "none.jsonl: No such file" in result.output
    assert "Traceback" not in result.output


def test_command_when_no_call_is_in_the_file(tmp_path: Path) -> None:
    """A file without any call is said to be one, exit code 1."""
    (tmp_path / "t.jsonl").write_text("{}\n")
    result = run_command(str(tmp_path / "t.jsonl"))

    assert 1 == result.exit_code
    assert "no finished call" in result.output


def test_command_when_output_and_price_are_given(tmp_path: Path) -> None:
    """The page goes where it is told to, and the price enters the summary."""
    record_calls(tmp_path / "t.jsonl", 3)
    target = tmp_path / "a" / "b.html"
    result = run_command(str(tmp_path / "t.jsonl"), "-o", str(target), "--price", "1", "2")

    assert 0 == result.exit_code
    assert target.exists()
    assert "its price times the tokens of every call" in result.output


def test_command_when_the_page_cannot_be_written(tmp_path: Path) -> None:
    """A page that cannot be written is one sentence and exit code 2."""
    record_calls(tmp_path / "t.jsonl", 3)
    result = run_command(str(tmp_path / "t.jsonl"), "-o", str(tmp_path))

    assert 2 == result.exit_code
    assert "directory" in result.output.lower()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("How far?", "How far?"),
        ("system: Be brief.\nuser: How far?", "How far?"),
        ("System: Be brief.\nHuman: Hi\nAI: Hello\nHuman: How far?", "How far?"),
        ("user: Context:\nlong\nQuery: How far?\nAnswer: ", "How far?"),
        ("Summarise this: " + "x" * 500, "Summarise this: " + "x" * 384),
        (None, ""),
    ],
)
def test_row_when_a_conversation_was_recorded(text: str | None, shown: str) -> None:
    """A row shows what was asked last, not the prompt around it; the whole is in its detail."""
    from cascadellm.report.calls import _asked

    assert shown == _asked(text)


def test_page_when_calls_were_abandoned(tmp_path: Path) -> None:
    """The page leads with who answered, and counts, marks and filters abandoned calls."""
    attempt = {"tier": 0, "name": "small", "action": "stopped", "code": "abandoned"}
    row = {"answered_by": "small", "tier": 0, "attempts": [attempt], "latency_s": 0.5, "time": 1.0}
    page = render_traces([row, {**row, "attempts": [{**attempt, "code": "last"}]}])
    assert "small answered 100% of 2 answers." in page
    assert "1 abandoned" in page
    assert [True, False] == [call["left"] for call in data_of(page)["calls"]][::-1]
    assert '<option value="left">abandoned</option>' in page
