"""A stream that is left half way: record, typed event, closed and marked runs."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tracers.langchain import LangChainTracer
from langsmith import Client

from cascadellm import record_cascade
from cascadellm.testing import FakeModel
from langchain_cascade import CascadeCallbackHandler, CascadeLLM, Price, Threshold, Tier
from tests.dropin.watching import settled, was_asked
from tests.langchain.lc_tools import CHOW, fakes
from tests.servers.langsmith_server import LangSmithServer

ANSWER = "one two three four five"
PRICE = Price(1.0, 1.0)


class Told(CascadeCallbackHandler):
    """Keeps the names of the last events."""

    def __init__(self) -> None:
        self.ends: list[str] = []

    def on_accepted(self, event: Any) -> None:
        self.ends.append("accepted")

    def on_failed(self, event: Any) -> None:
        self.ends.append("failed")

    def on_abandoned(self, event: Any) -> None:
        self.ends.append("abandoned")


def build(**options: Any) -> tuple[CascadeLLM, FakeModel]:
    """Return a cascade that escalates to a tier that streams with usage."""
    large = FakeModel(ANSWER, name="large", logprob=-0.1)
    tiers = [Tier(fakes()[0], price=PRICE), Tier(large, price=PRICE)]
    return CascadeLLM(tiers, CHOW, **options), large


def leave(source: Any, path: str, config: Any, after: int = 2) -> str:
    """Read some chunks of a stream on a path, then leave it; return what was read."""
    read: list[str] = []

    async def alone() -> None:
        stream = source.astream("hi", config)
        async for chunk in stream:
            read.append(chunk.text)
            if len(read) == after:
                break
        await stream.aclose()
        # a chain leaves the closing of what it was reading to the loop
        await settled()

    async def cancelled() -> None:
        reached = asyncio.Event()

        async def consume() -> None:
            async for chunk in source.astream("hi", config):
                read.append(chunk.text)
                if len(read) == after:
                    reached.set()
                    await asyncio.sleep(30)

        task = asyncio.create_task(consume())
        await reached.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await settled()

    if path == "stream":
        stream = source.stream("hi", config)
        for chunk in stream:
            read.append(chunk.text)
            if len(read) == after:
                break
        stream.close()
    else:
        asyncio.run(alone() if path == "astream" else cancelled())
    return "".join(read)


PATHS = ["stream", "astream", "cancelled"]


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_a_stream_left_half_way_is_recorded_and_told(path: str, chained: bool) -> None:
    """The record counts the usage so far; the typed event says `abandoned` and nothing else."""
    llm, large = build()
    told = Told()
    source: Any = ChatPromptTemplate.from_messages([("user", "{q}")]) | llm if chained else llm
    if chained:
        source = (lambda text: {"q": text}) | source
    with record_cascade() as recorder:
        read = leave(source, path, {"callbacks": [told]})
    (record,) = recorder.records
    last = record.trace.attempts[-1]

    assert "one two" == read
    assert ["abandoned"] == told.ends
    assert ("large", True, None) == (record.trace.answered_by, record.trace.abandoned, record.error)
    assert ("stopped", "abandoned") == (last.action, last.code)
    assert last.output_tokens is not None
    assert 2 <= last.output_tokens < 5
    assert record.trace.cost_usd == pytest.approx(
        sum(t["input"] + t["output"] for t in record.trace.tokens_by_tier.values()) / 1e6
    )
    assert 1 == large.closed


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_left_half_way_without_any_handler_stops_its_tier(path: str) -> None:
    """Nobody listening, the tier's stream is closed all the same."""
    llm, large = build()
    leave(llm, path, None)
    assert 1 == large.closed


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_langsmith_shows_a_left_stream_closed_and_marked(path: str, chained: bool) -> None:
    """Every run is ended, none has an error; the stopped ones carry the mark and the usage."""
    llm, _ = build()
    source: Any = (lambda text: text) | llm if chained else llm
    with LangSmithServer() as server:
        client = Client(api_url=server.url, api_key="ls-none")
        leave(source, path, {"callbacks": [LangChainTracer(client=client)]})
        client.flush()
        root = server.tree()
        client.cleanup()
        assert set(server.runs) == server.ended
    outer, large = root.named("CascadeLLM")[0], root.named("large")[0]

    if not chained or path == "stream":
        # LangChain itself calls an async chain that is left a failure
        assert not root.run.get("error")
    for node in (outer, large):
        assert not node.run.get("error")
        assert node.metadata["ls_is_error_interrupt"] is True
    assert ("large", True) == (
        outer.metadata["cascade_answered_by"],
        outer.metadata["cascade_escalated"],
    )
    assert "cascade:abandoned" in outer.tags
    assert "stopped" == large.metadata["cascade_action"]
    assert 2 <= large.metadata["usage_metadata"]["output_tokens"] < 5
    assert large.metadata["usage_metadata"]["total_cost"] > 0
    assert "escalate" == root.named("small")[0].metadata["cascade_action"]


