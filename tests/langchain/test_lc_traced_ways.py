"""Wherever a cascade is called from, LangSmith gets one right tree per call, counted once."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_core.tracers.langchain import LangChainTracer
from langsmith import Client, traceable, tracing_context

from cascadellm import record_cascade
from langchain_cascade import guard
from tests.langchain.lc_tools import PATHS, cascade
from tests.servers.langsmith_server import LangSmithServer, Node

pytestmark = [
    pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"),
    pytest.mark.filterwarnings("ignore:astream_events version='v1'"),
]

TIERS = [["llm", "small", []], ["chain", "cascade_decision", []], ["llm", "large", []]]
SHAPE = ["chain", "CascadeLLM", TIERS]


async def _drain(stream: Any) -> None:
    async for _ in stream:
        pass


def _chain(llm: Any) -> Any:
    return ChatPromptTemplate.from_messages([("user", "{q}")]) | llm | StrOutputParser()


def _in_threads(llm: Any, config: Any) -> None:
    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(llm.invoke, "hi", config))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def _in_tasks(llm: Any, config: Any) -> None:
    await asyncio.gather(*(llm.ainvoke("hi", config) for _ in range(3)))


def _parallel(llm: Any, config: Any) -> None:
    RunnableParallel(a=llm, b=llm).invoke("hi", config)


def _agent(llm: Any, config: Any) -> None:
    create_agent(llm, tools=[]).invoke({"messages": [("user", "hi")]}, config)


def _agent_stream(mode: str) -> Callable[[Any, Any], None]:
    def run(llm: Any, config: Any) -> None:
        list(
            create_agent(llm, tools=[]).stream(
                {"messages": [("user", "hi")]}, config, stream_mode=mode
            )
        )

    return run


def _agent_events(llm: Any, config: Any) -> None:
    async def run() -> None:
        agent = create_agent(llm, tools=[])
        stream = await agent.astream_events({"messages": [("user", "hi")]}, config, version="v3")
        await _drain(stream)

    asyncio.run(run())


def _traceable(llm: Any, config: Any) -> None:
    @traceable(name="asks")
    def asks(text: str) -> str:
        return str(llm.invoke(text).text)

    asks("hi")


def _agent_later(llm: Any, config: Any) -> None:
    async def run() -> None:
        agent = create_agent(llm, tools=[])
        await agent.ainvoke({"messages": [("user", "hi")]}, config)

    asyncio.run(run())


def _chain_events(llm: Any, config: Any) -> None:
    asyncio.run(_drain(_chain(llm).astream_events({"q": "hi"}, config, version="v2")))


def _traceable_stream(llm: Any, config: Any) -> None:
    @traceable(name="asks")
    def asks(text: str) -> Iterator[str]:
        yield from _chain(llm).stream({"q": text})

    list(asks("hi"))


def _traceable_later(llm: Any, config: Any) -> None:
    @traceable(name="asks")
    async def asks(text: str) -> str:
        return str(await _chain(llm).ainvoke({"q": text}))

    asyncio.run(asks("hi"))


def _events(version: str) -> Callable[[Any, Any], None]:
    return lambda llm, config: asyncio.run(
        _drain(llm.astream_events("hi", config, version=version))
    )


async def _events_v3(llm: Any, config: Any) -> None:
    await (await llm.astream_events("hi", config, version="v3"))


WAYS: dict[str, tuple[Callable[[Any, Any], Any], int]] = {
    **{name: (lambda llm, config, p=path: p(llm, "hi", config), 1) for name, path in PATHS.items()},
    "chain": (lambda llm, config: _chain(llm).invoke({"q": "hi"}, config), 1),
    "chain.ainvoke": (lambda llm, c: asyncio.run(_chain(llm).ainvoke({"q": "hi"}, c)), 1),
    "chain.stream": (lambda llm, config: list(_chain(llm).stream({"q": "hi"}, config)), 1),
    "chain.astream": (lambda llm, c: asyncio.run(_drain(_chain(llm).astream({"q": "hi"}, c))), 1),
    "parallel": (_parallel, 2),
    "chain.events v2": (_chain_events, 1),
    "batch of chains": (lambda llm, c: _chain(llm).batch([{"q": "a"}, {"q": "b"}], c), 2),
    "batch as completed": (lambda llm, c: list(llm.batch_as_completed(["a", "b", "c"], c)), 3),
    "bound": (lambda llm, config: llm.bind(stop=["\n"]).invoke("hi", config), 1),
    "retried": (lambda llm, config: llm.with_retry().invoke("hi", config), 1),
    "fallbacks": (lambda llm, config: llm.with_fallbacks([llm]).invoke("hi", config), 1),
    "agent.ainvoke": (_agent_later, 1),
    "@traceable stream": (_traceable_stream, 1),
    "@traceable async": (_traceable_later, 1),
    "lambda": (lambda llm, config: RunnableLambda(llm.invoke).invoke("hi", config), 1),
    "agent": (_agent, 1),
    "agent.stream": (_agent_stream("values"), 1),
    "agent.messages": (_agent_stream("messages"), 1),
    "agent.events v3": (_agent_events, 1),
    "@traceable": (_traceable, 1),
    "threads": (_in_threads, 3),
    "tasks": (lambda llm, config: asyncio.run(_in_tasks(llm, config)), 3),
    "batch of 3": (lambda llm, config: llm.batch(["a", "b", "c"], config), 3),
    "abatch of 3": (lambda llm, config: asyncio.run(llm.abatch(["a", "b", "c"], config)), 3),
    "events v1": (_events("v1"), 1),
    "events v2": (_events("v2"), 1),
    "events v3": (lambda llm, c: llm.stream_events("hi", c, version="v3").output, 1),
    "aevents v3": (lambda llm, config: asyncio.run(_events_v3(llm, config)), 1),
}


@pytest.fixture
def traced() -> Iterator[tuple[LangSmithServer, Client]]:
    """A local LangSmith and the real client for it."""
    with LangSmithServer() as server:
        client = Client(api_url=server.url, api_key="ls-none")
        yield server, client
        client.cleanup()


def _traced_run(way: str, server: LangSmithServer, client: Client, ambient: bool) -> list[Node]:
    run, _ = WAYS[way]
    if ambient or way.startswith("@traceable"):
        with tracing_context(enabled=True, client=client, project_name="p"):
            run(cascade(), {})
    else:
        run(cascade(), {"callbacks": [LangChainTracer(client=client, project_name="p")]})
    client.flush()
    return server.trees()


@pytest.mark.parametrize("ambient", [False, True], ids=["callback", "environment"])
@pytest.mark.parametrize("way", WAYS)
def test_langsmith_gets_one_right_tree_per_call(way: str, ambient: bool, traced: Any) -> None:
    """One closed root per call, tiers and decision below the cascade, marks on all, no leak."""
    server, client = traced
    with record_cascade() as recorder:
        roots = _traced_run(way, server, client, ambient)
    calls = WAYS[way][1]
    nodes = [node for root in roots for node in root.all()]
    # LangChain names some of its wrappers as what they wrap
    found = [node for node in nodes if "cascade_answered_by" in node.metadata]

    assert [SHAPE] * calls == [node.shape() for node in found]
    outside = way.startswith(("batch", "abatch", "threads", "tasks"))
    assert (calls if outside else 1) == len(roots)
    assert set(server.runs) == server.ended
    for root in roots:
        assert 1 == len({node.run["trace_id"] for node in root.all()})
    for node in found:
        assert ("large", True, pytest.approx(-2.0)) == tuple(
            node.metadata[f"cascade_{name}"] for name in ("answered_by", "escalated", "score")
        )
        assert "mean_logprob -2 < -0.35" == node.metadata["cascade_reason"]
        assert "usage_metadata" not in node.metadata
        for tier in ("small", "large"):
            (run,) = node.named(tier)
            assert {"policy", "tiers", "on_tier_error"}.isdisjoint(run.metadata)
            assert ("local-chat", "local") == (run.metadata["_type"], run.metadata["ls_provider"])
    spent = [t for trace in recorder.traces for t in trace.tokens_by_tier.values()]
    assert calls == len(recorder.traces)
    assert sum(t["input"] + t["output"] for t in spent) == sum(root.total_tokens for root in roots)


@pytest.mark.parametrize("way", WAYS)
def test_the_usage_callback_counts_every_tier_once(way: str) -> None:
    """`get_usage_metadata_callback` sees the sum over tiers wherever the cascade is called."""
    run, calls = WAYS[way]
    with get_usage_metadata_callback() as usage, record_cascade() as recorder:
        run(cascade(), {})
    spent = [t for trace in recorder.traces for t in trace.tokens_by_tier.values()]
    counted = sum(one["total_tokens"] for one in usage.usage_metadata.values())
    assert calls == len(recorder.traces)
    assert sum(t["input"] + t["output"] for t in spent) == counted


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_v3_stream_gives_its_caller_the_accepted_tiers_usage(asynchronous: bool) -> None:
    """The message of a v3 stream has the usage, and callbacks still count it once."""

    async def awaited() -> Any:
        stream = await cascade().astream_events("hi", version="v3")
        return [await stream.output, await stream]

    with get_usage_metadata_callback() as usage:
        if asynchronous:
            messages = asyncio.run(awaited())
        else:
            messages = [cascade().stream_events("hi", version="v3").output]
    for message in messages:
        record = message.response_metadata["cascade"]
        last = record["attempts"][-1]
        assert message.usage_metadata is not None
        assert last["input_tokens"] == message.usage_metadata["input_tokens"]
        assert last["output_tokens"] == message.usage_metadata["output_tokens"]
    spent = sum(t["input"] + t["output"] for t in record["tokens_by_tier"].values())
    assert spent == sum(one["total_tokens"] for one in usage.usage_metadata.values())


@pytest.mark.parametrize("way", ["chain.stream", "agent", "events v3", "tasks"])
def test_a_usage_that_is_kept_on_the_call_is_noticed(
    way: str, traced: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token sum doubles when the cascade's own run keeps its usage (mutation)."""

    def keeps(self: Any, run: Any) -> None:
        run.extra["metadata"] = {**run.metadata, "usage_metadata": {"total_tokens": 14}}
        self._update_run_single(run)

    monkeypatch.setattr(guard.OuterTracer, "_on_llm_end", keeps)
    server, client = traced
    with record_cascade() as recorder:
        roots = _traced_run(way, server, client, ambient=False)
    spent = [t for trace in recorder.traces for t in trace.tokens_by_tier.values()]
    assert sum(t["input"] + t["output"] for t in spent) < sum(root.total_tokens for root in roots)
