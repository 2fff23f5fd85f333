"""The real LangSmith client against a local server: shape, totals, marks, secrets."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tracers.langchain import LangChainTracer
from langsmith import Client, traceable, tracing_context

from cascadellm.answer import ToolCall
from cascadellm.testing import FakeModel
from langchain_cascade import (
    CascadeLLM,
    LocalChatModel,
    Price,
    Threshold,
    Tier,
    Valid,
    guard,
    mean_logprob,
)
from tests.langchain.lc_openai import OpenAIFake, chat_openai
from tests.langchain.lc_tools import CHOW, PATHS, cascade, fakes
from tests.servers.langsmith_server import LangSmithServer, Node

SHAPE = [
    "chain",
    "CascadeLLM",
    [["llm", "small", []], ["chain", "cascade_decision", []], ["llm", "large", []]],
]


class Traced:
    """A server with a client and a tracer that sends to it."""

    def __init__(self, server: LangSmithServer) -> None:
        self.server = server
        self.client = Client(api_url=server.url, api_key="ls-none")
        self.tracer = LangChainTracer(client=self.client, project_name="p")

    @property
    def config(self) -> dict[str, Any]:
        """Return a call's config."""
        return {"callbacks": [self.tracer]}

    def root(self) -> Node:
        """Return the only trace, after everything was sent."""
        self.client.flush()
        return self.server.tree()


@pytest.fixture
def traced():
    """A running server and its client."""
    with LangSmithServer() as server:
        one = Traced(server)
        yield one
        one.client.cleanup()


@pytest.mark.parametrize("path", PATHS)
def test_t28_the_cascade_is_a_chain_with_tiers_and_decisions_below(traced, path):
    """On every path LangSmith gets one closed trace of the recommended shape."""
    PATHS[path](cascade(), "hi", traced.config)
    root = traced.root()
    assert SHAPE == root.shape()
    assert set(traced.server.runs) == traced.server.ended
    assert root.metadata["cascade_answered_by"] == "large"
    assert root.metadata["cascade_escalated"] is True
    assert root.metadata["cascade_score"] == pytest.approx(-2.0)
    assert "cascade:answered_by:large" in root.tags
    assert "cascade:escalated" in root.tags
    assert "usage_metadata" not in root.metadata


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
@pytest.mark.parametrize("asynchronous", [False, True])
def test_t28_v3_events_have_the_shape_too(traced, asynchronous):
    """Streaming events of version 3 leave the same trace."""

    async def drain() -> None:
        stream = await cascade().astream_events("hi", traced.config, version="v3")
        await stream.output

    if asynchronous:
        asyncio.run(drain())
    else:
        assert cascade().stream_events("hi", traced.config, version="v3").output
    assert SHAPE == traced.root().shape()


@pytest.mark.parametrize("path", ["invoke", "ainvoke", "stream", "astream"])
def test_t28_total_tokens_are_the_sum_over_tiers(traced, path):
    """LangSmith's roll-up counts each tier's tokens once."""
    PATHS[path](cascade(), "hi", traced.config)
    assert 7 + 7 == traced.root().total_tokens


def test_compressed_ingestion_is_understood(traced):
    """What the client sends compressed is rebuilt like the rest."""
    assert traced.client.info.instance_flags
    for _ in range(20):
        cascade().invoke("hi", traced.config)
        traced.client.flush()
        if "zstd" in traced.server.encodings:
            break
    assert "zstd" in traced.server.encodings
    assert all(tree.shape() == SHAPE for tree in traced.server.trees())


def test_t28_a_chain_keeps_its_place_for_the_cascade(traced):
    """Inside a chain the cascade is a chain run below it."""
    chain = ChatPromptTemplate.from_messages([("user", "{q}")]) | cascade()
    chain.invoke({"q": "hi"}, traced.config)
    assert SHAPE in traced.root().shape()[2]


def test_t28_traceable_functions_are_parents(traced):
    """Under `@traceable` the whole tree hangs below the function, and all is closed."""

    @traceable(name="asks")
    def asks(text: str) -> str:
        return cascade().invoke(text).text

    with tracing_context(enabled=True, client=traced.client, project_name="p"):
        asks("hi")
    assert ["chain", "asks", [SHAPE]] == traced.root().shape()
    assert set(traced.server.runs) == traced.server.ended


def test_t28_tracing_from_the_environment(traced):
    """With tracing switched on around the call the tree is the same, also streamed."""
    for path in ("invoke", "stream"):
        with tracing_context(enabled=True, client=traced.client, project_name="p"):
            PATHS[path](cascade(), "hi", {})
    traced.client.flush()
    assert [SHAPE, SHAPE] == [tree.shape() for tree in traced.server.trees()]


def test_t28_a_tracer_of_the_model_itself_traces_once(traced):
    """A tracer given to the constructor leaves the cascade's run alone, once."""
    llm = cascade(options={"callbacks": [traced.tracer]})
    llm.invoke("hi")
    assert ["chain", "CascadeLLM", []] == traced.root().shape()


