"""Any Runnable as a tier: async fallbacks, errors, wrappers, tools, logprobs (T17 to T25)."""

from __future__ import annotations

import asyncio
import builtins
import threading
import time
import warnings
from typing import Any

import pytest
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from pydantic import BaseModel, ValidationError

from cascadellm.answer import ToolCall
from cascadellm.testing import FakeModel
from langchain_cascade import (
    Always,
    CascadeLLM,
    ConfigurationError,
    LocalChatModel,
    MissingDependencyError,
    Never,
    Threshold,
    Tier,
    Valid,
    margin,
    mean_logprob,
    record_cascade,
)
from tests.dropin.watching import was_asked
from tests.langchain.lc_openai import OpenAIFake, chat_openai
from tests.langchain.lc_tools import CHOW, PATHS, Recording, added, fakes


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def look(name: str) -> str:
    """Look a name up."""
    return name


class SyncOnly(BaseChatModel):
    """A tier whose async methods are not implemented, as ChatHuggingFace over a pipeline."""

    threads: list[Any]

    @property
    def _llm_type(self) -> str:
        return "sync-only"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.threads.append(threading.current_thread())
        time.sleep(0.3)
        return ChatResult(generations=[ChatGeneration(message=AIMessage("sync says so"))])

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        raise NotImplementedError

    async def _astream(self, messages, stop=None, run_manager=None, **kwargs):
        raise AttributeError("no async client")
        yield


@pytest.mark.parametrize("path", ["ainvoke", "astream"])
def test_t17_a_tier_without_async_runs_in_a_thread(path):
    """A sync-only tier answers async calls, nested, in another thread."""
    seen = Recording()
    tier = SyncOnly(threads=[])
    llm = CascadeLLM([fakes()[0], tier], CHOW)
    message = PATHS[path](llm, "hi", {"callbacks": [seen]})
    assert "sync says so" == message.text
    assert threading.main_thread() not in tier.threads
    answered = [run for run in seen.named("SyncOnly") if run.error is None]
    assert answered[0].parent == seen.named("CascadeLLM")[0].run_id


def test_t17_the_loop_goes_on_meanwhile():
    """While a sync-only tier works, the event loop is not blocked."""

    async def both() -> int:
        ticks = 0
        call = asyncio.ensure_future(CascadeLLM([SyncOnly(threads=[])]).ainvoke("hi"))
        while not call.done():
            await asyncio.sleep(0.005)
            ticks += 1
        return ticks

    assert asyncio.run(both()) >= 3


def test_t18_a_tiers_exception_escalates_and_is_recorded():
    """Tier 0 raises, tier 1 answers; the record names the error's type."""

    class Point(BaseModel):
        x: int

    def refuses(_: Any) -> Any:
        return Point(x="none")

    llm = CascadeLLM([RunnableLambda(refuses), fakes()[1]], Never())
    record = llm.invoke("hi").response_metadata["cascade"]
    assert "error" == record["attempts"][0]["action"]
    assert record["attempts"][0]["error"].startswith("ValidationError")
    assert "malformed" == record["attempts"][0]["code"]
    with pytest.raises(ValidationError):
        CascadeLLM([RunnableLambda(refuses)]).invoke("hi")


def test_t18_the_last_tiers_error_keeps_its_type_and_gains_notes():
    """The last exception passes unwrapped, with notes that name both tiers."""
    llm = CascadeLLM(
        [FakeModel(TimeoutError("slow"), name="small"), chat_openai(OpenAIFake(status=429))], CHOW
    )
    import openai

    with pytest.raises(openai.RateLimitError) as caught:
        llm.invoke("hi")
    assert any("gpt-fake" in note for note in caught.value.__notes__)
    assert any("small" in note for note in caught.value.__notes__)


def test_t18_cancellation_is_not_caught():
    """A cancelled call is cancelled, not escalated."""
    small = FakeModel("never", name="small", delay_s=5.0)
    large = fakes()[1]
    llm = CascadeLLM([small, large], CHOW)

    async def cancel() -> None:
        task = asyncio.ensure_future(llm.ainvoke("hi"))
        await was_asked(small)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())
    assert not large.calls


