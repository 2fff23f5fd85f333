"""A tracer's private part that moved, and a decision of odd values, change no answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from contextvars import copy_context
from typing import Any

import numpy as np
import opentelemetry.trace
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers.langchain import LangChainTracer
from langsmith import Client
from llama_index_instrumentation.span import active_span_id

import langchain_cascade
import llamaindex_cascade
from cascadellm import Decision, record_cascade
from cascadellm.testing import FakeModel
from langchain_cascade import guard, marks
from langchain_cascade import tracing as chain_tracing
from llamaindex_cascade import attributes, observe, spans, tracing
from tests.langchain.lc_tools import PATHS, cascade
from tests.llamaindex.li_support import ENDPOINTS, asked, pair, text_of
from tests.servers.langsmith_server import LangSmithServer, Node

# the instrumentor calls pydantic's old `json`; a warning there would lose the span silently
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

WAYS = ["invoke", "ainvoke", "stream", "astream"]
CHAIN = [
    (chain_tracing, "_set_config_context"),
    (chain_tracing, "_set_tracing_context"),
    (marks, "outer_marks"),
    (marks, "held"),
    (marks, "forgive"),
    (marks, "_mark"),
    (marks, "_send"),
    (guard, "held"),
    (guard, "scrub"),
    (guard.OuterTracer, "_persist_run_single"),
    (guard.OuterTracer, "_get_run"),
    (guard.OuterTracer, "_on_llm_end"),
    (guard.TierTracer, "_persist_run_single"),
    (guard.TierTracer, "_update_run_single"),
]
INDEX = [
    (opentelemetry.trace, "get_current_span"),
    (attributes.OtelSpan, "set"),
    (attributes, "record_values"),
    (spans, "trace_attributes"),
    (spans, "attempt_attributes"),
    (spans, "instrumentation_event"),
    (spans, "_attempt_result"),
    (observe, "event_copy"),
    (llamaindex_cascade.CascadeLLM, "to_payload"),
]


def planted(*args: Any, **kwargs: Any) -> Any:
    """Fail as a part that moved does."""
    raise RuntimeError("planted")


def name_of(part: tuple[Any, str]) -> str:
    """Return a part's name for the test's."""
    return f"{part[0].__name__.split('.')[-1]}.{part[1]}"


@pytest.fixture
def server() -> Iterator[LangSmithServer]:
    """A local LangSmith."""
    with LangSmithServer() as one:
        yield one


def traced(server: LangSmithServer, llm: Any, way: str = "invoke") -> tuple[str, list[Node]]:
    """Return the answer of a traced LangChain call, and the traces that arrived."""
    client = Client(api_url=server.url, api_key="ls-none")
    config = {"callbacks": [LangChainTracer(client=client)]}
    context = copy_context()
    try:
        said = context.run(PATHS[way], llm, "hi", config).text
        assert context.get(var_child_runnable_config) is None
    finally:
        client.flush()
        client.cleanup()
    return said, server.trees()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("part", CHAIN, ids=name_of)
def test_a_moved_part_of_langchains_tracer_changes_no_answer(
    part: tuple[Any, str], way: str, server: LangSmithServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer comes, no usage is counted twice, and no context is left behind."""
    monkeypatch.setattr(*part, planted)
    said, trees = traced(server, cascade(), way)
    assert said == "large says so"
    assert sum(tree.total_tokens for tree in trees) <= 7 + 7
    if part == (guard.OuterTracer, "_persist_run_single"):
        assert [(root.kind, root.metadata.get("usage_metadata")) for root in trees] == [
            ("llm", None)
        ]


