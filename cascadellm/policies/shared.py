"""Spending that several processes on one machine count together, in an SQLite file."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascadellm.answer import Trace
from cascadellm.errors import ConfigurationError
from cascadellm.policies.budget import Spending

if TYPE_CHECKING:
    import sqlite3

__all__ = ["SharedSpending"]

_log = logging.getLogger("cascadellm")

_TABLE = """
CREATE TABLE IF NOT EXISTS spent (owner TEXT, time_s REAL, usd REAL, tokens INTEGER);
CREATE INDEX IF NOT EXISTS spent_by_owner ON spent (owner, time_s);
"""


@dataclass(slots=True)
class _Unwritten:
    """Calls of one process that are not in the file yet."""

    process: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    rows: list[tuple[str, float, float | None, int]] = field(default_factory=list)


class SharedSpending(Spending):
    """What finished calls of all processes that open the same file have spent.

    As `Spending`, and the file keeps what was spent across restarts. A call is counted when it has
    finished, so calls that run at once may together exceed a limit by what they cost. In async
    calls the file is written in a thread; a process that is killed loses no call that was written.

    Args:
        path: The file, on a local disk; made when it is absent. One file for one account: two
            windows need two files.
        key: As in `Spending`.
        window_s: As in `Spending`; rows that are older are deleted. None = all that is in the file.
        clock: Seconds since 1970, the same in all processes; replaced in tests.
        wait_s: Most seconds to wait for another process that writes.

    Raises:
        ConfigurationError: The window is not positive, or the file is no such database.
    """

    blocking = True

    def __init__(
        self,
        path: str | Path,
        key: str | None = None,
        *,
        window_s: float | None = None,
        clock: Callable[[], float] = time.time,
        wait_s: float = 5.0,
    ) -> None:
        # here, because a Python may come without it
        import sqlite3

        super().__init__(key, window_s=window_s, clock=clock)
        self.path, self.wait_s = Path(path), wait_s
        self._unwritten = _Unwritten(os.getpid())
        try:
            with self._open() as file:
                # readers do not wait for a writer, and a commit does not wait for the disk
                file.execute("PRAGMA journal_mode=WAL")
                file.executescript(_TABLE)
                file.execute("SELECT owner, time_s, usd, tokens FROM spent LIMIT 1")
        except sqlite3.Error as error:
            raise ConfigurationError(
                f"SharedSpending(path) expects an SQLite file of its own or a new one, got "
                f"{self.path}: {error}"
            ) from error

    def on_event(self, event: Any) -> None:
        """Count a finished call, failed ones too."""
        trace = getattr(event, "trace", None)
        if not isinstance(trace, Trace):
            return
        tokens = sum(sum(counts.values()) for counts in trace.tokens_by_tier.values())
        mine = self._mine()
        with mine.lock:
            mine.rows.append((self._name(event.request), self._clock(), trace.cost_usd, tokens))
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._write()
        else:
            # no daemon: the interpreter waits for it before it ends
            threading.Thread(target=self._write_later, name="cascadellm-spending").start()

    def usd(self, request: Any) -> float | None:
        """Return the money that calls with this request's key have spent; None if unknown."""
        usd, unknown = self._sums(request, "TOTAL(usd), COUNT(*) - COUNT(usd)")
        return None if unknown else float(usd)

    def tokens(self, request: Any) -> int:
        """Return the tokens that calls with this request's key have taken, in and out."""
        return int(self._sums(request, "TOTAL(tokens)")[0])

    def _mine(self) -> _Unwritten:
        if self._unwritten.process != os.getpid():
            # after a fork the parent writes its own, and its lock may be held for ever here
            self._unwritten = _Unwritten(os.getpid())
        return self._unwritten

    def _write(self) -> None:
        mine = self._mine()
        with mine.lock:
            if not mine.rows:
                return
            with self._open() as file:
                file.executemany("INSERT INTO spent VALUES (?, ?, ?, ?)", mine.rows)
                if self.window_s is not None:
                    gone = self._clock() - self.window_s
                    file.execute("DELETE FROM spent WHERE time_s <= ?", (gone,))
            # only now: what could not be written is tried again with the next call
            mine.rows.clear()

    def _write_later(self) -> None:
        try:
            self._write()
        except Exception:
            _log.warning("spending is not written to %s yet", self.path, exc_info=True)

    def _sums(self, request: Any, what: str) -> Any:
        self._write()
        since = -1.0 if self.window_s is None else self._clock() - self.window_s
        with self._open() as file:
            # `what` is one of two constants above; the values are bound
            query = f"SELECT {what} FROM spent WHERE owner = ? AND time_s > ?"  # noqa: S608
            return file.execute(query, (self._name(request), since)).fetchone()

    def _name(self, request: Any) -> str:
        owner = self._owner(request)
        return "" if owner is None else f"={owner}"

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        import sqlite3

        # a connection of its own for each use: threads and forks share none
        with closing(sqlite3.connect(self.path, timeout=self.wait_s)) as file:
            file.execute("PRAGMA synchronous=NORMAL")
            with file:
                yield file
