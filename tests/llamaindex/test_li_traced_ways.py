"""Wherever a cascade is called from, OpenInference gets one right tree per call, counted once."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from llama_index.core import Document, PromptTemplate, Settings, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.async_utils import run_jobs
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.tools import FunctionTool
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cascadellm import record_cascade
from cascadellm.demo.llamaindex import WordCountEmbedding
from llamaindex_cascade import CascadeLLM, tracing
from tests.llamaindex.li_support import ENDPOINTS, ask, pair, user

# the instrumentor calls pydantic's old `json`; a warning there would lose the span silently
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_dispatcher = get_dispatcher("tests.traced_ways")


def _index() -> VectorStoreIndex:
    documents = [Document(text="Two and two are four.")]
    return VectorStoreIndex.from_documents(documents, embed_model=WordCountEmbedding())


def _query(llm: CascadeLLM) -> None:
    _index().as_query_engine(llm=llm).query("2 + 2?")


def _query_stream(llm: CascadeLLM) -> None:
    "".join(_index().as_query_engine(llm=llm, streaming=True).query("2 + 2?").response_gen)


async def _aquery(llm: CascadeLLM) -> None:
    await _index().as_query_engine(llm=llm).aquery("2 + 2?")


def _chat_engine(llm: CascadeLLM) -> None:
    _index().as_chat_engine(chat_mode="context", llm=llm).chat("2 + 2?")


async def _agent(llm: CascadeLLM) -> None:
    await FunctionAgent(tools=[], llm=llm).run("2 + 2?")


async def _aquery_stream(llm: CascadeLLM) -> None:
    response = await _index().as_query_engine(llm=llm, streaming=True).aquery("2 + 2?")
    async for _ in response.async_response_gen():  # type: ignore[union-attr]
        pass


def _chat_stream(llm: CascadeLLM) -> None:
    list(_index().as_chat_engine(chat_mode="context", llm=llm).stream_chat("2 + 2?").response_gen)


async def _achat_engine(llm: CascadeLLM) -> None:
    await _index().as_chat_engine(chat_mode="context", llm=llm).achat("2 + 2?")


async def _agent_stream(llm: CascadeLLM) -> None:
    handler = FunctionAgent(tools=[], llm=llm).run("2 + 2?")
    async for _ in handler.stream_events():
        pass
    await handler


def _tools(llm: CascadeLLM) -> None:
    llm.chat_with_tools([FunctionTool.from_defaults(_double)], user_msg="2 + 2?")


def _double(number: int) -> int:
    """Double a number."""
    return 2 * number


async def _jobs(llm: CascadeLLM) -> None:
    await run_jobs([llm.achat(user()) for _ in range(3)], workers=2)


async def _react(llm: CascadeLLM) -> None:
    await ReActAgent(tools=[], llm=llm).run("2 + 2?")


@_dispatcher.span
def _function(llm: CascadeLLM) -> None:
    llm.chat(user())


def _threads(llm: CascadeLLM) -> None:
    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(llm.chat, user()))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def _tasks(llm: CascadeLLM) -> None:
    await asyncio.gather(*(llm.achat(user()) for _ in range(3)))


def _predict(llm: CascadeLLM) -> None:
    llm.predict(PromptTemplate("{q}"), q="2 + 2?")


def _endpoint(name: str) -> Callable[[CascadeLLM], Any]:
    return lambda llm: ask(llm, name)


WAYS: dict[str, tuple[Callable[[CascadeLLM], Any], int, int]] = {
    **{name: (_endpoint(name), 1, 1) for name in ENDPOINTS},
    "query engine": (_query, 1, 1),
    "query engine, streaming": (_query_stream, 1, 1),
    "query engine, async": (_aquery, 1, 1),
    "chat engine": (_chat_engine, 1, 1),
    "agent": (_agent, 1, 1),
    "query engine, async streaming": (_aquery_stream, 1, 1),
    "chat engine, streaming": (_chat_stream, 1, 1),
    "chat engine, async": (_achat_engine, 1, 1),
    "agent, streaming": (_agent_stream, 1, 1),
    "tools": (_tools, 1, 1),
    "jobs": (_jobs, 3, 1),
    "ReAct agent": (_react, 1, 1),
    "a spanned function": (_function, 1, 1),
    "predict": (_predict, 1, 1),
    "threads": (_threads, 3, 3),
    "tasks": (_tasks, 3, 3),
}
"""Name -> (run, cascade calls, traces)."""


@pytest.fixture
def exported() -> Iterator[InMemorySpanExporter]:
    """Instrument LlamaIndex; yield what is exported."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with tracing.instrument(provider):
        yield exporter
    provider.shutdown()


