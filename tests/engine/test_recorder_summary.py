"""The recorder: which calls it sees, and what it adds them up to."""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
from pathlib import Path
from typing import Any

import pytest

from cascadellm import (
    Always,
    Cascade,
    MissingDependencyError,
    Never,
    Price,
    Request,
    Threshold,
    Tier,
    mean_logprob,
    record_cascade,
)
from cascadellm.jsonl import read_jsonl
from cascadellm.perform import LocalPerformer, drive
from cascadellm.summary import finite, percentile, summarise
from cascadellm.testing import FakeModel


def call(policy: Any, *, prices: tuple[Price | None, Price | None], **small: Any) -> None:
    """Run one call of a two-tier cascade."""
    tiers = [
        Tier(FakeModel("one two", name="small", **small), price=prices[0]),
        Tier(FakeModel("one two three four", name="large"), price=prices[1]),
    ]
    drive(Cascade(tiers, policy).plan(Request("a b c", "a b c")), LocalPerformer())


CHEAP, DEAR = Price(1.0, 2.0), Price(10.0, 20.0)


def test_summary_when_every_price_is_known() -> None:
    """Counts, rates and sums equal those worked out by hand."""
    with record_cascade() as recorder:
        for logprob in (-0.1, -0.2, -0.3, -0.9):
            call(Threshold(mean_logprob, -0.5), prices=(CHEAP, DEAR), logprob=logprob)
    found = recorder.summary()
    small, large = found.tiers
    # three input tokens; two output tokens from small, four from large
    per_small, per_large = (3 * 1 + 2 * 2) / 1e6, (3 * 10 + 4 * 20) / 1e6

    assert (4, 0, 1) == (found.calls, found.failed, found.escalated)
    assert (4, 3, 0.75, 0.25) == (small.asked, small.answered, small.share, small.deferral_rate)
    assert (1, 1, None) == (large.asked, large.answered, large.deferral_rate)
    assert found.cost_usd == pytest.approx(4 * per_small + per_large)
    assert found.large_alone_usd == pytest.approx(4 * per_large)
    assert found.savings == pytest.approx(1 - (4 * per_small + per_large) / (4 * per_large))
    assert "mean of the 1 calls that asked large" == found.large_alone_basis
    assert (small.input_tokens, small.output_tokens) == (12, 8)
    assert found.written == pytest.approx({"small": 21 / 39, "large": 18 / 39})


def test_summary_when_the_large_price_is_given() -> None:
    """With a price, calls that never asked the large tier count by their own tokens."""
    with record_cascade() as recorder:
        call(Never(), prices=(CHEAP, DEAR))
        call(Always(), prices=(CHEAP, DEAR))
    found = recorder.summary(large_price=DEAR)

    assert found.large_alone_usd == pytest.approx(((3 * 10 + 2 * 20) + (3 * 10 + 4 * 20)) / 1e6)
    assert "its price times the tokens of every call" == found.large_alone_basis


def test_summary_when_the_last_tier_was_never_asked() -> None:
    """What nobody asked has no cost that could be compared with, unless its price is given."""
    with record_cascade() as recorder:
        call(Never(), prices=(CHEAP, DEAR))

    assert (None, None) == (recorder.summary().large_alone_usd, recorder.summary().savings)
    assert "never asked" in recorder.summary().large_alone_basis
    priced = recorder.summary(large_price=DEAR)
    assert priced.large_alone_usd == pytest.approx((3 * 10 + 2 * 20) / 1e6)
    assert priced.savings == pytest.approx(1 - 7 / 70)


def test_summary_when_a_price_is_unknown() -> None:
    """An unknown price makes cost and savings unknown, never zero; the known part is kept."""
    with record_cascade() as recorder:
        call(Always(), prices=(None, DEAR))
        call(Never(), prices=(CHEAP, DEAR))
    found = recorder.summary()

    assert found.cost_usd is None
    assert found.savings is None
    assert 1 == found.unknown_cost_calls
    assert found.known_cost_usd == pytest.approx(7 / 1e6)
    assert "unknown" in str(found)


def test_summary_when_there_are_no_calls() -> None:
    """An empty recorder sums up to nothing and prints."""
    with record_cascade() as recorder:
        pass
    found = recorder.summary()

    assert (0, (), None, None) == (found.calls, found.tiers, found.p50_s, found.large_alone_usd)
    assert "0 calls" in str(found)


def test_summary_when_a_call_fails() -> None:
    """A call without an answer counts as failed and in no tier's share."""
    with record_cascade() as recorder:
        call(Never(), prices=(CHEAP, DEAR))
        broken = Cascade([FakeModel(RuntimeError("down"), name="small")])
        with pytest.raises(RuntimeError, match="down"):
            drive(broken.plan(Request("a")), LocalPerformer())
    found = recorder.summary()

    assert (2, 1) == (found.calls, found.failed)
    assert 1.0 == found.tiers[0].share
    assert 1 == found.tiers[0].errors


