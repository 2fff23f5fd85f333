"""Faults inside LlamaIndex programs: the record stays true and the next call works."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.program import LLMTextCompletionProgram
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RouterQueryEngine
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import FunctionTool, QueryEngineTool
from llama_index.core.workflow import Context

from cascadellm import ToolCall
from cascadellm.testing import FakeModel
from llamaindex_cascade import CascadeLLM, Valid
from tests.dropin import li_programs as programs
from tests.dropin.li_watch import Seen, Watch, problems, run_everywhere, strings
from tests.dropin.watching import settled, was_asked
from tests.llamaindex.li_support import CHOW, run, user

pytestmark = [
    pytest.mark.dropin,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

INDEX = programs.index_of(["Paris is the capital of France.", "Ada works as a baker."])
DRAFT = "Zebra zonk quagga."
ANSWER = "Paris it certainly is, as everyone knows."
PERSON = {"name": "Ada", "age": 41, "home": "Orla"}
GOOD = ToolCall("Person", PERSON)
BAD = ToolCall("Person", {"name": "zebra", "age": "quagga"})


@pytest.fixture(autouse=True)
def loop() -> Iterator[None]:
    """Close the event loop that upstream's `asyncio_run` would make and leave open."""
    made = asyncio.new_event_loop()
    asyncio.set_event_loop(made)
    yield
    asyncio.set_event_loop(None)
    made.close()


def doubted(answer: Any = ANSWER, **options: Any) -> tuple[CascadeLLM, FakeModel, FakeModel]:
    """Return a cascade whose small tier is unsure of everything."""
    small = FakeModel(DRAFT, name="small", logprob=-2.0)
    large = FakeModel(answer, name="large", **options)
    return CascadeLLM([small, large], CHOW), small, large


def next_call_works(llm: CascadeLLM, text: str = ANSWER) -> None:
    """Assert that a later call answers and leaves a whole record of its own."""
    with Watch(llm) as watch:
        response = llm.chat(user("again"))
    assert text == response.message.content
    assert [] == problems(watch, Seen(text, state=response.message))
    assert ["large"] == [r.trace.answered_by for r in watch.records]


# -- a tool that raises --


def refuses(a: int) -> int:
    """Take a number."""
    raise ValueError(f"no luck with {a}")


def test_a_tool_that_raises_is_told_to_the_agent() -> None:
    """The agent goes on with the tool's error, alike in every way; no record names it."""

    def large(messages: Any) -> Any:
        results = [m for m in messages if m["role"] == "tool"]
        if not results:
            return ToolCall("refuses", {"a": 3}, id="call_1")
        assert "no luck with 3" in str(results[-1])
        return ANSWER

    tool = FunctionTool.from_defaults(refuses)
    program = programs.agents("function", [tool], "Try three.")
    text, found = run_everywhere(program.ways, lambda: doubted(large)[0])
    assert ANSWER == text
    assert ["large", "large"] == [name for name, *_ in found]
    assert {"score", "last"} == {code for _, attempts, _ in found for _, _, code, *_ in attempts}


# -- a parser that fails --


@pytest.mark.parametrize("way", ["sync", "async_", "stream", "astream"])
def test_an_object_that_no_tier_can_give_is_an_error_once(way: str) -> None:
    """The last tier's unusable object raises or ends the stream; the next prediction works."""
    tiers = [FakeModel(BAD, name="small"), FakeModel([BAD, GOOD], name="large")]
    llm = CascadeLLM(tiers, Valid())
    go = programs.structured(programs.Person, "Ada").ways[way]
    with Watch(llm) as watch, contextlib.suppress(ValueError):
        go(llm)
        # a stream has shown partial objects by then, as upstream's does
        assert "stream" in way
    (record,) = watch.records
    assert ["invalid", "last"] == [a.code for a in record.trace.attempts]
    assert "large" == record.trace.answered_by
    assert [] == problems(watch, Seen(""))
    with Watch(llm) as watch:
        (seen,) = go(llm)
    assert '"Orla"' in seen.text
    assert [] == problems(watch, seen)


def test_a_text_program_that_no_tier_can_satisfy_raises_once() -> None:
    """`LLMTextCompletionProgram` raises for an unreadable answer; the next call works."""
    llm, _, _ = doubted(["no object at all", '{"name": "Ada", "age": 41, "home": "Orla"}'])
    program = LLMTextCompletionProgram.from_defaults(
        output_cls=programs.Person, prompt=PromptTemplate("Who?"), llm=llm
    )
    with Watch(llm) as watch:
        with pytest.raises(ValueError, match="Could not extract"):
            program()
        assert PERSON == program().model_dump()
    assert ["large", "large"] == [r.trace.answered_by for r in watch.records]
    assert [] == problems(watch, Seen(""))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_selector_that_nobody_can_serve_raises_once(asynchronous: bool) -> None:
    """A router whose choice stays unreadable raises; asked again it answers."""
    replies = ["the first one", '[{"choice": 1, "reason": "x"}]', ANSWER]
    llm, _, _ = doubted(replies)
    tool = QueryEngineTool.from_defaults(
        INDEX.as_query_engine(llm=llm), name="facts", description="facts"
    )
    engine = RouterQueryEngine(LLMSingleSelector.from_defaults(llm=llm), [tool], llm=llm)

    def ask() -> str:
        return str(run(engine.aquery("Where?")) if asynchronous else engine.query("Where?"))

    with Watch(llm) as watch:
        with pytest.raises(Exception, match="Failed to convert"):
            ask()
        assert ANSWER == ask()
    assert ["large"] * 3 == [r.trace.answered_by for r in watch.records]
    assert "Usable" == watch.records[0].trace.attempts[0].policy
    assert [] == problems(watch, Seen(ANSWER))


