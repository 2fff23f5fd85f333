"""The JSONL sink: whole lines, rotation, a killed process, hostile text."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cascadellm import Answer, Attempt, ConfigurationError, JsonlSink, Record, Trace
from cascadellm.jsonl import LineFile, encode_line, generations, read_jsonl


def record(text: str = "hello", cost: float | None = 0.5) -> Record:
    """Return a small record."""
    attempt = Attempt(0, "small", "accept", cost_usd=cost, output_tokens=1, input_tokens=1)
    trace = Trace("small", 0, False, (attempt,), 0.1, cost, {"small": {"input": 1, "output": 1}})
    return Record(trace, time=1.0, input="q", output=text)


def test_line_when_text_is_odd(tmp_path: Path) -> None:
    """Line separators, lone surrogates and infinite scores stay one line of valid JSON."""
    sink = JsonlSink(tmp_path / "deep" / "t.jsonl")
    sink.write(record("a\u2028b\nc \ud800 \U0001f68b"))
    rows, bad = read_jsonl(sink.path)

    assert bad == []
    assert rows[0]["output"] == "a\u2028b\nc \ud800 \U0001f68b"


def test_encode_line_when_a_number_is_infinite() -> None:
    """What is no JSON raises instead of writing a line no other reader accepts."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_line({"score": float("inf")})


def test_append_when_the_file_ends_torn(tmp_path: Path) -> None:
    """What a killed writer left behind the last newline is removed by the next one."""
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"a":1}\n{"torn":"' + b"x" * 200_000)
    LineFile(path).append(b'{"b":2}\n')

    assert path.read_bytes() == b'{"a":1}\n{"b":2}\n'


def test_append_when_only_a_torn_line_is_there(tmp_path: Path) -> None:
    """A file that holds nothing but a torn line starts afresh."""
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"torn')
    LineFile(path).append(b"{}\n")

    assert path.read_bytes() == b"{}\n"


def test_append_when_healing_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The torn-line test has power: without the repair a torn line stays between lines."""
    monkeypatch.setattr("cascadellm.jsonl._without_torn_line", lambda d: os.fstat(d).st_size)
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"a":1}\n{"torn')
    LineFile(path).append(b'{"b":2}\n')

    assert len(read_jsonl(path)[1]) == 1


def test_append_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails half way leaves no part of its line."""
    path = tmp_path / "t.jsonl"
    file = LineFile(path)
    file.append(b"{}\n")
    real = os.write
    turns: list[int] = []

    def full(descriptor: int, data: bytes) -> int:
        turns.append(1)
        if len(turns) > 1:
            raise OSError(28, "No space left on device")
        return real(descriptor, bytes(data)[:4])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        file.append(b'{"long": "line"}\n')
    monkeypatch.undo()

    assert path.read_bytes() == b"{}\n"


def test_rotation_when_the_file_is_full(tmp_path: Path) -> None:
    """Files rotate by size, the newest backup is .1, and the oldest is dropped."""
    path = tmp_path / "t.jsonl"
    file = LineFile(path, max_bytes=20, backups=2)
    for number in range(8):
        file.append(encode_line({"n": number}))
    found = [row["n"] for name in generations(path) for row in read_jsonl(name)[0]]

    assert found == sorted(found)
    assert found[-1] == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.jsonl", "t.jsonl.1", "t.jsonl.2"]
    assert all(p.stat().st_size <= 20 for p in tmp_path.iterdir())


def test_rotation_when_one_line_is_larger_than_the_limit(tmp_path: Path) -> None:
    """A line longer than the limit is written whole, into a file of its own."""
    file = LineFile(tmp_path / "t.jsonl", max_bytes=10)
    file.append(b'{"a":"' + b"x" * 50 + b'"}\n')
    file.append(b"{}\n")

    assert [len(read_jsonl(p)[0]) for p in generations(file.path)] == [1, 1]


def test_append_when_many_threads_write_and_rotate(tmp_path: Path) -> None:
    """Several sinks on one file, in several threads, lose and tear nothing."""
    path = tmp_path / "t.jsonl"

    def work(name: int) -> None:
        file = LineFile(path, max_bytes=400, backups=500)
        for number in range(50):
            file.append(encode_line({"who": name, "n": number}))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    read = [read_jsonl(p) for p in generations(path)]

    assert all(bad == [] for _, bad in read)
    seen = {(row["who"], row["n"]) for rows, _ in read for row in rows}
    assert seen == {(who, n) for who in range(4) for n in range(50)}


WRITER = """
import sys
from cascadellm.jsonl import LineFile, encode_line
file = LineFile(sys.argv[1], max_bytes=int(sys.argv[2]) or None, backups=1000)
print("ready", flush=True)
number = 0
while True:
    file.append(encode_line({"n": number, "text": "x" * 300_000}))
    number += 1
"""


@pytest.mark.parametrize("max_bytes", [0, 2_000_000])
def test_sink_when_the_process_is_killed(tmp_path: Path, max_bytes: int) -> None:
    """After kill -9 while long lines are written, every line that the next run finds is whole."""
    path = tmp_path / "t.jsonl"
    for turn in range(4):
        command = [sys.executable, "-c", WRITER, str(path), str(max_bytes)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.03 + 0.017 * turn)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    LineFile(path).append(encode_line({"n": -1}))
    files = generations(path)
    read = [read_jsonl(p) for p in files]

    assert [bad for _, broken in read for bad in broken] == []
    assert sum(len(rows) for rows, _ in read) > 4
    assert all(p.read_bytes().endswith(b"\n") for p in files)


def test_read_when_lines_are_bad(tmp_path: Path) -> None:
    """Each unreadable line is reported with its number and what is wrong."""
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"a":1}\n\nnot json\n[1]\n"s"\ntrue\nnull\n3\n\xff\xfe\n{"a":2}')
    rows, bad = read_jsonl(path)

    assert [{"a": 1}, {"a": 2}] == rows
    assert [3, 4, 5, 6, 7, 8, 9] == [line.number for line in bad]
    assert "a JSON object is expected, got a list" == bad[1].reason
    assert str(bad[0]).startswith(f"{path}:3: no JSON")


def test_read_when_a_line_is_nested_too_deep(tmp_path: Path) -> None:
    """A line nested deeper than Python can read is a bad line, not a crash."""
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"[" * 100_000 + b"\n{}\n")

    assert ([{}], 1) == (read_jsonl(path)[0], read_jsonl(path)[1][0].number)


@pytest.mark.parametrize("options", [{"max_bytes": 0}, {"backups": 0}])
def test_sink_when_an_option_is_out_of_range(tmp_path: Path, options: dict[str, int]) -> None:
    """A limit that cannot hold is refused where the sink is built."""
    with pytest.raises(ConfigurationError, match="must be >= 1"):
        JsonlSink(tmp_path / "t.jsonl", **options)


def test_sink_when_content_is_off(tmp_path: Path) -> None:
    """Without content a line holds the record and no text of question or answer."""
    from cascadellm import Request
    from cascadellm.events import Accepted

    sink = JsonlSink(tmp_path / "t.jsonl", content=False)
    kept = record()
    sink.on_event(Accepted(Request("x", "secret"), Answer("secret"), kept.trace, ("secret",)))

    assert "secret" not in sink.path.read_text()
    assert json.loads(sink.path.read_text())["answered_by"] == "small"