def test_summary_when_read_from_a_file(tmp_path: Path) -> None:
    """The lines of the sink sum up to the same as the records in memory."""
    path = tmp_path / "t.jsonl"
    with record_cascade(path) as recorder:
        for logprob in (-0.1, -0.9):
            call(Threshold(mean_logprob, -0.5), prices=(CHEAP, DEAR), logprob=logprob)

    assert recorder.summary() == summarise(read_jsonl(path)[0])


def test_summary_when_printed() -> None:
    """The table has one line per tier, aligned under its head."""
    with record_cascade() as recorder:
        call(Always(), prices=(CHEAP, DEAR))
    lines = str(recorder.summary()).splitlines()

    assert lines[0].split()[:4] == ["tier", "asked", "answered", "share"]
    assert lines[1].startswith("small")
    assert 1 == len({len(line) for line in lines[:3]})


@pytest.mark.parametrize(
    ("values", "level", "expected"),
    [([], 0.5, None), ([3.0], 0.95, 3.0), ([1.0, 2.0, 3.0], 0.5, 2.0), ([0.0, 10.0], 0.95, 9.5)],
)
def test_percentile_when_values_are_few(
    values: list[float], level: float, expected: float | None
) -> None:
    """Percentiles interpolate linearly between order statistics."""
    assert expected == percentile(values, level)


@pytest.mark.parametrize("value", [None, "inf", math.inf, math.nan, True, "3"])
def test_finite_when_the_value_is_no_number(value: Any) -> None:
    """Only finite numbers count as numbers."""
    assert finite(value) is None


def test_to_pandas_when_calls_were_recorded() -> None:
    """One row per call with its decision and token totals as columns."""
    pytest.importorskip("pandas")
    with record_cascade() as recorder:
        call(Threshold(mean_logprob, -0.5), prices=(CHEAP, DEAR), logprob=-0.9)
    frame = recorder.to_pandas()

    assert ["large"] == list(frame["answered_by"])
    assert [-0.9] == list(frame["score"])
    assert [6] == list(frame["output_tokens"])
    assert str(frame["time"].dtype).startswith("datetime64")


def test_to_pandas_when_pandas_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pandas the error names it and the command that installs it."""
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with record_cascade() as recorder:
        pass
    with pytest.raises(MissingDependencyError, match="pip install pandas"):
        recorder.to_pandas()


def test_recorder_when_a_thread_has_its_own_context() -> None:
    """A raw thread is seen only with the context handed over, as documented."""
    with record_cascade() as recorder:
        bare = threading.Thread(target=call, args=(Never(),), kwargs={"prices": (CHEAP, DEAR)})
        bare.start()
        bare.join()
        assert 0 == len(recorder.records)
        context = contextvars.copy_context()
        handed = threading.Thread(
            target=context.run, args=(call, Never()), kwargs={"prices": (CHEAP, DEAR)}
        )
        handed.start()
        handed.join()

    assert 1 == len(recorder.records)


async def test_recorder_when_tasks_and_worker_threads_run() -> None:
    """Tasks and `asyncio.to_thread` copy the context, so their calls are recorded."""
    with record_cascade() as recorder:
        await asyncio.gather(
            *(asyncio.to_thread(call, Never(), prices=(CHEAP, DEAR)) for _ in range(5))
        )

    assert 5 == len(recorder.traces)


def test_recorder_when_nested() -> None:
    """Inner and outer recorders both see the inner call; the inner one sees no other."""
    with record_cascade() as outer:
        call(Never(), prices=(CHEAP, DEAR))
        with record_cascade() as inner:
            call(Never(), prices=(CHEAP, DEAR))

    assert (2, 1) == (len(outer.records), len(inner.records))


def test_recorder_when_the_block_has_ended() -> None:
    """After the block nothing more is recorded."""
    with record_cascade() as recorder:
        pass
    call(Never(), prices=(CHEAP, DEAR))

    assert [] == recorder.records


def test_recorder_when_on_record_is_given() -> None:
    """The callback receives each record as it is made."""
    seen: list[Any] = []
    with record_cascade() as recorder:
        recorder.on_record = seen.append
        call(Never(), prices=(CHEAP, DEAR))

    assert recorder.records == seen


def test_recorder_when_its_file_rotates(tmp_path: Path) -> None:
    """`max_bytes` rotates the recorder's file."""
    path = tmp_path / "t.jsonl"
    with record_cascade(path, max_bytes=1500):
        for _ in range(6):
            call(Never(), prices=(CHEAP, DEAR))

    assert (tmp_path / "t.jsonl.1").exists()
