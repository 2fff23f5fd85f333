"""One batch per model, shared by all its callers.

A caller that waits alone does the work itself: it takes the lead and runs steps until its job has
news, so it pays for nothing else. As soon as several wait, one worker thread leads for all of
them, because torch keeps a pool of threads for every thread that computes. Nobody works for a
stream that nobody reads, and a worker without work ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from cascadellm.errors import ModelError
from cascadellm.local.decoding import Decoding, Job
from cascadellm.local.load import Loaded

__all__ = ["Caller", "SharedBatch"]


class Caller:
    """One caller's side of its jobs; calling it says whether the caller has left."""

    def __init__(self) -> None:
        self._left = False
        self.wake = threading.Event()
        self.jobs: Sequence[Job] = ()

    def __call__(self) -> bool:
        """Whether the caller has left."""
        return self._left

    def leave(self) -> None:
        """Stop the caller's jobs within one step; from any thread."""
        self._left = True
        for job in self.jobs:
            job.gone = True
        self.wake.set()


_IDLE_S = 5.0


class SharedBatch:
    """Jobs of all callers of one model.

    Args:
        loaded: Returns the model; raises once it is closed.
        lock: Guards the model's forward pass.
        jobs: Most jobs decoded together; the others wait their turn in order.
        tokens: Most tokens that the padded cache may hold, unless one job alone needs more.
    """

    def __init__(
        self,
        loaded: Callable[[], Loaded],
        lock: AbstractContextManager[object],
        *,
        jobs: int,
        tokens: int,
    ) -> None:
        self._loaded = loaded
        self._lock = lock
        self._most_jobs = jobs
        self._most_tokens = tokens
        self._lead = threading.Lock()
        self._door = threading.Lock()
        self._waiting: list[Job] = []
        self._callers: dict[Caller, bool] = {}
        self._decoding: Decoding | None = None
        self._wanted = threading.Event()
        self._worker: threading.Thread | None = None

    def submit(self, caller: Caller, jobs: Sequence[Job]) -> None:
        """Queue jobs; nothing happens before someone waits for them."""
        caller.jobs = [*caller.jobs, *jobs]
        with self._door:
            self._waiting.extend(jobs)

    def wait(self, caller: Caller, news: Callable[[], bool], *, each_step: bool) -> None:
        """Return once `news()` holds; who waits alone works, else the worker does.

        Args:
            caller: The caller.
            news: Whether there is something to return for.
            each_step: Whether news may come with every step, not only at the end of a job.
        """
        self._callers[caller] = each_step
        try:
            while not (news() or caller()):
                alone = len(self._callers) == 1
                if alone and self._lead.acquire(blocking=False):
                    try:
                        while not (news() or caller()) and len(self._callers) == 1:
                            self._step()
                    finally:
                        self._lead.release()
                else:
                    if not alone:
                        self._call_worker()
                    caller.wake.wait()
                    caller.wake.clear()
        finally:
            del self._callers[caller]
            self._pass_on()

    def leave(self, caller: Caller) -> None:
        """Drop a caller's jobs, at once if nobody is at work, else before the next step."""
        caller.leave()
        if self._lead.acquire(blocking=False):
            try:
                self._drop()
            finally:
                self._lead.release()
                self._pass_on()

    def close(self) -> None:
        """Give all jobs up; the model has been closed, so whoever leads stops at its next step."""
        with self._lead:
            running = self._decoding.jobs if self._decoding is not None else []
            jobs = [*running, *self._waiting]
            try:
                self._loaded()
            except ModelError as error:
                self._abandon(jobs, error)
        self._pass_on()
        self._wanted.set()

    def _call_worker(self) -> None:
        """Let the worker lead, starting it if there is none."""
        with self._door:
            self._wanted.set()
            if self._worker is None:
                self._worker = threading.Thread(
                    target=self._work, daemon=True, name="cascade-batch"
                )
                self._worker.start()

    def _work(self) -> None:
        idle = False
        try:
            while not idle:
                idle = self._serve()
        finally:
            if not idle:
                # whatever ended it, nobody must wait for a worker that is gone
                with self._door:
                    self._worker = None
                for caller in list(self._callers):
                    caller.wake.set()

    def _serve(self) -> bool:
        """Run steps while callers wait; True when there was nothing to do for a while."""
        called = self._wanted.wait(_IDLE_S)
        with self._door:
            if not called and not self._wanted.is_set():
                self._worker = None
                return True
            self._wanted.clear()
        with self._lead:
            while self._callers and self._busy:
                self._step()
        self._pass_on()
        return False

    @property
    def _busy(self) -> bool:
        return bool(self._waiting) or bool(self._decoding is not None and self._decoding.jobs)

    def _pass_on(self) -> None:
        """Wake someone who waits, so that the work goes on without the last leader."""
        if not self._lead.locked():
            for caller in list(self._callers):
                caller.wake.set()
                return

    def _step(self) -> None:
        """Run one step; every job of the batch gets a token, or the error that stopped it."""
        self._drop()
        decoding = self._decoding
        finished = False
        affected: list[Job] = []
        try:
            if decoding is None:
                decoding = self._decoding = Decoding(self._loaded())
            new = self._admit(decoding)
            affected = [*decoding.jobs, *new]
            with self._lock:
                # a model closed meanwhile raises here
                self._loaded()
                decoding.advance(new)
            finished = True
        except Exception as error:
            affected = affected or list(self._waiting)
            self._abandon(affected, error)
            finished = True
        finally:
            if not finished:
                self._abandon(affected, ModelError("another caller was interrupted; ask again"))
        self._tell(affected)

    def _admit(self, decoding: Decoding) -> list[Job]:
        """Take waiting jobs in order, as many as fit beside the running ones."""
        new: list[Job] = []
        if not self._waiting or (decoding.jobs and not decoding.open):
            return new
        with self._door:
            for job in self._waiting:
                batch = [*decoding.jobs, *new, job]
                tokens = len(batch) * max(member.size for member in batch)
                if len(batch) > self._most_jobs or (tokens > self._most_tokens and len(batch) > 1):
                    break
                new.append(job)
            del self._waiting[: len(new)]
        return new

    def _drop(self) -> None:
        with self._door:
            self._waiting[:] = [job for job in self._waiting if not job.gone]
        if self._decoding is not None and any(job.gone for job in self._decoding.jobs):
            self._decoding.drop()

    def _abandon(self, jobs: Sequence[Job], error: Exception) -> None:
        """Give jobs up; the batch starts anew, since a failed step may be half done."""
        self._decoding = None
        with self._door:
            self._waiting[:] = [job for job in self._waiting if job not in jobs]
        for job in jobs:
            job.fail(error)

    def _tell(self, jobs: Sequence[Job]) -> None:
        """Wake callers that have news; at a step without any, nobody but the leader runs."""
        ended = any(job.done for job in jobs)
        for caller, each_step in list(self._callers.items()):
            if each_step or (ended and all(job.done for job in caller.jobs)):
                caller.wake.set()
