"""What the fault and load tests share: sizes, cascades of real clients, and the checks."""

from __future__ import annotations

import gc
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import psutil
from langchain_openai import ChatOpenAI
from llama_index.llms.openai_like import OpenAILike

from cascadellm.errors import CascadeError
from cascadellm.events import Record, Recorder
from cascadellm.tier import Tier
from tests.servers.chaos_server import ChaosServer, Sent

__all__ = [
    "AT_ONCE",
    "FULL",
    "TYPED",
    "Clients",
    "check_answers",
    "check_books",
    "nothing_left",
    "size",
]

FULL = os.environ.get("CASCADE_CHAOS") == "full"
AT_ONCE = 100
TYPED = (CascadeError, openai.OpenAIError, httpx.HTTPError, ValueError, TimeoutError)
"""What a call may end in besides an answer: errors that say what happened by their type."""

_NUMBER = re.compile(r"question (\d+)")
_ECHO = re.compile(r"echo (\d+) by (\w+)")


def size(full: int, reduced: int) -> int:
    """Return the number of calls: all of them only when asked for."""
    return full if FULL else reduced


@dataclass
class Clients:
    """Real clients with their own connections, closed at the end."""

    url: str
    _sync: list[httpx.Client] = field(default_factory=list)
    _async: list[httpx.AsyncClient] = field(default_factory=list)

    def _http(self) -> dict[str, Any]:
        limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
        self._sync.append(httpx.Client(limits=limits, timeout=20))
        self._async.append(httpx.AsyncClient(limits=limits, timeout=20))
        return {"http_client": self._sync[-1]}

    def langchain(self, name: str, *, max_retries: int = 0, **tier: Any) -> Tier:
        """Return a `ChatOpenAI` as a tier."""
        http = self._http()
        model = ChatOpenAI(
            model=name, base_url=self.url, api_key="none", stream_usage=True,
            max_retries=max_retries, http_async_client=self._async[-1], **http,
        )  # fmt: skip
        return Tier(model, name=name, **tier)

    def llamaindex(self, name: str, *, max_retries: int = 0, **tier: Any) -> Tier:
        """Return an `OpenAILike` as a tier."""
        http = self._http()
        model = OpenAILike(
            model=name, api_base=self.url, api_key="none", is_chat_model=True,
            max_retries=max_retries, async_http_client=self._async[-1], **http,
        )  # fmt: skip
        return Tier(model, name=name, **tier)

    async def aclose(self) -> None:
        """Close the connections of both kinds."""
        for client in self._async:
            await client.aclose()
        self.close()

    def close(self) -> None:
        """Close the sync connections."""
        for client in self._sync:
            client.close()


def check_answers(results: list[Any], text_of: Any, record_of: Any) -> tuple[int, int]:
    """Check every result against its own question; return (answers, errors).

    Args:
        results: In the order of the questions 0, 1, 2, ...: a response or an exception.
        text_of: Response -> text.
        record_of: Response -> the record's dict.
    """
    answers = errors = 0
    for number, result in enumerate(results):
        if isinstance(result, BaseException):
            assert isinstance(result, TYPED), f"question {number}: {result!r}"
            errors += 1
            continue
        text, record = text_of(result), record_of(result)
        found = _ECHO.match(text)
        assert found, f"question {number} was answered {text!r}"
        assert int(found[1]) == number, f"question {number} got the answer to {found[1]}"
        assert found[2] == record["answered_by"]
        assert record["attempts"][-1]["action"] == "accept"
        answers += 1
    return answers, errors


def check_books(recorder: Recorder, server: ChaosServer, count: int) -> None:
    """Check that one record per call exists, and that totals equal what the server reported."""
    records = list(recorder.records)
    numbers = sorted(_number(record) for record in records)
    assert numbers == list(range(count)), "one record per call"
    by_question: dict[tuple[int, str], list[Sent]] = {}
    for sent in server.ledger:
        by_question.setdefault((sent.number, sent.model), []).append(sent)
    for record in records:
        _check_record(record, by_question)
    for model in ("small", "large"):
        rows = [record.trace.tokens_by_tier.get(model, {}) for record in records]
        booked = tuple(sum(row.get(key, 0) for row in rows) for key in ("input", "output"))
        assert booked == server.totals(model)


def _check_record(record: Record, sent: dict[tuple[int, str], list[Sent]]) -> None:
    number = _number(record)
    for attempt in record.trace.attempts:
        lines = sent.get((number, attempt.name), [])
        usage = lines[-1].usage if lines else None
        if attempt.action == "error":
            assert usage is None, f"question {number}: {attempt} after {lines}"
            continue
        assert lines, f"question {number}: {attempt} was never asked"
        assert (attempt.input_tokens, attempt.output_tokens) == (usage or (None, None))


def _number(record: Record) -> int:
    return int(_NUMBER.findall(record.input)[-1])


@contextmanager
def nothing_left() -> Iterator[None]:
    """Check that the block leaves no thread, file descriptor or connection behind.

    Thread pools of the loop are its own and end with it, so the block must run its loop itself.
    """
    process = psutil.Process()
    gc.collect()
    before = {thread.ident for thread in threading.enumerate()}
    files, links = process.num_fds(), len(process.net_connections())
    yield
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        gc.collect()
        left = [t.name for t in threading.enumerate() if t.ident not in before]
        now = (process.num_fds() - files, len(process.net_connections()) - links)
        if not left and max(now) <= 0:
            return
        time.sleep(0.05)
    raise AssertionError(f"left behind: threads {left}, file descriptors and connections {now}")