def _wrapped(kind: str, model: FakeModel) -> Any:
    chat = LocalChatModel(model)
    return {
        "bind": lambda: chat.bind(temperature=0.5),
        "retry": lambda: chat.with_retry(stop_after_attempt=2),
        "retry-of-bind": lambda: chat.bind(temperature=0.5).with_retry(stop_after_attempt=2),
        "fallbacks": lambda: chat.with_fallbacks([LocalChatModel(fakes()[1])]),
        "chain": lambda: RunnableLambda(lambda messages: messages) | chat,
        "config": lambda: chat.with_config(tags=["mine"]),
    }[kind]()


WRAPPERS = ("bind", "retry", "retry-of-bind", "fallbacks", "chain", "config")


@pytest.mark.parametrize("path", ["invoke", "astream"])
@pytest.mark.parametrize("kind", WRAPPERS)
def test_t21_wrapped_tiers_answer(kind, path):
    """Bound, retried, wrapped and chained tiers construct, answer and are scored."""
    small = FakeModel("yes", name="small")
    llm = CascadeLLM([_wrapped(kind, small), fakes()[1]], CHOW)
    message = PATHS[path](llm, "hi", {})
    assert "yes" == message.text
    assert -0.1 == pytest.approx(message.response_metadata["cascade"]["attempts"][0]["score"])


@pytest.mark.parametrize("kind", WRAPPERS)
def test_t21_wrapped_tiers_bind_tools(kind):
    """Tools reach the model inside every wrapper, and the wrapper's own settings stay."""
    small = FakeModel(ToolCall("add", {"a": 1, "b": 2}), name="small")
    llm = CascadeLLM([_wrapped(kind, small), fakes()[1]], Valid()).bind_tools([add])
    assert "add" == llm.invoke("hi").tool_calls[0]["name"]
    arguments = small.calls[0][1]
    assert ["add"] == [one["function"]["name"] for one in arguments["tools"]]
    assert ("bind" in kind) == (arguments.get("temperature") == 0.5)


def test_t21_a_tier_without_tools_fails_at_bind_tools():
    """A tier that cannot bind tools is named when tools are bound, not at call time."""
    llm = CascadeLLM([SyncOnly(threads=[]), fakes()[1]], Never())
    with pytest.raises(ConfigurationError, match=r"SyncOnly.*cannot bind tools"):
        llm.bind_tools([add])


def test_t21_a_configurable_tier_reads_the_callers_configurable():
    """`configurable` reaches tiers that declare fields."""
    from langchain_core.runnables import ConfigurableField

    small = FakeModel("yes", name="small")
    tier = LocalChatModel(small).configurable_fields(temperature=ConfigurableField(id="heat"))
    llm = CascadeLLM([tier, fakes()[1]], Never())
    for call in ("invoke", "stream"):
        PATHS[call](llm, "hi", {"configurable": {"heat": 0.7}})
        assert 0.7 == small.calls[-1][1]["temperature"]


class ChatHuggingFace(LocalChatModel):
    """Binds tools by the rules of langchain-huggingface's class of this name."""

    seen: list[Any]

    @property
    def _llm_type(self) -> str:
        return "huggingface-chat-wrapper"

    def bind_tools(self, tools, *, tool_choice=None, **kwargs):
        if tool_choice and len(tools) != 1:
            raise ValueError("When specifying `tool_choice`, you must provide exactly one tool.")
        self.seen.append(tool_choice)
        return super().bind_tools(tools, tool_choice=tool_choice, **kwargs)


@pytest.mark.parametrize("choice", ["any", "auto", "required", "add"])
@pytest.mark.parametrize("tools", [[add], [add, look]])
def test_t22_a_tool_choice_that_hugging_face_refuses_does_not_raise(choice, tools):
    """Two tools with a choice bind; "any" never becomes a function named any."""
    tier = ChatHuggingFace(FakeModel(ToolCall("add", {"a": 1, "b": 2}), name="hf"), seen=[])
    llm = CascadeLLM([tier, fakes()[1]], Valid()).bind_tools(tools, tool_choice=choice)
    assert "add" == llm.invoke("hi").tool_calls[0]["name"]
    assert "any" not in tier.seen


