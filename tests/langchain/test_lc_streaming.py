"""Streams and agents show accepted text only, once, and lose no logprobs (T12 to T16)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import AsyncCallbackHandler, StreamingStdOutCallbackHandler
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser

from cascadellm.answer import Answer, ToolCall
from cascadellm.testing import FakeModel
from langchain_cascade import CascadeLLM, LocalChatModel, Valid
from langchain_cascade import tracing as tracing_module
from langchain_cascade.convert import answer_of
from tests.langchain.lc_openai import OpenAIFake, chat_openai
from tests.langchain.lc_tools import CHOW, PATHS, Recording, added, cascade, fakes

beta = pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def _agent_tiers() -> list[FakeModel]:
    """Return tiers whose small one calls a wrong tool and whose large one solves the task."""

    def solve(messages: Any) -> Any:
        if messages[-1]["role"] == "tool":
            return f"The sum is {messages[-1]['content']}."
        return ToolCall("add", {"a": 2, "b": 3})

    def fail(messages: Any) -> Any:
        if messages[-1]["role"] == "tool":
            return Answer("DRAFT that is cut", finish_reason="length")
        return ToolCall("multiply", {"a": 2, "b": 3})

    return [FakeModel(fail, name="small"), FakeModel(solve, name="large")]


def _agent() -> Any:
    return create_agent(CascadeLLM(_agent_tiers(), Valid()), tools=[add])


ASKED: Any = {"messages": [("user", "2 + 3?")]}


async def _collect(stream: Any) -> list[Any]:
    return [item async for item in stream]


def _streamed(path: str) -> list[Any]:
    agent = _agent()
    if path == "stream":
        return list(agent.stream(ASKED, stream_mode="messages"))
    return asyncio.run(_collect(agent.astream(ASKED, stream_mode="messages")))


@pytest.mark.parametrize("path", ["stream", "astream"])
def test_t12_an_agent_streams_the_accepted_text_once(path):
    """`messages` mode yields no token of a rejected draft and the answer once."""
    pieces = [m for m, _ in _streamed(path) if isinstance(m, AIMessage)]
    assert "The sum is 5." == "".join(piece.text for piece in pieces)
    called = [c["name"] for piece in pieces for c in getattr(piece, "tool_call_chunks", [])]
    assert ["add"] == [name for name in called if name]


def test_t12_a_leak_is_noticed(monkeypatch):
    """The draft shows when tier handlers are not muted and not tagged (mutation)."""
    monkeypatch.setattr(tracing_module, "muted", list)
    monkeypatch.setattr("langchain_cascade.calls.CascadeCall._config", _untagged)
    pieces = [m for m, _ in _streamed("stream") if isinstance(m, AIMessage)]
    assert "The sum is 5." != "".join(piece.text for piece in pieces)


def _untagged(self: Any, effect: Any) -> Any:
    return {"callbacks": self.manager}


@pytest.mark.parametrize("path", PATHS)
def test_t12_a_streaming_handler_sees_no_draft(path, capsys):
    """A handler that prints tokens prints those of the cascade's own run, if any."""
    PATHS[path](cascade(), "hi", {"callbacks": [StreamingStdOutCallbackHandler()]})
    assert capsys.readouterr().out in ("", "large says so")


def test_t12_async_handlers_keep_their_other_events():
    """Muting keeps start and end events of tier runs for async handlers."""
    ends: list[Any] = []
    tokens: list[str] = []

    class Watching(AsyncCallbackHandler):
        async def on_llm_end(self, response: Any, **kwargs: Any) -> None:
            ends.append(kwargs["run_id"])

        async def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
            tokens.append(token)

    asyncio.run(_collect(cascade().astream("hi", {"callbacks": [Watching()]})))
    assert 3 == len(ends)
    assert "large says so" == "".join(tokens)


def test_t12_events_v2_show_the_tiers_but_not_their_tokens():
    """`astream_events` reports tier runs and decisions, and streams the cascade alone."""
    events = asyncio.run(_collect(cascade().astream_events("hi", version="v2")))
    assert ["CascadeLLM", "small", "large"] == [
        e["name"] for e in events if e["event"] == "on_chat_model_start"
    ]
    streamed = [e for e in events if e["event"] == "on_chat_model_stream"]
    assert {"CascadeLLM"} == {e["name"] for e in streamed}
    assert "large says so" == "".join(e["data"]["chunk"].text for e in streamed)
    assert "cascade_decision" in {e["name"] for e in events if e["event"] == "on_custom_event"}


@beta
def test_t13_v3_streaming_keeps_every_logprob():
    """An async agent streamed with v3 gives the policy one logprob per output token."""
    seen: list[int] = []

    def counts(answer: Answer) -> bool:
        seen.append(len(answer.tokens or ()))
        return False

    counts.reads = frozenset({"logprobs"})  # type: ignore[attr-defined]
    small = chat_openai(OpenAIFake("one two three four five"), logprobs=True)
    agent = create_agent(CascadeLLM([small, fakes()[1]], counts), tools=[])

    async def drain() -> None:
        stream = await agent.astream_events(ASKED, version="v3")
        async for _ in stream:
            pass

    asyncio.run(drain())
    assert [5] == seen


