"""Faults inside LangChain programs: the record stays true and the next call works."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ToolErrorMiddleware
from langchain_core.exceptions import OutputParserException
from langchain_core.output_parsers import PydanticOutputParser, StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from cascadellm import ToolCall
from cascadellm.testing import FakeModel
from langchain_cascade import CascadeLLM, Valid, flow, streams
from langchain_cascade.middleware import CascadeMiddleware
from tests.dropin import lc_agents as agents
from tests.dropin import lc_programs as programs
from tests.dropin.lc_watch import Bare, Seen, Watch, problems, run_everywhere, strings
from tests.dropin.watching import settled, was_asked
from tests.langchain.lc_tools import CHOW

pytestmark = [
    pytest.mark.dropin,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"),
]

DRAFT = "Zebra zonk quagga."
ANSWER = "Paris it certainly is, as everyone knows."
PERSON = {"age": 41, "home": "Orla", "name": "Ada"}
GOOD = ToolCall("Person", PERSON)
BAD = ToolCall("Person", {"name": "zebra", "age": "quagga"})
PROMPT = ChatPromptTemplate.from_template("{q}")


def doubted(answer: Any = ANSWER, **options: Any) -> tuple[CascadeLLM, FakeModel, FakeModel]:
    """Return a cascade whose small tier is unsure of everything."""
    small = FakeModel(DRAFT, name="small", logprob=-2.0)
    large = FakeModel(answer, name="large", **options)
    return CascadeLLM([small, large], CHOW), small, large


def next_call_works(llm: CascadeLLM, text: str = ANSWER) -> None:
    """Assert that a later call answers and leaves a whole record of its own."""
    with Watch(llm) as watch:
        message = llm.invoke("again")
    assert text == message.text
    assert [] == problems(watch, Seen(text, state=message))
    assert ["large"] == [r.trace.answered_by for r in watch.records]


# -- a tool that raises --


@tool
def refuses(a: int) -> int:
    """Take a number."""
    raise ValueError(f"no luck with {a}")


def tries(messages: Any) -> Any:
    """Call the tool; answer once its error came back."""
    told = [m for m in messages if m["role"] == "tool"]
    if not told:
        return ToolCall("refuses", {"a": 3}, id="call_1")
    assert "no luck with 3" in str(told[-1])
    return ANSWER


def test_a_tool_whose_error_is_told_to_the_agent() -> None:
    """The agent goes on with the tool's error, alike in every way; no record names it."""
    program = agents.agent(
        "refuses", [refuses], "Try three.", lambda llm: [ToolErrorMiddleware(lambda e, _: str(e))]
    )
    text, found = run_everywhere(program.ways, lambda: doubted(tries)[0], never=("zebra",))
    assert ANSWER == text
    assert ["large", "large"] == [name for name, *_ in found]
    assert {"score", "last"} == {code for _, attempts, _ in found for _, _, code, *_ in attempts}


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream messages", "events v3", "aevents v3"])
def test_a_tool_that_breaks_the_agent_leaves_its_calls_whole(way: str) -> None:
    """The tool's own error reaches the caller; what was asked before it is recorded and traced."""
    llm, _, _ = doubted(tries)
    program = agents.agent("breaks", [refuses], "Try three.")
    with Watch(llm) as watch, pytest.raises(ValueError, match="no luck with 3"):
        program.ways[way](llm)
    assert ["large"] == [r.trace.answered_by for r in watch.records]
    assert [] == problems(watch, Seen(""))
    llm.engine.tiers[1].model.model.reply = ANSWER
    next_call_works(llm)


