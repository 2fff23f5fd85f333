"""Tracers and handlers that raise, hang or are slow; and calls that nobody watches."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from typing import Any

import langchain_core.load.dump as core_dump
import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.tracers.langchain import LangChainTracer
from langsmith import Client
from langsmith._internal import _serde

from langchain_cascade import CascadeCallbackHandler, calls, tracing
from langchain_cascade.tracing import Outer
from tests.langchain.lc_tools import PATHS, cascade
from tests.servers.langsmith_server import LangSmithServer

SAID = "large says so"
WAYS = ["invoke", "ainvoke", "stream", "astream"]
EVENTS = [
    "on_chat_model_start",
    "on_llm_end",
    "on_chain_start",
    "on_chain_end",
    "on_custom_event",
    "on_event",
]


def handler(event: str, act: Any, *, asynchronous: bool) -> Any:
    """Return a handler that does something at one event."""

    async def aact(self: Any, *args: Any, **kwargs: Any) -> None:
        act()

    def sync_act(self: Any, *args: Any, **kwargs: Any) -> None:
        act()

    if event == "on_event":
        return type("Typed", (CascadeCallbackHandler,), {event: sync_act})()
    base = AsyncCallbackHandler if asynchronous else BaseCallbackHandler
    return type("Own", (base,), {event: aact if asynchronous else sync_act})()


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize(
    ("way", "asynchronous"), [*((way, False) for way in WAYS), ("ainvoke", True), ("astream", True)]
)
def test_a_handler_that_raises_breaks_no_answer(way: str, asynchronous: bool, event: str) -> None:
    """What a handler raises at any event is logged, and the answer comes."""

    def act() -> None:
        raise RuntimeError("planted")

    config = {"callbacks": [handler(event, act, asynchronous=asynchronous)]}
    assert SAID == PATHS[way](cascade(), "hi", config).text


@pytest.mark.parametrize("event", ["on_chain_end", "on_event"])
@pytest.mark.parametrize("way", WAYS)
def test_a_slow_handler_delays_an_answer_by_its_own_callbacks_alone(way: str, event: str) -> None:
    """The delay is the time that the handler's own callbacks took, and no more."""
    spent: list[float] = []

    def act() -> None:
        begun = time.perf_counter()
        time.sleep(0.05)
        spent.append(time.perf_counter() - begun)

    config = {"callbacks": [handler(event, act, asynchronous=False)]}
    PATHS[way](cascade(), "hi", {})
    begun = time.perf_counter()
    assert SAID == PATHS[way](cascade(), "hi", config).text
    assert spent
    assert time.perf_counter() - begun < sum(spent) + 0.5


@pytest.mark.parametrize("way", WAYS)
def test_a_langsmith_that_hangs_delays_no_answer(way: str) -> None:
    """A server that takes the connection and never answers costs an answer nothing."""
    released = threading.Event()
    with LangSmithServer(hold=released) as server:
        client = Client(api_url=server.url, api_key="ls-none")
        config = {"callbacks": [LangChainTracer(client=client)]}
        begun = time.perf_counter()
        assert SAID == PATHS[way](cascade(), "hi", config).text
        took = time.perf_counter() - begun
        assert not server.runs
        released.set()
        client.flush()
        assert 4 == len(server.runs)
        client.cleanup()
    assert took < 2


@pytest.mark.parametrize("event", ["on_chain_start", "on_event"])
def test_a_handler_that_hangs_in_one_call_holds_up_no_other(event: str) -> None:
    """No lock is shared: while one call waits for its handler, others are answered."""
    released, entered = threading.Event(), threading.Event()

    def act() -> None:
        entered.set()
        released.wait(30)

    llm = cascade()
    config: Any = {"callbacks": [handler(event, act, asynchronous=False)]}
    stuck = threading.Thread(target=llm.invoke, args=("hi", config))
    stuck.start()
    assert entered.wait(10)
    assert SAID == llm.invoke("hi").text
    assert SAID == asyncio.run(llm.ainvoke("hi", {"callbacks": [Counting()]})).text
    assert stuck.is_alive()
    released.set()
    stuck.join(10)
    assert not stuck.is_alive()


def test_an_async_handler_that_hangs_is_bounded_by_the_callers_own_limit() -> None:
    """A caller's time-out ends a call whose async handler never returns."""

    class Hangs(AsyncCallbackHandler):
        async def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
            await asyncio.sleep(60)

    async def run() -> None:
        async with asyncio.timeout(0.3):
            await cascade().ainvoke("hi", {"callbacks": [Hangs()]})

    begun = time.perf_counter()
    with pytest.raises(TimeoutError):
        asyncio.run(run())
    assert time.perf_counter() - begun < 5


class Counting(BaseCallbackHandler):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
        self.seen["chain"] += 1


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count every decision run, payload and serialisation."""
    count: Counter[str] = Counter()

    def counted(owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            count[name] += 1
            return inner(*args, **kwargs)

        monkeypatch.setattr(owner, name, outer)

    for owner, name in (
        (calls, "Tracing"),
        (tracing, "payload"),
        (tracing, "_inputs"),
        (core_dump, "dumpd"),
        (core_dump, "dumps"),
        (_serde, "dumps_json"),
        (json, "dumps"),
    ):
        counted(owner, name)
    return count


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"])
def test_without_a_watcher_nothing_is_built_or_serialised(way: str, built: Counter[str]) -> None:
    """No handler, no tracer: no decision run, no payload, no serialisation at all."""
    llm = cascade()
    # LangChain describes a model once in its life
    PATHS[way](llm, "hi", {})
    built.clear()
    assert SAID == PATHS[way](llm, "hi", {}).text
    assert not built


@pytest.mark.parametrize("way", WAYS)
def test_a_decision_run_that_nobody_sees_is_noticed(
    way: str, built: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count has power: a cascade that takes itself for watched builds runs (mutation)."""
    from langchain_cascade import direct

    monkeypatch.setattr(direct, "unseen", lambda *_: False)
    monkeypatch.setattr(Outer, "watched", property(lambda self: True))
    PATHS[way](cascade(), "hi", {})
    assert {"Tracing": 1, "payload": 1, "_inputs": 1}.items() <= built.items()