def test_an_accepted_draft_left_half_way_was_answered() -> None:
    """A replayed draft is paid for and decided, so leaving its replay changes no record."""
    small = FakeModel(ANSWER, name="small", logprob=-0.1)
    llm = CascadeLLM([small, fakes()[1]], CHOW)
    told = Told()
    with LangSmithServer() as server, record_cascade() as recorder:
        client = Client(api_url=server.url, api_key="ls-none")
        leave(llm, "stream", {"callbacks": [told, LangChainTracer(client=client)]})
        client.flush()
        root = server.tree()
        client.cleanup()
    assert ["accepted"] == told.ends
    assert not recorder.traces[0].abandoned
    assert not root.run.get("error")


def test_a_tier_that_takes_too_long_still_failed() -> None:
    """A time-out cancels the tier's call, and its run is a failure, unlike a stream left."""
    slow = Tier(FakeModel("late", name="small", delay_s=5), timeout_s=0.05)
    llm = CascadeLLM([slow, fakes()[1]], Threshold(lambda a: 1.0, 0.0))
    with LangSmithServer() as server:
        client = Client(api_url=server.url, api_key="ls-none")
        config: Any = {"callbacks": [LangChainTracer(client=client)]}
        asyncio.run(llm.ainvoke("hi", config))
        client.flush()
        small = server.tree().named("small")[0]
        client.cleanup()
        assert set(server.runs) == server.ended
    assert "error" == small.metadata["cascade_action"]
    assert "did not answer within" in small.run["error"]


@pytest.mark.parametrize("path", PATHS)
def test_the_mark_is_missed_when_leaving_is_not_told(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the signal to the plan there is no record, so the checks have power (mutation)."""
    from langchain_cascade import streams

    async def silent(*_: Any) -> None:
        return None

    monkeypatch.setattr(streams, "abandon", lambda *_: None)
    monkeypatch.setattr(streams, "aabandon", silent)
    llm, _ = build()
    with record_cascade() as recorder:
        leave(llm, path, {})
    assert not recorder.records


@pytest.mark.parametrize("traced", [False, True])
def test_a_cancelled_call_is_recorded_and_closed(traced: bool) -> None:
    """A cancelled `ainvoke` leaves a record of what was paid and no open run."""
    slow = FakeModel("late", name="large", delay_s=30)
    llm = CascadeLLM([fakes()[0], slow], CHOW)

    async def run(config: Any) -> None:
        task = asyncio.create_task(llm.ainvoke("hi", config))
        await was_asked(slow)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await settled()

    with LangSmithServer() as server, record_cascade() as recorder:
        client = Client(api_url=server.url, api_key="ls-none")
        asyncio.run(run({"callbacks": [LangChainTracer(client=client)]} if traced else None))
        client.flush()
        client.cleanup()
    (trace,) = recorder.traces
    assert ["escalate", "stopped"] == [attempt.action for attempt in trace.attempts]
    assert (None, True) == (trace.answered_by, trace.abandoned)
    if traced:
        root = server.tree()
        assert set(server.runs) == server.ended
        assert "cascade:abandoned" in root.tags
        assert not [node.name for node in root.all() if node.run.get("error")]
