"""Budgets across processes: one file counts what all of them spend."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cascadellm import (
    Answer,
    Budget,
    BudgetExceededError,
    Cascade,
    ConfigurationError,
    Price,
    Request,
    SharedSpending,
    Spending,
    Tier,
    Usage,
)
from cascadellm.testing import FakeClock, FakeModel
from tests.engine.running import MODES, run

SAID = Answer("x", usage=Usage(400_000, 600_000), finish_reason="stop")


def cascade(policy: Any, price: Price | None = Price(1, 1)) -> Cascade:  # noqa: B008
    """Return two tiers whose calls cost a dollar each."""
    return Cascade([Tier(FakeModel(SAID, name=f"t{i}"), price=price) for i in range(2)], policy)


def asked(user: str = "a") -> Request:
    """Return a request of a user."""
    return Request("q", "q", metadata={"user": user})


def spend(path: str, user: str, times: int) -> None:
    """Spend a dollar so many times, in whatever process this runs."""
    account = SharedSpending(path, "user")
    for _ in range(times):
        run(cascade(Budget(usd=0.5)), "invoke", asked(user), [account])


def check_shared(account: Any, usd: float) -> None:
    """Check that what other processes spent is counted."""
    assert usd == account.usd(asked("a"))
    assert int(usd * 1e6) == account.tokens(asked("a"))


def test_spending_when_processes_share_a_file(tmp_path: Path) -> None:
    """What four processes spend at once is counted to the last call, by user."""
    path = str(tmp_path / "spent.db")
    SharedSpending(path)
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=spend, args=(path, user, 10)) for user in "aaab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)

    assert [0] * 4 == [worker.exitcode for worker in workers]
    check_shared(SharedSpending(path, "user"), 30.0)
    assert 10.0 == SharedSpending(path, "user").usd(asked("b"))
    # the check has power: an account in memory knows nothing of other processes
    with pytest.raises(AssertionError):
        check_shared(Spending("user"), 30.0)


def test_spending_when_threads_share_an_object(tmp_path: Path) -> None:
    """Threads lose no call."""
    path = str(tmp_path / "spent.db")
    SharedSpending(path)
    threads = [threading.Thread(target=spend, args=(path, "a", 5)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_shared(SharedSpending(path, "user"), 40.0)


@pytest.mark.parametrize("mode", MODES)
def test_budget_when_another_process_has_spent(tmp_path: Path, mode: str) -> None:
    """A budget stops at what the file says, accepting or raising, on every path."""
    path = str(tmp_path / "spent.db")
    spend(path, "a", 3)
    account = SharedSpending(path, "user")
    accepts, raises = (
        cascade(Budget(usd=3.5, spending=account, at_limit=limit)) for limit in ("accept", "raise")
    )

    assert "t0" == run(accepts, mode, asked("a"), [account]).trace.answered_by
    assert "t1" == run(accepts, mode, asked("b"), [account]).trace.answered_by
    with pytest.raises(BudgetExceededError, match="are spent"):
        run(raises, mode, asked("a"), [account])


def test_spending_when_the_window_moves_on(tmp_path: Path) -> None:
    """Only what the window still holds counts, and what has left it is deleted."""
    clock = FakeClock(1000.0)
    account = SharedSpending(tmp_path / "spent.db", "user", window_s=60, clock=clock)
    policy = cascade(Budget(usd=0.5))
    run(policy, "invoke", asked(), [account])
    clock.advance(59)
    assert 1.0 == account.usd(asked())
    clock.advance(1)
    assert (0.0, 0) == (account.usd(asked()), account.tokens(asked()))
    run(policy, "invoke", asked(), [account])
    assert 1.0 == SharedSpending(tmp_path / "spent.db", "user").usd(asked())


def test_spending_when_a_price_is_unknown(tmp_path: Path) -> None:
    """An unknown cost makes the sum unknown, never zero."""
    account = SharedSpending(tmp_path / "spent.db")
    run(cascade(Budget(tokens=1), None), "invoke", asked(), [account])

    assert account.usd(asked()) is None
    assert 1_000_000 == account.tokens(asked())


async def test_file_when_the_loop_runs(tmp_path: Path) -> None:
    """In async calls the file is read in a thread, never on the event loop."""
    from cascadellm.drivers import adrive
    from cascadellm.perform import AsyncLocalPerformer

    where: list[bool] = []

    class Watched(SharedSpending):
        def usd(self, request: Any) -> float | None:
            where.append(threading.current_thread() is threading.main_thread())
            return super().usd(request)

    account = Watched(tmp_path / "spent.db")
    both = cascade(Budget(usd=9, spending=account, at_limit="raise"))
    await adrive(both.plan(asked()), AsyncLocalPerformer([account]))

    assert [False, False] == where
    assert asyncio.get_running_loop().is_running()
    assert 1.0 * 2 == account.usd(asked())


async def test_file_when_another_process_writes_for_long(tmp_path: Path) -> None:
    """A file that is locked holds up no event loop, and the call is counted once it is free."""
    from cascadellm.drivers import adrive
    from cascadellm.perform import AsyncLocalPerformer

    account = SharedSpending(tmp_path / "spent.db")
    locked = sqlite3.connect(tmp_path / "spent.db", isolation_level=None)
    locked.execute("BEGIN IMMEDIATE")
    begun = time.perf_counter()
    await adrive(cascade(Budget(tokens=1)).plan(asked()), AsyncLocalPerformer([account]))
    took_s = time.perf_counter() - begun
    locked.execute("ROLLBACK")
    locked.close()

    assert took_s < 0.5
    assert 1.0 == await asyncio.to_thread(account.usd, asked())


@pytest.mark.parametrize("mode", MODES)
def test_budget_when_the_account_cannot_be_read(tmp_path: Path, mode: str) -> None:
    """An account that cannot be read counts as spent, and the record says so."""
    account = SharedSpending(tmp_path / "spent.db", wait_s=0.05)
    locked = sqlite3.connect(tmp_path / "spent.db")
    locked.execute("DROP TABLE spent")
    locked.commit()
    accepts, raises = (
        cascade(Budget(usd=99, spending=account, at_limit=limit)) for limit in ("accept", "raise")
    )

    trace = run(accepts, mode, asked()).trace
    assert "t0" == trace.answered_by
    assert "cannot be read" in trace.attempts[0].reason
    with pytest.raises(BudgetExceededError, match="cannot be read"):
        run(raises, mode, asked())
    locked.close()


def told(path: str, said: Any) -> None:
    """Spend for ever, and tell of each call once it has returned."""
    account = SharedSpending(path, "user")
    while True:
        run(cascade(Budget(usd=0.5)), "invoke", asked(), [account])
        said.send_bytes(b"1")


def holds(path: str, said: Any) -> None:
    """Begin to write, and never end."""
    file = sqlite3.connect(path, isolation_level=None)
    file.execute("BEGIN IMMEDIATE")
    file.execute("INSERT INTO spent VALUES ('=a', 1e12, 999, 999)")
    said.send_bytes(b"1")
    time.sleep(60)


def killed(target: Any, path: str, after: int) -> int:
    """Kill a process without warning once it has said so many things; return how many it said."""
    spawn = multiprocessing.get_context("spawn")
    hears, says = spawn.Pipe(duplex=False)
    process = spawn.Process(target=target, args=(path, says))
    process.start()
    says.close()
    for _ in range(after):
        assert hears.poll(60)
        hears.recv_bytes()
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(60)
    assert -signal.SIGKILL == process.exitcode
    heard = after
    try:
        while hears.poll():
            hears.recv_bytes()
            heard += 1
    except EOFError:
        pass
    return heard


def test_spending_when_a_process_is_killed(tmp_path: Path) -> None:
    """Every call that had returned before the kill is counted, and the others go on."""
    path = str(tmp_path / "spent.db")
    heard = killed(told, path, 20)

    account = SharedSpending(path, "user", wait_s=0.5)
    found = account.usd(asked())
    assert found is not None
    # one more may have been written and not told
    assert heard <= found <= heard + 1
    spend(path, "a", 1)
    assert found + 1 == account.usd(asked())
    assert "ok" == sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone()[0]


def test_spending_when_a_writer_is_killed(tmp_path: Path) -> None:
    """A process that dies in the middle of writing leaves neither a lock nor half a row."""
    path = str(tmp_path / "spent.db")
    account = SharedSpending(path, "user", wait_s=0.5)
    killed(holds, path, 1)

    assert 0.0 == account.usd(asked())
    spend(path, "a", 1)
    assert 1.0 == account.usd(asked())


def test_spending_when_a_process_forks(tmp_path: Path) -> None:
    """A child neither writes what its parent has yet to write nor waits for its lock."""
    account = SharedSpending(tmp_path / "spent.db", "user")
    account._unwritten.rows.append(("=a", 1e12, 5.0, 5))
    account._unwritten.lock.acquire()
    account._unwritten.process = -1

    assert 0.0 == account.usd(asked())


def test_file_when_it_is_something_else(tmp_path: Path) -> None:
    """A file that is no such database is refused, and left as it is."""
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to be read as one" * 9)
    with pytest.raises(ConfigurationError, match="SQLite file of its own"):
        SharedSpending(path)
    assert path.read_text().startswith("not a database")
    with pytest.raises(ConfigurationError, match="window_s"):
        SharedSpending(tmp_path / "x.db", window_s=0)