def test_t23_the_responses_api_is_warned_about():
    """A scored ChatOpenAI tier that would use the Responses API is named at construction."""
    tier = chat_openai(OpenAIFake(), use_responses_api=True)
    with pytest.warns(UserWarning, match="Responses API"):
        CascadeLLM([tier, fakes()[1]], CHOW)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CascadeLLM([tier, fakes()[1]], Valid())
        CascadeLLM([fakes()[0], tier], CHOW)


def test_t24_a_local_model_gives_logprobs_usage_and_tools():
    """`LocalChatModel` answers with OpenAI-shaped logprobs, usage, names and tool calls."""
    model = LocalChatModel(FakeModel("one two", name="small", logprob=-0.5))
    message = model.invoke("hi", logprobs=True)
    items = message.response_metadata["logprobs"]["content"]
    assert [("one", -0.5), (" two", -0.5)] == [(i["token"], i["logprob"]) for i in items]
    assert 2 == message.usage_metadata["output_tokens"]
    assert "small" == message.response_metadata["model_name"]
    calling = LocalChatModel(FakeModel(ToolCall("add", {"a": 1, "b": 2})))
    assert {"a": 1, "b": 2} == calling.bind_tools([add]).invoke("hi").tool_calls[0]["args"]


def test_t25_missing_logprobs_never_count_as_confident():
    """Without logprobs the default policy defers and says why."""
    llm = CascadeLLM([FakeModel("short", name="small", logprob=None), fakes()[1]], CHOW)
    first = llm.invoke("hi").response_metadata["cascade"]["attempts"][0]
    assert ("escalate", "no_logprobs", None) == (first["action"], first["code"], first["score"])


def test_logprobs_are_asked_for_where_they_are_read():
    """A provider is asked for logprobs only at a boundary whose policy reads them."""
    scored, alternatives, judged, last = (OpenAIFake() for _ in range(4))
    tiers = [chat_openai(one, model=f"m{i}") for i, one in enumerate((scored, alternatives))]
    tiers += [chat_openai(judged, model="m2"), chat_openai(last, model="m3")]
    always = CHOW | Always()
    llm = CascadeLLM(tiers, [always, Threshold(margin, 0.5) | Always(), Always()])
    llm.invoke("hi")
    assert True is scored.bodies[0]["logprobs"]
    assert "top_logprobs" not in scored.bodies[0]
    assert 5 == alternatives.bodies[0]["top_logprobs"]
    assert "logprobs" not in judged.bodies[0]
    assert "logprobs" not in last.bodies[0]


def test_a_tier_object_is_the_same_after_a_call():
    """No call changes a tier's model."""
    tier = chat_openai(OpenAIFake("draft", logprob=-3.0))
    before = tier.model_dump()
    CascadeLLM([tier, fakes()[1]], CHOW).invoke("hi")
    assert before == tier.model_dump()


def test_per_tier_arguments_reach_that_tier_alone():
    """`Tier(kwargs=...)` is one tier's, call arguments are everyone's, `stop` included."""
    small, large = fakes()
    llm = CascadeLLM([Tier(small, name="small", kwargs={"seed": 7}), large], CHOW)
    llm.invoke("hi", stop=["END"], temperature=0.3)
    assert {"seed": 7, "temperature": 0.3, "stop": ["END"]} == small.calls[0][1]
    assert {"temperature": 0.3, "stop": ["END"]} == large.calls[0][1]


@pytest.mark.parametrize("path", PATHS)
def test_stop_reaches_every_tier_on_every_path(path):
    """The constructor's `stop` reaches draft and last tier, also in streams."""
    small, large = fakes()
    PATHS[path](CascadeLLM([small, large], CHOW, stop=["END"]), "hi", {})
    assert ["END"] == small.calls[0][1]["stop"] == large.calls[0][1]["stop"]


def test_a_tier_that_times_out_is_escalated_past():
    """`timeout_s` ends a slow tier in sync, async and streamed calls."""
    slow = Tier(FakeModel("late", delay_s=0.5), name="slow", timeout_s=0.02)
    for path in ("invoke", "ainvoke", "stream", "astream"):
        record = PATHS[path](CascadeLLM([slow, fakes()[1]], CHOW), "hi", {})
        first = record.response_metadata["cascade"]["attempts"][0]
        assert ("error", "timeout") == (first["action"], first["code"])