def test_t13_truncated_logprobs_are_missing():
    """A message with one logprob for five tokens is scored as missing, never as confident."""
    item = {"token": " five", "logprob": -0.01, "top_logprobs": []}
    message = AIMessage(
        "one two three four five",
        response_metadata={"logprobs": {"content": [item]}},
        usage_metadata={"input_tokens": 1, "output_tokens": 5, "total_tokens": 6},
    )
    assert answer_of(message).tokens is None


@pytest.mark.parametrize("logprob", [-0.1, -2.0])
@pytest.mark.parametrize("path", PATHS)
def test_t14_every_stream_consumer_gets_the_accepted_text(path, logprob):
    """Chunk sums and output parsers never hold draft text beside the final one."""
    expected = "small says so" if logprob > -1 else "large says so"
    chain = cascade(logprob=logprob) | StrOutputParser()
    assert expected == PATHS[path](chain, "hi", {})


@pytest.mark.parametrize("mode", ["values", "updates", "messages"])
def test_t14_agent_state_is_the_same_streamed_or_not(mode):
    """The agent's final state after `stream` equals the state after `invoke`."""
    once = _agent().invoke(ASKED)["messages"]
    agent = _agent()
    streamed: list[Any] = []
    for kind, data in agent.stream(ASKED, stream_mode=[mode, "values"]):
        if kind == "values":
            streamed = data["messages"]
    assert [m.content for m in once] == [m.content for m in streamed]
    made = [[c["args"] for c in getattr(m, "tool_calls", [])] for m in once]
    assert made == [[c["args"] for c in getattr(m, "tool_calls", [])] for m in streamed]


@pytest.mark.parametrize("path", ["invoke", "ainvoke", "stream", "astream"])
def test_t16_the_messages_id_is_the_cascade_runs(path):
    """The returned id contains the cascade's run id and no tier's."""
    seen = Recording()
    message = PATHS[path](cascade(), "hi", {"callbacks": [seen]})
    assert str(seen.named("CascadeLLM")[0].run_id) in message.id
    for tier in seen.models[1:]:
        assert str(tier.run_id) not in message.id


def test_t16_a_provider_id_does_not_survive():
    """The provider's own message id is replaced, also when the last tier streams live."""
    small = chat_openai(OpenAIFake("draft", logprob=-3.0))
    large = chat_openai(OpenAIFake("final answer"), model="gpt-large")
    llm = CascadeLLM([small, large], CHOW)
    assert llm.invoke("hi").id.startswith("lc_run--")
    assert all(chunk.id.startswith("lc_run--") for chunk in llm.stream("hi"))


def test_the_last_tier_streams_live():
    """Chunks of the last tier leave before its answer is complete."""
    large = FakeModel("a b c d", name="large")
    llm = CascadeLLM([fakes()[0], large], CHOW)
    stream = llm.stream("hi")
    assert "a" == next(stream).text
    stream.close()
    assert 1 == large.closed


def test_an_accepted_draft_is_replayed_in_chunks():
    """An accepted draft leaves in several chunks that join to the draft."""
    chunks = list(cascade(logprob=-0.1).stream("hi"))
    assert ["small", " says", " so", ""] == [chunk.text for chunk in chunks]
    assert "last" == chunks[-1].chunk_position


class _Breaking(FakeModel):
    def stream(self, messages: Any, **kwargs: Any) -> Any:
        pieces = super().stream(messages, **kwargs)
        yield next(pieces)
        raise ConnectionError("the line broke")


def test_a_stream_that_breaks_after_text_was_shown_raises():
    """After the first chunk nothing is asked again; the error reaches the caller."""
    large = _Breaking("a b c", name="large")
    llm = CascadeLLM([fakes()[0], large], CHOW, on_exhausted="best")
    stream = llm.stream("hi")
    assert "a" == next(stream).text
    with pytest.raises(ConnectionError, match="the line broke"):
        next(stream)


def test_openai_chunks_sum_to_the_message():
    """A live OpenAI stream sums to the message of `invoke`, tool calls included."""
    large = chat_openai(OpenAIFake(tool_call=("add", {"a": 1, "b": 2})))
    llm = CascadeLLM([fakes()[0], large], CHOW).bind_tools([add])
    whole, once = added(list(llm.stream("hi"))), llm.invoke("hi")
    assert once.tool_calls == whole.tool_calls
    assert once.usage_metadata == whole.usage_metadata
    assert once.response_metadata["model_name"] == whole.response_metadata["model_name"]


def test_reasoning_streams_apart_from_text():
    """A local model's reasoning block stays out of the text, whole and streamed."""
    thinking = FakeModel(Answer("42", reasoning="let me see", finish_reason="stop"), name="r1")
    llm = CascadeLLM([fakes()[0], LocalChatModel(thinking)], CHOW)
    message = llm.invoke("hi")
    assert ("42", "let me see") == (message.text, message.additional_kwargs["reasoning_content"])


@beta
def test_v2_events_hold_drafts_only_where_a_tiers_run_ends() -> None:
    """What is streamed is accepted; the end of a tier's own run, tagged as one, has its draft."""
    events = asyncio.run(_collect(cascade().astream_events("hi", version="v2")))
    told = [event for event in events if "small says so" in str(event["data"])]
    assert told
    assert all("cascade:tier:0" in event["tags"] or "decision" in event["name"] for event in told)
    assert not [event for event in told if event["event"].endswith("_stream")]
