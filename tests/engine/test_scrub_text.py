"""Credentials that an error quotes stay out of records, files and pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from cascadellm import Cascade, Request, Threshold, mean_logprob, record_cascade
from cascadellm.perform import LocalPerformer, drive
from cascadellm.report import write_report
from cascadellm.scrub import scrubbed_text
from cascadellm.testing import FakeModel

PLANTED = "sk-planted0451"

LEAKS = [
    rf"Illegal header value b'Bearer {PLANTED}\n'",
    f"Illegal header value b'{PLANTED.removeprefix('sk-')} with a space'",
    f"Incorrect API key provided: {PLANTED}.",
    f"401 for url 'https://me:{PLANTED}@host/v1/chat'",
    f"sent headers {{'Authorization': 'Bearer {PLANTED}', 'x-api-key': 'planted0451'}}",
    "no access: Bearer eyJplanted0451.abc",
    "Authorization: Basic bWU6cGxhbnRlZDA0NTE=",
    "access_token=planted0451&x=1",
    "password: planted0451",
]

PLAIN = [
    "Unexpected token: } at 7",
    "the basic problem is a bearer of bad news",
    "max_tokens: 700 is more than 512",
    "API key not found; set OPENAI_API_KEY",
    "https://host/v1/chat?user=me@example.org",
    "risk-planted answers, task_0451_of_the_day",
    "no secret garden",
]


@pytest.mark.parametrize("text", LEAKS)
def test_text_when_it_quotes_a_credential(text: str) -> None:
    """What has the form of a credential is replaced, and the error can still be understood."""
    shown = scrubbed_text(text)
    assert "planted0451" not in shown
    assert "bWU6" not in shown
    assert "**hidden**" in shown
    assert shown.split()[0] == text.split(maxsplit=1)[0] or text.startswith("access_token")


@pytest.mark.parametrize("text", PLAIN)
def test_text_when_it_holds_none(text: str) -> None:
    """An error without a credential reads as it was raised."""
    assert text == scrubbed_text(text)


def record_failures(path: Path) -> str:
    """Return everything that calls leave whose tiers, judge and last tier quote a key."""
    small = FakeModel(ConnectionError(LEAKS[0]), name="small")
    refused = FakeModel(PermissionError(LEAKS[3]), name="refused")
    sure = FakeModel("hm", name="sure", logprob=-0.1)

    def breaks(answer: object) -> bool:
        raise RuntimeError(LEAKS[2])

    failing = Cascade([small, refused], Threshold(mean_logprob, -0.35))
    judged = Cascade([sure, FakeModel("ok", name="large")], breaks)
    with record_cascade(path) as recorder:
        # the caller's own error is left as it is
        with pytest.raises(PermissionError, match=PLANTED):
            drive(failing.plan(Request("q", "hi")), LocalPerformer())
        drive(judged.plan(Request("q", "hi")), LocalPerformer())
    write_report(path, path.with_suffix(".html"))
    shown = [str(trace.to_dict()) for trace in recorder.traces]
    files = [path.read_text(), path.with_suffix(".html").read_text()]
    return "\n".join([*shown, *files, str(recorder.summary())])


def test_record_when_an_error_quotes_a_key(tmp_path: Path) -> None:
    """Records, the JSONL file, the summary and the page show the error without the key."""
    everything = record_failures(tmp_path / "t.jsonl")
    assert everything.count("**hidden**") >= 6
    assert PLANTED not in everything


def test_record_when_nothing_is_scrubbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search has power: without the scrubbing it finds the planted key (mutation)."""
    monkeypatch.setattr("cascadellm.scrub._FORMS", ())
    assert PLANTED in record_failures(tmp_path / "t.jsonl")