def test_a_live_stream_that_times_out_raises():
    """The last tier's stream ends with its time-out, sync and async."""
    slow = Tier(FakeModel("a b c d e", delay_s=0.05), name="slow", timeout_s=0.12)
    for path in ("stream", "astream"):
        with pytest.raises(TimeoutError, match="slow"):
            PATHS[path](CascadeLLM([slow]), "hi", {})


def test_retries_are_counted_once():
    """A tier with three attempts is asked until it answers, and is one attempt of the record."""
    flaky = FakeModel([ConnectionError("1"), ConnectionError("2"), "fine"], name="small")
    import tenacity

    retry = tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_none())
    llm = CascadeLLM([Tier(flaky, retry=retry), fakes()[1]], CHOW)
    record = llm.invoke("hi").response_metadata["cascade"]
    assert 3 == len(flaky.calls)
    assert ["accept"] == [attempt["action"] for attempt in record["attempts"]]


def test_text_and_chunk_outputs_are_accepted():
    """A tier may end in a parser; its text becomes the message."""
    chain = LocalChatModel(fakes()[1]) | StrOutputParser()
    llm = CascadeLLM([fakes()[0], chain], CHOW)
    assert "large says so" == llm.invoke("hi").text == added(list(llm.stream("hi"))).text
    with pytest.raises(ConfigurationError, match="must answer with a message or text"):
        CascadeLLM([RunnableLambda(lambda _: 42)]).invoke("hi")


def test_a_string_is_a_model_of_init_chat_model():
    """A string tier goes through LangChain's `init_chat_model`."""
    pytest.importorskip("langchain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "sk-none")
        llm = CascadeLLM([fakes()[0], "openai:gpt-4o-mini"], CHOW)
    assert ["small", "gpt-4o-mini"] == [tier.label for tier in llm.tiers]
    with pytest.raises(ConfigurationError, match="names no model"):
        CascadeLLM(["no-such-provider-model"])


def test_a_string_without_langchain_names_what_is_missing(monkeypatch):
    """Where `langchain` is not installed, a string tier says what to install."""
    importing = builtins.__import__

    def blocked(name: str, *rest: Any) -> Any:
        if name == "langchain.chat_models":
            raise ImportError(name)
        return importing(name, *rest)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(MissingDependencyError, match="pip install langchain"):
        CascadeLLM(["openai:gpt-4o-mini"])


def test_what_cannot_answer_is_refused():
    """A tier of no known kind is refused when the cascade is built."""
    with pytest.raises(ConfigurationError, match="a tier must be a chat model"):
        CascadeLLM([object()])
    with pytest.raises(ConfigurationError, match="tiers must be a list"):
        CascadeLLM("openai:gpt-4o-mini")


def test_every_provider_gets_its_own_tool_format():
    """Two tiers with different formats each receive the tools in their own."""
    body = OpenAIFake(tool_call=("subtract", {"a": 1, "b": 2}))
    large = FakeModel(ToolCall("add", {"a": 1, "b": 2}), name="large")
    llm = CascadeLLM([chat_openai(body), large], Valid()).bind_tools([add], strict=True)
    with record_cascade() as recorder:
        assert "add" == llm.invoke("hi").tool_calls[0]["name"]
    assert True is body.bodies[0]["tools"][0]["function"]["strict"]
    assert "strict" not in large.calls[0][1]
    assert ("escalate", "accept") == tuple(a.action for a in recorder.traces[0].attempts)


def test_tools_given_in_the_call_replace_bound_ones():
    """Tools passed at call time win over bound ones, at every tier."""
    small = FakeModel(ToolCall("look", {"name": "x"}), name="small")
    llm = CascadeLLM([small, fakes()[1]], Valid()).bind_tools([add])
    assert "look" == llm.invoke("hi", tools=[look]).tool_calls[0]["name"]


def test_a_missing_score_is_not_a_warning_for_unscored_tiers():
    """Only scored boundaries are checked for logprobs."""

    class ChatAnthropic(SyncOnly):
        pass

    with pytest.warns(UserWarning, match="no token logprobs"):
        CascadeLLM([ChatAnthropic(threads=[]), fakes()[1]], Threshold(mean_logprob, -1.0))