@pytest.mark.parametrize("way", WAYS)
def test_where_a_part_is_gone_the_run_is_an_llm_run_without_usage(
    way: str, server: LangSmithServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a method less than expected LangChain's own tracer is used, and the rest stays."""
    monkeypatch.setattr(guard, "_PRIVATE", (*guard._PRIVATE, "_a_method_that_is_gone"))
    said, (root,) = traced(server, cascade(), way)
    assert said == "large says so"
    assert root.kind == "llm"
    assert "usage_metadata" not in root.metadata
    assert root.total_tokens == 7 + 7
    assert [child.name for child in root.children] == ["small", "cascade_decision", "large"]
    assert root.metadata["cascade_answered_by"] == "large"
    assert set(server.runs) == server.ended


def test_a_tracer_that_does_not_show_its_runs_changes_no_answer() -> None:
    """A handler whose `run_map` raises is told, and left alone."""

    class Closed(BaseCallbackHandler):
        @property
        def run_map(self) -> Any:
            raise RuntimeError("planted")

    class Other(BaseCallbackHandler):
        run_map = ("not", "a", "dictionary")

    for way in WAYS:
        config = {"callbacks": [Closed(), Other()]}
        assert PATHS[way](cascade(), "hi", config).text == "large says so"


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("part", INDEX, ids=name_of)
def test_a_moved_part_of_a_span_changes_no_answer(
    part: tuple[Any, str], endpoint: str, server: LangSmithServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer comes, and no span stays the parent of later calls."""
    with tracing.to_langsmith("p", api_key="none", endpoint=server.url):
        with monkeypatch.context() as patched:
            patched.setattr(*part, planted)
            assert text_of(asked(pair()[0], endpoint)[-1]) == "Four, I am certain."
        assert active_span_id.get() is None


@pytest.mark.parametrize("framework", ["langchain", "llamaindex"])
def test_a_surprise_that_is_not_caught_is_noticed(
    framework: str, server: LangSmithServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks have power: without the guard the planted error reaches the caller (mutation)."""
    monkeypatch.setattr(marks, "outer_marks", planted)
    monkeypatch.setattr(spans, "instrumentation_event", planted)
    for module in (chain_tracing, spans):
        monkeypatch.setattr(module, "harmless", lambda what: nullcontext())
    if framework == "langchain":
        with pytest.raises(RuntimeError, match="planted"):
            traced(server, cascade())
        return
    to_server = tracing.to_langsmith("p", api_key="none", endpoint=server.url)
    with to_server, pytest.raises(RuntimeError, match="planted"):
        asked(pair()[0], "chat")


ODD = {
    "numpy numbers": Decision(np.bool_(True), "own", "s", np.float32(-1.5), np.float64(-0.25)),  # type: ignore[arg-type]
    "whole numbers": Decision(1, "own", "s", -2, np.int64(3)),  # type: ignore[arg-type]
    "no number": Decision(True, "own", "s", float("nan"), float("inf")),
    "nothing said": Decision(True, None, code=None, reason=None),  # type: ignore[arg-type]
    "an error": Decision(True, "own", reason=ValueError("no")),  # type: ignore[arg-type]
    "a vector": Decision(True, "own", "s", np.array([1.0, 2.0])),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_values_of_a_decision_are_traced_alike(odd: str, server: LangSmithServer) -> None:
    """A policy's own types change no answer, and read alike in record and both frameworks."""
    decision = ODD[odd]

    def policy(answer: Any) -> Decision:
        return decision

    def tiers() -> list[FakeModel]:
        return [FakeModel("Lyon?", name="small"), FakeModel("Paris.", name="large")]

    with record_cascade() as recorder:
        said, _ = traced(server, langchain_cascade.CascadeLLM(tiers(), policy))
        assert said == "Paris."
        with tracing.to_langsmith("p", api_key="none", endpoint=server.url):
            for endpoint in ENDPOINTS:
                llm = llamaindex_cascade.CascadeLLM(tiers(), policy)
                assert text_of(asked(llm, endpoint)[-1]) == "Paris."
    names = ("cascade_score", "cascade_threshold", "cascade_policy", "cascade_reason")
    shown = {
        json.dumps([node.metadata.get(name) for name in names])
        for node in server.filtered(cascade_escalated=True)
    }
    assert len(server.filtered(cascade_escalated=True)) == 9
    assert len(shown) == 1
    (score, *_) = json.loads(shown.pop())
    recorded = {json.dumps(r.to_dict()["attempts"][0]["score"]) for r in recorder.records}
    assert recorded == {json.dumps(score)}
    assert isinstance(score, float | int) == (odd in {"numpy numbers", "whole numbers"})