def test_t28_on_a_surprise_the_run_is_an_llm_run_without_usage(traced, monkeypatch):
    """Where the change of type fails, the call answers and the run is a usage-free `llm`."""

    def breaks(self: Any, run: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(guard.OuterTracer, "_as_chain", breaks)
    assert "large says so" == cascade().invoke("hi", traced.config).text
    root = traced.root()
    assert "llm" == root.kind
    assert "usage_metadata" not in root.metadata
    assert 14 == root.total_tokens


def test_t28_an_unknown_tracer_is_left_alone(monkeypatch):
    """A copy that cannot be made leaves LangChain's own tracer in place."""

    class Closed(LangChainTracer):
        pass

    tracer = Closed(client=Client(api_url="http://127.0.0.1:9", api_key="x"))
    assert tracer is guard.for_outer(tracer)
    plain = LangChainTracer(client=tracer.client)
    monkeypatch.setattr(guard, "vars", None, raising=False)
    assert plain is guard.for_outer(plain)


def test_t06_nothing_of_the_cascade_leaks_into_tier_runs(traced):
    """`_type`, parameters and `ls_*` of a tier run are the tier's own."""
    small = LocalChatModel(fakes()[0], temperature=0.25)
    llm = CascadeLLM([small, fakes()[1]], CHOW, temperature=0.9)
    llm.invoke("hi", traced.config)
    root = traced.root()
    tier = root.named("small")[0].metadata
    assert ("local-chat", "local", 0.25) == tuple(
        tier[k] for k in ("_type", "ls_provider", "ls_temperature")
    )
    assert "cascade" == root.metadata["ls_provider"]
    assert not {"policy", "tiers", "on_tier_error"} & set(tier)


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
def test_t06_the_leak_is_noticed(traced, monkeypatch):
    """The leak shows when children get the outer run's handlers (mutation)."""
    llm = cascade()
    leaking = lambda self, cls, callbacks, tags, metadata: cls.configure(  # noqa: E731
        callbacks,
        inheritable_metadata=dict(self._get_ls_params()),
        langsmith_inheritable_metadata={"_type": "cascade-chat"},
    )
    monkeypatch.setattr(type(llm), "_configured", leaking)
    llm.invoke("hi", traced.config)
    assert "cascade-chat" == traced.root().named("small")[0].metadata["_type"]


def test_t27_a_decision_run_per_decided_tier(traced):
    """LangSmith holds a `cascade_decision` run with inputs and outputs for each boundary."""
    tiers = [*fakes(), FakeModel("third", name="third")]
    CascadeLLM(tiers, [CHOW, Threshold(mean_logprob, -0.35)]).invoke("hi", traced.config)
    first, second = (node.run for node in traced.root().named("cascade_decision"))
    assert {"tier": 0, "name": "small", "draft": "small says so"}.items() <= first["inputs"].items()
    assert {"defer": True, "threshold": -0.35, "code": "score"}.items() <= first["outputs"].items()
    assert {"defer": False, "tier": 1}.items() <= second["outputs"].items()


def test_rejected_drafts_are_marked(traced):
    """A rejected draft's run says so and is left out of the message view; the answer's is not."""
    cascade().invoke("hi", traced.config)
    root = traced.root()
    small, large = root.named("small")[0].metadata, root.named("large")[0].metadata
    assert ("escalate", True) == (small["cascade_action"], small["ls_message_view_exclude"])
    assert "accept" == large["cascade_action"]
    assert "ls_message_view_exclude" not in large
    assert (0, "small") == (small["cascade_tier"], small["cascade_name"])


def test_an_abandoned_stream_leaves_no_open_tier_run(traced):
    """A stream that is closed half way sends its tiers' runs all the same."""
    stream = cascade().stream("hi", traced.config)
    next(stream)
    stream.close()
    root = traced.root()
    assert set(traced.server.runs) == traced.server.ended
    assert "escalate" == root.named("small")[0].metadata["cascade_action"]


def test_a_policy_that_raises_leaves_no_open_tier_run(traced):
    """A tier's run is sent although the call ends with the policy's error."""
    llm = cascade(Threshold(mean_logprob, 0.0, missing="raise"), logprob=None)
    with pytest.raises(Exception, match="logprobs"):
        llm.invoke("hi", traced.config)
    root = traced.root()
    assert set(traced.server.runs) == traced.server.ended
    assert "stopped" == root.named("small")[0].metadata["cascade_action"]


def test_a_failed_tier_is_marked(traced):
    """A tier that raised is an errored run with the action `error`."""
    llm = CascadeLLM([FakeModel(TimeoutError("slow"), name="small"), fakes()[1]], CHOW)
    llm.invoke("hi", traced.config)
    small = traced.root().named("small")[0]
    assert "error" == small.metadata["cascade_action"]
    assert "slow" in small.run["error"]


def test_judges_nest_below_the_decision(traced):
    """A judge's call is an `llm` run below the decision run."""
    from langchain_cascade import Judge

    judge = FakeModel("Score: 2", name="judge")
    small, large = fakes()
    CascadeLLM([small, large], Judge(judge, threshold=7)).invoke("hi", traced.config)
    (decision,) = traced.root().named("cascade_decision")
    assert ["judge"] == [child.name for child in decision.children]


def test_a_local_tiers_cost_is_sent(traced):
    """A priced local tier's run carries `total_cost`; a provider's is left to LangSmith."""
    small, _ = fakes()
    openai = Tier(chat_openai(OpenAIFake("final")), price=Price(1.0, 1.0))
    CascadeLLM([Tier(small, price=Price(1.0, 2.0)), openai], CHOW).invoke("hi", traced.config)
    root = traced.root()
    assert 10e-6 == pytest.approx(root.named("small")[0].metadata["usage_metadata"]["total_cost"])
    assert "total_cost" not in root.named("gpt-fake")[0].metadata["usage_metadata"]


@pytest.mark.parametrize("kept", [True, False])
def test_logprobs_can_be_left_out(traced, kept):
    """`trace_logprobs=False` keeps them from LangSmith and not from the policy."""
    llm = cascade(options={"trace_logprobs": kept})
    assert "large says so" == llm.invoke("hi", traced.config).text
    assert SHAPE == traced.root().shape()
    assert kept == ('"top_logprobs"' in traced.server.searched())


@pytest.mark.filterwarnings("ignore:Creating feedback for a run without session_id")
@pytest.mark.parametrize("wanted", [True, False])
def test_the_score_can_be_sent_as_feedback(traced, wanted):
    """`trace_feedback=True` sends the score on the cascade's run, and is off by default."""
    options = {"trace_feedback": True} if wanted else {}
    cascade(options=options).invoke("hi", traced.config)
    root = traced.root()
    sent = [(f["key"], f["score"], f["run_id"]) for f in traced.server.feedback]
    expected = [("cascade_score", pytest.approx(-2.0), root.run["id"])]
    assert (expected if wanted else []) == sent


def test_an_agent_is_one_trace(traced):
    """An agent's run holds a cascade per model step, tokens summed once."""

    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    def solve(messages: Any) -> Any:
        done = messages[-1]["role"] == "tool"
        return "It is 5." if done else ToolCall("add", {"a": 2, "b": 3})

    llm = CascadeLLM([FakeModel(solve, name="small"), fakes()[1]], Valid())
    agent = create_agent(llm, tools=[add])
    agent.invoke({"messages": [("user", "2 + 3?")]}, traced.config)
    root = traced.root()
    runs = root.named("CascadeLLM")
    assert ["chain", "chain"] == [run.kind for run in runs]
    assert sum(run.total_tokens for run in root.named("small")) == root.total_tokens


def test_threads_and_tasks_leave_separate_traces(traced):
    """Four threads and four tasks leave eight whole traces."""
    llm = cascade()
    threads = [
        threading.Thread(
            target=contextvars.copy_context().run, args=(llm.invoke, "hi", traced.config)
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()

    async def together() -> None:
        await asyncio.gather(*(llm.ainvoke("hi", traced.config) for _ in range(4)))

    asyncio.run(together())
    for thread in threads:
        thread.join()
    llm.batch(["a", "b"], traced.config)
    traced.client.flush()
    assert [SHAPE] * 10 == [tree.shape() for tree in traced.server.trees()]


def test_marks_do_not_mix_in_one_batch(traced):
    """Conversations of one `generate` call keep their own marks."""
    from langchain_core.messages import HumanMessage

    small = FakeModel(lambda m: m[-1]["content"], name="small")
    llm = CascadeLLM([small, fakes()[1]], lambda answer: answer.text == "hard")
    llm.generate([[HumanMessage("easy")], [HumanMessage("hard")]], callbacks=[traced.tracer])
    traced.client.flush()
    answered = [tree.metadata["cascade_answered_by"] for tree in traced.server.trees()]
    assert {"small", "large"} == set(answered)


def test_tracing_switched_off_sends_nothing(traced):
    """`tracing_context(enabled=False)` sends no run, and no marks either."""
    with tracing_context(enabled=False):
        cascade().invoke("hi", traced.config)
    traced.client.flush()
    assert not traced.server.runs


def test_a_slow_server_delays_no_answer():
    """Sending happens in the background."""
    with LangSmithServer(delay_s=0.5) as server:
        one = Traced(server)
        begun = time.perf_counter()
        cascade().invoke("hi", one.config)
        assert time.perf_counter() - begun < 0.4
        one.client.cleanup()


@pytest.mark.parametrize("event", ["on_chat_model_start", "on_chain_start", "on_custom_event"])
def test_a_broken_handler_breaks_no_answer(event):
    """A callback handler that raises is logged by LangChain and the answer comes."""
    from langchain_core.callbacks import BaseCallbackHandler

    def breaks(self: Any, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("planted")

    broken = type("Broken", (BaseCallbackHandler,), {event: breaks})()
    assert "large says so" == cascade().invoke("hi", {"callbacks": [broken]}).text
