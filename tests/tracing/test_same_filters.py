"""One filter, both frameworks: LangChain by multipart and LlamaIndex by OTLP to one server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.tracers.langchain import LangChainTracer
from langsmith import Client

import langchain_cascade
import llamaindex_cascade
from cascadellm import Price, Threshold, Tier, mean_logprob
from cascadellm.testing import FakeModel
from llamaindex_cascade import tracing
from tests.servers.langsmith_server import LangSmithServer, Node

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ROOT = Path(__file__).parents[2]
OUTER = {"CascadeLLM", "CascadeLLM.chat"}


def build(package: Any, logprob: float) -> Any:
    """Return the same cascade in one of the frameworks."""
    small = FakeModel("Maybe five?", name="small", logprob=logprob)
    large = FakeModel("Four.", name="large")
    tiers = [Tier(small, price=Price(1.0, 1.0)), Tier(large, price=Price(2.0, 2.0))]
    return package.CascadeLLM(tiers, Threshold(mean_logprob, -0.35))


def ask_both(server: LangSmithServer, logprob: float) -> None:
    """Ask one question in each framework, traced to one server."""
    from llama_index.core.base.llms.types import ChatMessage

    client = Client(api_url=server.url, api_key="ls-none")
    config: Any = {"callbacks": [LangChainTracer(client=client)]}
    build(langchain_cascade, logprob).invoke("2 + 2?", config)
    client.flush()
    client.cleanup()
    with tracing.to_langsmith("p", api_key="ls-none", endpoint=server.url):
        build(llamaindex_cascade, logprob).chat([ChatMessage(content="2 + 2?")])


@pytest.fixture
def server() -> Any:
    """A local LangSmith with an escalated and an accepted call of each framework."""
    with LangSmithServer() as one:
        ask_both(one, -2.0)
        ask_both(one, -0.1)
        yield one


def names(nodes: list[Node]) -> set[str]:
    """Return the names of runs."""
    return {node.name for node in nodes}


@pytest.mark.parametrize(
    "wanted",
    [
        {"cascade_escalated": True},
        {"cascade_escalated": "true"},
        {"cascade_escalated": False},
        {"cascade_answered_by": "large"},
        {"cascade_answered_by": "small", "cascade_escalated": False},
        {"cascade_tier": 1, "cascade_score": -2.0},
        {"cascade_policy": "Threshold", "cascade_n_calls": 2},
    ],
    ids=str,
)
def test_a_metadata_filter_finds_the_calls_of_both(server: LangSmithServer, wanted: Any) -> None:
    """Each filter finds exactly one call of LangChain and one of LlamaIndex."""
    found = [node for node in server.filtered(**wanted) if node.name in OUTER]
    assert sorted(node.name for node in found) == sorted(OUTER)


@pytest.mark.parametrize("tag", ["cascade:escalated", "cascade:answered_by:large"])
def test_a_tag_filter_finds_the_calls_of_both(server: LangSmithServer, tag: str) -> None:
    """A tag finds the escalated call of each framework, and only that."""
    assert names(server.tagged(tag)) == OUTER
    assert len(server.tagged(tag)) == 2


def test_a_tiers_runs_are_found_in_both(server: LangSmithServer) -> None:
    """`cascade_action = escalate` finds the rejected drafts, the tag of a tier its runs."""
    assert names(server.filtered(cascade_action="escalate")) == {"small", "CascadeTier.attempt"}
    assert names(server.filtered(cascade_name="large")) == {"large", "CascadeTier.attempt"}
    assert names(server.tagged("cascade:tier:0")) == {"small", "CascadeTier.attempt"}


def test_the_names_and_values_on_a_call_are_the_same(server: LangSmithServer) -> None:
    """Both frameworks put the same `cascade_*` names with the same values on a call."""
    first, second = (
        {k: v for k, v in node.metadata.items() if k.startswith("cascade_")}
        for node in server.filtered(cascade_escalated=True)
        if node.name in OUTER
    )
    assert first.keys() == second.keys()
    # prompts are counted by their own form in each framework
    for each in (first, second):
        assert each.pop("cascade_cost_usd") > 0
    assert first == second


def test_a_name_that_differs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison has power: another name in one framework loses its calls (mutation)."""
    from llamaindex_cascade import attributes

    monkeypatch.setattr(attributes, "_LANGSMITH", "langsmith.metadata.x_")
    with LangSmithServer() as one:
        ask_both(one, -2.0)
        found = names(one.filtered(cascade_escalated=True))
    assert found == {"CascadeLLM"}


def test_total_tokens_are_the_same_in_both(server: LangSmithServer) -> None:
    """In both trees the roll-up is the sum over the tiers' own tokens."""
    for node in server.trees():
        tiers = [n for n in node.all() if n.name in ("small", "large", "LocalLLM.chat")]
        assert sum(tier.total_tokens for tier in tiers) == node.total_tokens > 0


@pytest.mark.parametrize("otel", [False, True])
def test_t39_a_request_through_both_adapters_leaves_two_traces(otel: bool) -> None:
    """LangChain's runs and LlamaIndex's spans do not join, with or without its OTel mode."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "LANGSMITH_OTEL_ENABLED": "true" if otel else ""}
    if otel:
        env["LANGSMITH_OTEL_ONLY"] = "true"
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("mixed_app.py"))],
        capture_output=True,
        text=True,
        env=env,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    traces, found, ways = done.stdout.split()
    assert (traces, found) == ("2", "2")
    assert ways == ("otlp" if otel else "multipart,otlp")
