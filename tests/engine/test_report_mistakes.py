"""The report command under wrong arguments, and the charts of calls under several thresholds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cascadellm import Cascade, Request, Threshold, mean_logprob, record_cascade
from cascadellm.perform import LocalPerformer, drive
from cascadellm.report import load_traces, render_traces
from cascadellm.testing import FakeModel
from tests.engine.test_report_traces import record_calls, run_command


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["t.jsonl", "-o", "t.jsonl"], "the page would replace the records"),
        (["t.jsonl", "-o", "t.jsonl.1"], "the page would replace the records"),
        (["t.html"], "the page would replace the records"),
        (["."], "a folder; name the JSONL file in it"),
        (["none.jsonl"], "No such file"),
        (["t.jsonl", "-o", "t.html/page.html"], "t.html"),
    ],
)
def test_command_when_an_argument_is_wrong(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong argument is one sentence and exit code 2, and no record is touched."""
    monkeypatch.chdir(tmp_path)
    record_calls(tmp_path / "t.jsonl", 2)
    text = (tmp_path / "t.jsonl").read_text()
    for name in ("t.jsonl.1", "t.html"):
        (tmp_path / name).write_text(text)
    result = run_command(*arguments)

    assert (2, 1) == (result.exit_code, result.output.strip().count("\n") + 1)
    assert sentence in result.output
    for name in ("t.jsonl", "t.jsonl.1", "t.html"):
        assert text == (tmp_path / name).read_text()


@pytest.mark.parametrize(
    "arguments", [[], ["t.jsonl", "--price", "1"], ["t.jsonl", "--price", "a", "b"], ["--no"]]
)
def test_command_when_it_is_called_wrongly(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the command cannot read is said, with exit code 2 and without a stack."""
    monkeypatch.chdir(tmp_path)
    result = run_command(*arguments)

    assert 2 == result.exit_code
    assert "Error" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "t.jsonl: no finished call"),
        (b"\n\n", "t.jsonl: no finished call"),
        (b"\n{}\n", "t.jsonl:2: no record of a call"),
        (b"[1]\n", "t.jsonl:1: a JSON object is expected"),
        (b'{"attempts": []\n', "t.jsonl:1: no JSON"),
        (b"\x93\x00\xff\n", "t.jsonl:1: no JSON"),
        (b'{"attempts": [{"tier": 0}]}\n', "t.jsonl:1: no record of a call: an attempt's 'name'"),
    ],
)
def test_command_when_a_file_holds_no_call(content: bytes, said: str, tmp_path: Path) -> None:
    """Of an empty or malformed file each line is named by its number with what is wrong."""
    (tmp_path / "t.jsonl").write_bytes(content)
    result = run_command(str(tmp_path / "t.jsonl"))

    assert 1 == result.exit_code
    assert said in result.output.replace("\n", "")
    assert "Traceback" not in result.output


def record_under(path: Path, thresholds: list[float]) -> str:
    """Record three calls per threshold; return the page."""
    with record_cascade(path):
        for threshold in thresholds:
            for logprob in (-0.1, -0.3, -0.5):
                small = FakeModel("hm", name="small", logprob=logprob)
                policy = Threshold(mean_logprob, threshold)
                cascade = Cascade([small, FakeModel("ok", name="large")], policy)
                drive(cascade.plan(Request("q", "hi")), LocalPerformer())
    return render_traces(load_traces(path)[0])


def test_page_when_two_thresholds_were_used(tmp_path: Path) -> None:
    """Each of a few thresholds has a histogram, in which it parts accepted from deferred."""
    page = record_under(tmp_path / "t.jsonl", [-0.2, -0.4])

    assert 2 == page.count("Scores of small")
    assert 2 == page.count("3 calls with this threshold")
    for threshold, accepted in (("-0.2", 1), ("-0.4", 2)):
        at = page.index(f">threshold {threshold}<")
        chart = page[page.rindex("<svg", 0, at) : at]
        counts = re.findall(r"<title>accepted, [^<]*: (\d+)</title>", chart)
        assert accepted == sum(map(int, counts))


def test_page_when_the_threshold_keeps_moving(tmp_path: Path) -> None:
    """Many thresholds share one histogram, and the page says which one is marked."""
    page = record_under(tmp_path / "t.jsonl", [-0.2, -0.3, -0.4, -0.45, -0.2])

    assert 1 == page.count("Scores of small")
    assert "4 thresholds were used; the most frequent is marked" in page
    assert ">threshold -0.2<" in page


@pytest.mark.parametrize(
    ("span", "labels"),
    [
        (15.0, ["0", "5", "10", "15"]),
        (50.0, ["12:00:00", "12:00:10", "12:00:50"]),
        (3 * 3600.0, ["12:00", "12:30", "15:00"]),
        (5 * 86400.0, ["01-02", "01-04"]),
        (1e9, ["seconds since", "time (UTC)"][1:]),
    ],
)
def test_page_when_calls_span_a_while(span: float, labels: list[str], tmp_path: Path) -> None:
    """The ticks of time axes stand at round times, whatever the calls span."""
    record_calls(tmp_path / "t.jsonl", 6)
    rows, _ = load_traces(tmp_path / "t.jsonl")
    noon = 1_767_268_800.0
    for place, row in enumerate(rows):
        row["time"] = noon + span * place / 5
    page = render_traces(rows)

    for label in labels:
        assert f">{label}</text>" in page