def test_a_thread_goes_on_after_a_tool_that_broke_it() -> None:
    """From the checkpoint before the tool the same thread answers, with no step asked twice."""
    broken = [True]

    @tool
    def sometimes(a: int) -> int:
        """Take a number."""
        if broken[0]:
            raise ValueError("no luck")
        return a

    def reply(messages: Any) -> Any:
        done = any(m["role"] == "tool" for m in messages)
        return ANSWER if done else ToolCall("sometimes", {"a": 3}, id="call_1")

    llm, small, large = doubted(reply)
    agent = create_agent(
        llm, [sometimes], checkpointer=InMemorySaver(), middleware=[CascadeMiddleware()]
    )
    thread: Any = {"configurable": {"thread_id": "t"}}
    with pytest.raises(ValueError, match="no luck"):
        agent.invoke({"messages": [("user", "Three?")]}, thread)
    broken.clear()
    broken.append(False)
    with Watch(llm) as watch:
        state = agent.invoke(None, thread)
    assert ANSWER == state["messages"][-1].text
    assert 1 == len(small.calls)
    assert 2 == len(large.calls) == len(state["cascade_trail"])
    assert [] == problems(watch, Seen(ANSWER, state=state))


# -- a parser that fails --


def structured(llm: Any) -> Any:
    """Ask for an object by a tool call."""
    return llm.with_structured_output(programs.Person)


def written(llm: Any) -> Any:
    """Ask for an object as text."""
    return llm | PydanticOutputParser(pydantic_object=programs.Person)


CALLS: dict[str, Callable[[Any], Any]] = {
    "invoke": lambda chain: chain.invoke("Ada"),
    "ainvoke": lambda chain: asyncio.run(chain.ainvoke("Ada")),
    "batch": lambda chain: chain.batch(["Ada"])[0],
}


@pytest.mark.parametrize("way", CALLS)
def test_an_object_that_no_tier_can_give_is_an_error_once(way: str) -> None:
    """The parser's own error is raised; the record says who answered; the next one is read."""
    llm = CascadeLLM([FakeModel(BAD, name="small"), FakeModel([BAD, GOOD], name="large")], Valid())
    with Watch(llm) as watch, pytest.raises(Exception, match="validation error"):
        CALLS[way](structured(llm))
    (record,) = watch.records
    assert ["invalid", "last"] == [a.code for a in record.trace.attempts]
    assert "large" == record.trace.answered_by
    assert [] == problems(watch, Seen(""))
    with Watch(llm) as watch:
        person = CALLS[way](structured(llm))
    assert PERSON == person.model_dump()
    assert [] == problems(watch, Seen("", state=person))


@pytest.mark.parametrize("way", CALLS)
def test_a_text_that_no_parser_can_read_raises_once(way: str) -> None:
    """An output parser's error is the program's; the next call is read."""
    llm, _, _ = doubted(["no object at all", '{"name": "Ada", "age": 41, "home": "Orla"}'])
    with Watch(llm) as watch:
        with pytest.raises(OutputParserException, match="Invalid json output"):
            CALLS[way](written(llm))
        assert PERSON == CALLS[way](written(llm)).model_dump()
    assert ["large", "large"] == [r.trace.answered_by for r in watch.records]
    assert [] == problems(watch, Seen(""))


def test_include_raw_gives_the_error_beside_the_message() -> None:
    """With `include_raw` nothing is raised: the message, its record and the error are returned."""
    llm = CascadeLLM([FakeModel(BAD, name="small"), FakeModel(BAD, name="large")], Valid())
    given: Any = llm.with_structured_output(programs.Person, include_raw=True).invoke("Ada")
    assert given["parsed"] is None
    assert "validation error" in str(given["parsing_error"])
    record = given["raw"].response_metadata["cascade"]
    assert ["invalid", "last"] == [attempt["code"] for attempt in record["attempts"]]


def test_an_agent_is_told_what_is_wrong_with_its_object() -> None:
    """`ToolStrategy` asks again; both calls are recorded, and the second object is the answer."""
    llm = CascadeLLM([FakeModel(BAD, name="small"), FakeModel([BAD, GOOD], name="large")], Valid())
    program = agents.agent("asks-again", [], "Ada?", response_format=programs.Person)
    with Watch(llm) as watch:
        (seen,) = program.ways["invoke"](llm)
    assert '"Orla"' in seen.text
    assert ["large", "large"] == [r.trace.answered_by for r in watch.records]
    # the object that was sent back stands in the history: it was the last tier's accepted answer
    assert [] == problems(watch, Seen(seen.text))