def _run(way: str, **options: Any) -> list[Any]:
    """Call a cascade that escalates; return the records."""

    async def go() -> None:
        said = WAYS[way][0](pair(**options)[0])
        if asyncio.iscoroutine(said):
            await said

    with record_cascade() as recorder:
        if asyncio.iscoroutinefunction(WAYS[way][0]) or way in ENDPOINTS:
            asyncio.run(go())
        else:
            WAYS[way][0](pair(**options)[0])
    return recorder.traces


def _spent(traces: list[Any]) -> int:
    return sum(t["input"] + t["output"] for one in traces for t in one.tokens_by_tier.values())


def _counted(spans: Any) -> int:
    kinds = ("prompt", "completion")
    return sum(s.attributes.get(f"llm.token_count.{kind}", 0) for s in spans for kind in kinds)


@pytest.mark.parametrize("way", WAYS)
def test_openinference_gets_one_right_tree_per_call(
    way: str, exported: InMemorySpanExporter
) -> None:
    """One root per trace, attempts under the cascade, tiers and decision under them, marks."""
    traces = _run(way)
    _, calls, roots = WAYS[way]
    spans = exported.get_finished_spans()
    tree = {span.context.span_id: span for span in spans}
    ours = [s for s in spans if "cascade.answered_by" in (s.attributes or {})]

    # an agent's own internal steps may be traces of their own; a cascade is in exactly one
    assert calls == len(traces) == len(ours)
    assert roots == len({span.context.trace_id for span in ours})
    for outer in ours:
        below = [s for s in spans if s.parent and s.parent.span_id == outer.context.span_id]
        attempts = sorted(
            (s for s in below if s.name.startswith("CascadeTier.")), key=lambda s: s.start_time
        )
        assert ["escalate", "accept"] == [s.attributes["cascade.action"] for s in attempts]
        assert ("large", True, -2.0) == tuple(
            outer.attributes[f"langsmith.metadata.cascade_{name}"]
            for name in ("answered_by", "escalated", "score")
        )
        assert "mean_logprob -2 < -0.35" == outer.attributes["cascade.reason"]
    own = [s for s in spans if s.name.startswith(("LocalLLM.", "DeferralPolicy."))]
    # LlamaIndex makes a span of preparing a call with tools, too
    inner = [s for s in own if "._" not in s.name]
    assert calls * 3 == len(inner)
    assert all(tree[s.parent.span_id].name.startswith("CascadeTier.") for s in inner)
    assert {s.attributes["llm.model_name"] for s in inner if "llm.model_name" in s.attributes} == {
        "small",
        "large",
    }
    for span in inner:
        # what is the cascade's own stays on the cascade's span
        assert "cascade.answered_by" not in span.attributes
        assert "Threshold" not in str(span.attributes.get("llm.invocation_parameters"))
    assert _spent(traces) == _counted(spans)
    assert not [s.name for s in spans if not s.status.is_ok and s.name.startswith("Cascade")]


@pytest.mark.parametrize("way", WAYS)
def test_the_token_counter_counts_every_tier_once(way: str) -> None:
    """`TokenCountingHandler` sees each tier's call once wherever the cascade is called."""
    counter = TokenCountingHandler(tokenizer=str.split)
    manager = CallbackManager([counter])
    traces = _run(way, callback_manager=manager)
    _, calls, _ = WAYS[way]
    events = counter.llm_token_counts
    assert calls * 2 == len(events)
    said = sum(e.completion_token_count for e in events)
    assert said == sum(t["output"] for one in traces for t in one.tokens_by_tier.values())
    assert Settings.callback_manager is not manager


@pytest.mark.parametrize("way", ["query engine", "agent", "tasks", "astream_chat"])
def test_a_usage_that_is_kept_on_the_call_is_noticed(
    way: str, exported: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token sum grows when the cascade's own events keep their usage (mutation)."""
    from llamaindex_cascade import observe

    monkeypatch.setattr(observe, "event_copy", lambda response: response)
    traces = _run(way)
    assert _spent(traces) < _counted(exported.get_finished_spans())