# -- a cancelled agent step --


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("slow", ["small", "large"])
def test_a_cancelled_agent_step_leaves_nothing_behind(slow: str, streaming: bool) -> None:
    """The call is recorded as left, memory holds no draft, no task runs on, the next run works."""
    delays = {"small": 0.0, "large": 0.0, slow: 30.0}
    small = FakeModel(DRAFT, name="small", logprob=-2.0, delay_s=delays["small"])
    large = FakeModel(ANSWER, name="large", delay_s=delays["large"])
    llm = CascadeLLM([small, large], CHOW)
    agent = FunctionAgent(tools=[refuses], llm=llm, streaming=streaming)
    shown: list[str] = []

    async def interrupted() -> Any:
        context = Context(agent)
        handler = agent.run("Hello?", ctx=context)

        async def listen() -> None:
            async for event in handler.stream_events():
                shown.extend(strings(event))

        listener = asyncio.create_task(listen())
        await was_asked(small if slow == "small" else large)
        await handler.cancel_run()
        with contextlib.suppress(Exception):
            await handler
        await asyncio.wait_for(listener, 5)
        await settled()
        memory = await context.store.get("memory", default=None)
        return await memory.aget_all() if memory is not None else []

    with Watch(llm) as watch:
        kept = run(interrupted())
    assert [True] == [record.trace.abandoned for record in watch.records]
    assert ANSWER not in [record.output for record in watch.records]
    assert not [text for text in [*shown, *strings(kept)] if "zonk" in text]
    count = len(small.calls) + len(large.calls)
    time.sleep(0.05)
    assert count == len(small.calls) + len(large.calls)
    small.delay_s = large.delay_s = 0.0

    async def again() -> Any:
        return await agent.run("Hello?")

    with Watch(llm) as watch:
        assert ANSWER == run(again()).response.content
    assert [] == problems(watch, Seen(ANSWER))
    assert ["large"] == [r.trace.answered_by for r in watch.records]


# -- a stream that is abandoned half way --


def abandon_query(llm: CascadeLLM) -> list[str]:
    """Read two tokens of a query engine's stream."""
    stream = INDEX.as_query_engine(llm=llm, streaming=True).query("Where?").response_gen
    read = [next(stream), next(stream)]
    stream.close()
    return read


def abandon_aquery(llm: CascadeLLM) -> list[str]:
    """Read two tokens of a query engine's async stream."""

    async def go() -> list[str]:
        engine = INDEX.as_query_engine(llm=llm, streaming=True)
        stream = (await engine.aquery("Where?")).async_response_gen()
        read = [await anext(stream), await anext(stream)]
        await stream.aclose()
        # the engine leaves the LLM's own stream to the event loop, which closes it when it can
        await settled()
        return read

    return list(run(go()))


def abandon_chat(llm: CascadeLLM) -> list[str]:
    """Read two chunks of the LLM's own stream."""
    stream = llm.stream_chat(user())
    read = [next(stream).delta or "", next(stream).delta or ""]
    stream.close()
    return read


def abandon_object(llm: CascadeLLM) -> list[str]:
    """Read one growing object."""
    stream = llm.stream_structured_predict(programs.Person, PromptTemplate("Who?"))
    next(stream)
    stream.close()
    return []


@pytest.mark.parametrize("abandon", [abandon_query, abandon_aquery, abandon_chat, abandon_object])
def test_an_abandoned_stream_stops_its_tier(abandon: Any) -> None:
    """The tier is closed, the record says how far it came and at what cost, the next call works."""
    llm, _, large = doubted()
    with Watch(llm) as watch:
        read = abandon(llm)
        started = time.monotonic()
        while not large.closed and time.monotonic() < started + 5:
            time.sleep(0.01)
    assert 1 == large.closed
    text = "".join(read)
    assert ANSWER.startswith(text)
    (record,) = watch.records
    assert record.trace.abandoned
    assert ["escalate", "stopped"] == [attempt.action for attempt in record.trace.attempts]
    assert ANSWER.startswith(record.output)
    assert ANSWER != record.output
    # upstream's query span ends with its stream only
    lost = "spans without their parent"
    assert [] == [one for one in problems(watch, Seen(text, read)) if not one.startswith(lost)]
    next_call_works(llm)