# -- a cancelled agent step --


@pytest.mark.parametrize("how", ["ainvoke", "messages", "events v3"])
@pytest.mark.parametrize("slow", ["small", "large"])
def test_a_cancelled_agent_step_leaves_nothing_behind(slow: str, how: str) -> None:
    """The call is recorded as left, the checkpoint holds no draft, the thread goes on."""
    delays = {"small": 0.0, "large": 0.0, slow: 30.0}
    small = FakeModel(DRAFT, name="small", logprob=-2.0, delay_s=delays["small"])
    large = FakeModel(ANSWER, name="large", delay_s=delays["large"])
    llm = CascadeLLM([small, large], CHOW)
    agent = create_agent(
        llm, [refuses], checkpointer=InMemorySaver(), middleware=[CascadeMiddleware()]
    )
    thread: Any = {"configurable": {"thread_id": "t"}}
    shown: list[Any] = []

    async def run() -> None:
        question: Any = {"messages": [("user", "Hello?")]}
        if how == "ainvoke":
            await agent.ainvoke(question, thread)
        elif how == "messages":
            async for piece in agent.astream(question, thread, stream_mode="messages"):
                shown.append(piece)
        else:
            async for event in await agent.astream_events(question, thread, version="v3"):
                shown.append(event)

    async def interrupted() -> None:
        task = asyncio.create_task(run())
        await was_asked(small if slow == "small" else large)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await settled()

    with Watch(llm) as watch:
        asyncio.run(interrupted())
    assert [True] == [record.trace.abandoned for record in watch.records]
    assert ANSWER not in [record.output for record in watch.records]
    # LangChain's own counter does not see a run that was not finished
    lost = "the usage callback says"
    found = problems(watch, Seen("", state=shown))
    assert [] == [one for one in found if not one.startswith(lost)]
    kept = agent.get_state(thread).values
    assert not [text for text in strings([shown, kept]) if "zonk" in text]
    assert "cascade_trail" not in kept or not kept["cascade_trail"]
    count = len(small.calls) + len(large.calls)
    time.sleep(0.05)
    assert count == len(small.calls) + len(large.calls)
    small.delay_s = large.delay_s = 0.0

    async def again() -> Any:
        return await agent.ainvoke({"messages": [("user", "Hello again?")]}, thread)

    with Watch(llm) as watch:
        state = asyncio.run(again())
    assert ANSWER == state["messages"][-1].text
    assert 1 == len(state["cascade_trail"])
    assert [] == problems(watch, Seen(ANSWER, state=state))


# -- a stream that is abandoned half way --


def abandon_achain(llm: CascadeLLM) -> list[str]:
    """Read two pieces of a chain's async stream."""

    async def go() -> list[str]:
        stream: Any = (PROMPT | llm | StrOutputParser()).astream({"q": "Where?"})
        read = [await anext(stream), await anext(stream), await anext(stream)]
        await stream.aclose()
        # LangChain leaves the closing of what was read to the loop
        await settled()
        return [piece for piece in read if piece]

    return asyncio.run(go())


def abandon_model(llm: CascadeLLM) -> list[str]:
    """Read two chunks of the model's own stream."""
    stream: Any = llm.stream("Where?")
    read = [next(stream).text, next(stream).text]
    stream.close()
    return read


def abandon_graph(llm: CascadeLLM) -> list[str]:
    """Read two chunks of an agent's `messages` stream, async."""

    async def go() -> list[str]:
        agent = create_agent(llm, [])
        stream: Any = agent.astream({"messages": [("user", "Where?")]}, stream_mode="messages")
        read = [(await anext(stream))[0].text, (await anext(stream))[0].text]
        await stream.aclose()
        # LangGraph leaves the closing of what was read to the loop
        await settled()
        return read

    return asyncio.run(go())


