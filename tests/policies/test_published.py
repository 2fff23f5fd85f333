"""Published behaviour through the policies themselves, where the records are at hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cascadellm import Agreement
from cascadellm.ledger import Ledger

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
DATA = os.environ.get("CASCADELLM_DATA", "")
needs_data = pytest.mark.skipif(
    not (DATA and (Path(DATA) / "replay").is_dir()), reason="set CASCADELLM_DATA"
)


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's replay, whose modules lie beside each other."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import policies_replay

    return policies_replay


def check_three(rows: list[Any]) -> None:
    """Check that three agreeing small models reach the large one's own accuracy, all paid."""
    (three,) = [row for row in rows if "of 3" in row.policy and "gpt-4o" in row.place]
    assert 0.29 <= three.deferred <= 0.32
    assert three.accuracy >= 0.962 - 0.0005
    assert 3.0 == pytest.approx(three.calls)


@needs_data
def test_agreement_when_three_small_models_vote(replayed: Any) -> None:
    """Llama-3.1-8B, Qwen2-7B and Gemma-2-9B agreeing reach GPT-4o on GSM8K at 30% escalation."""
    rows = replayed.agreement(Path(DATA))
    check_three(rows)
    points = {row.place + row.policy: (row.deferred, row.accuracy) for row in rows}
    for row in rows:
        share, accuracy = row.stated.split("% -> ")
        # the numbers in a few answers read differently in the stated table
        found = points[row.place + row.policy]
        assert found == pytest.approx((float(share) / 100, float(accuracy)), abs=0.0015)


@needs_data
@pytest.mark.parametrize("broken", ["majority is enough", "voters are free"])
def test_agreement_when_it_is_broken(
    broken: str, replayed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check has power: a mere majority, and voters that cost nothing, are noticed."""
    if broken == "voters are free":
        monkeypatch.setattr(Ledger, "_charge", lambda *_: None)
    else:
        monkeypatch.setattr(
            replayed, "Agreement", lambda models, least, **o: Agreement(models, least * 0.6, **o)
        )
    with pytest.raises(AssertionError):
        check_three(replayed.agreement(Path(DATA)))


@needs_data
def test_scores_when_records_state_them(replayed: Any) -> None:
    """Thresholds and judges reproduce the stated norms to three digits."""
    rows = [*replayed.confidence(Path(DATA)), *replayed.useless(Path(DATA))]
    stated = [row for row in rows if row.stated.startswith(".")]
    assert 4 == len(stated)
    for row in stated:
        assert row.stated == f"{row.norm:.3f}".removeprefix("0")
    (valid,) = [row for row in rows if row.policy.startswith("Valid")]
    assert "AUROC 0.51" in valid.policy


def test_benchmark_without_the_records_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the records the benchmark says what to set, and leaves them out."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("CASCADELLM_DATA", "")
    import policies

    assert [] == policies._replayed(quick=True)
    assert "set CASCADELLM_DATA" in capsys.readouterr().out