@pytest.mark.parametrize("abandon", [abandon_achain, abandon_model, abandon_graph])
def test_an_abandoned_stream_stops_its_tier(abandon: Any) -> None:
    """The tier is closed, the record says how far it came and at what cost, the next call works."""
    llm, _, large = doubted(delay_s=0.02)
    with Watch(llm) as watch:
        read = abandon(llm)
        started = time.monotonic()
        while not large.closed and time.monotonic() < started + 5:
            time.sleep(0.01)
    assert 1 == large.closed
    text = "".join(read)
    assert text
    assert ANSWER.startswith(text)
    (record,) = watch.records
    assert record.trace.abandoned
    assert ["escalate", "stopped"] == [attempt.action for attempt in record.trace.attempts]
    assert ANSWER.startswith(record.output)
    assert ANSWER != record.output
    # LangChain's own counter does not see a run that was not finished
    lost = "the usage callback says"
    assert [] == [one for one in problems(watch, Seen(text, read)) if not one.startswith(lost)]
    large.delay_s = 0.0
    next_call_works(llm)


def left_at_once(llm: CascadeLLM) -> list[str]:
    """Leave an async chain and end its loop; return what the loop complains about."""
    told: list[str] = []

    async def go() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(str(context["message"])))
        stream: Any = (PROMPT | llm | StrOutputParser()).astream({"q": "Where?"})
        for _ in range(3):
            await anext(stream)
        await stream.aclose()

    asyncio.run(go())
    return told


@pytest.mark.parametrize("listening", [Watch, Bare])
def test_a_loop_that_ends_with_an_open_stream_closes_it_quietly(listening: Any) -> None:
    """Leaving a chain as a program's last act: nothing is logged, the tier and the record end."""
    llm, _, large = doubted(delay_s=0.01)
    with listening(llm) as watch:
        assert [] == left_at_once(llm)
    assert 1 == large.closed
    (record,) = watch.records
    assert record.trace.abandoned
    # what LangSmith gets is cut short where the loop cancels what is being closed
    assert 3 <= (record.trace.attempts[-1].output_tokens or 0) < 7


def test_a_noisy_end_of_the_loop_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generators that the loop closes beside their owners are complained about (mutation)."""
    monkeypatch.setattr(flow, "Owned", lambda pieces: pieces)
    monkeypatch.setattr(streams, "Owned", lambda pieces: pieces)
    told = [line for _ in range(5) for line in left_at_once(doubted(delay_s=0.01)[0])]
    assert "an error occurred during closing of asynchronous generator" in str(told)


def test_a_sync_chain_that_is_left_reads_its_model_to_the_end() -> None:
    """LangChain does so with every model; the record is that of an answered call."""
    llm, _, large = doubted()
    with Watch(llm) as watch:
        stream: Any = (PROMPT | llm | StrOutputParser()).stream({"q": "Where?"})
        assert "Paris it" == next(stream) + next(stream)
        stream.close()
    assert 0 == large.closed
    (record,) = watch.records
    assert not record.trace.abandoned
    assert ANSWER == record.output
    assert [] == problems(watch, Seen("Paris it"))
    next_call_works(llm)


@pytest.mark.parametrize("parse", [structured, written])
def test_a_stream_of_objects_that_no_tier_can_give_ends_without_one(parse: Any) -> None:
    """LangChain's streaming parsers skip what they cannot read; the record is whole."""
    llm = CascadeLLM([FakeModel(BAD, name="small"), FakeModel("no object", name="large")], Valid())
    with Watch(llm) as watch:
        assert [] == list(parse(llm).stream("Ada"))
    assert ["large"] == [record.trace.answered_by for record in watch.records]
    assert [] == problems(watch, Seen(""))
