"""LangChain programs that are cancelled at every single step of the event loop.

Handlers and models wait for the loop alone, so each step is the same in every run: no clock
decides what has happened when the cancellation comes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langsmith import Client, tracing_context

from cascadellm import Record, record_cascade
from cascadellm.testing import FakeModel
from langchain_cascade import CascadeLLM, flow
from langchain_cascade.calls import BOX
from langchain_cascade.guard import OuterTracer
from langchain_cascade.tracing import Outer
from tests.dropin.watching import total
from tests.langchain.lc_tools import CHOW
from tests.servers.langsmith_server import LangSmithServer, Node

pytestmark = [
    pytest.mark.dropin,
    pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"),
    pytest.mark.filterwarnings("ignore:The v3 streaming protocol"),
]

ANSWER = "Paris it certainly is."
QUESTION: Any = {"messages": [("user", "Where?")]}
PROMPT = ChatPromptTemplate.from_template("{q}")
MOST_STEPS = 1000


class Waiting(AsyncCallbackHandler):
    """Lets the loop go round twice whenever it is told something."""

    async def on_llm_new_token(self, *args: Any, **kwargs: Any) -> None:
        """Wait."""
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    on_chat_model_start = on_llm_end = on_llm_error = on_llm_new_token
    on_chain_start = on_chain_end = on_llm_new_token


async def model_astream(llm: CascadeLLM, config: Any) -> None:
    """Read the model's own stream."""
    async for _ in llm.astream("Where?", config):
        pass


async def model_ainvoke(llm: CascadeLLM, config: Any) -> None:
    """Ask the model."""
    await llm.ainvoke("Where?", config)


async def chain_astream(llm: CascadeLLM, config: Any) -> None:
    """Read a chain's stream."""
    async for _ in (PROMPT | llm | StrOutputParser()).astream({"q": "Where?"}, config):
        pass


async def agent_ainvoke(llm: CascadeLLM, config: Any) -> None:
    """Ask an agent."""
    await create_agent(llm, []).ainvoke(QUESTION, config)


async def agent_messages(llm: CascadeLLM, config: Any) -> None:
    """Read an agent's `messages` stream."""
    async for _ in create_agent(llm, []).astream(QUESTION, config, stream_mode="messages"):
        pass


async def agent_events(llm: CascadeLLM, config: Any) -> None:
    """Read an agent's v3 events."""
    async for _ in await create_agent(llm, []).astream_events(QUESTION, config, version="v3"):
        pass


Program = Callable[[CascadeLLM, Any], Coroutine[Any, Any, None]]
PROGRAMS: list[Program] = [
    model_astream,
    model_ainvoke,
    chain_astream,
    agent_ainvoke,
    agent_messages,
    agent_events,
]


@dataclass
class Step:
    """A program that was cancelled after some rounds of the loop.

    Attributes:
        asked: Calls of tiers.
        whole: Whether the program had ended by then.
        records: What was recorded.
        complaints: What the loop complained about.
        nodes: The runs that LangSmith was sent.
    """

    asked: int
    whole: bool
    records: list[Record]
    complaints: list[str] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)


def cancelled(program: Program, rounds: int, again: int | None, client: Client) -> Step:
    """Cancel a program after some rounds of the loop, and once more where `again` says so."""
    small = FakeModel("Zebra zonk.", name="small", logprob=-2.0)
    large = FakeModel(ANSWER, name="large")
    llm = CascadeLLM([small, large], CHOW)
    config: Any = {"callbacks": [Waiting()], "metadata": {"step": rounds}}
    told: list[str] = []

    async def go() -> bool:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(str(context["message"])))
        task = asyncio.create_task(program(llm, config))
        for _ in range(rounds):
            await asyncio.sleep(0)
        whole = task.done()
        task.cancel()
        if again is not None:
            for _ in range(again):
                await asyncio.sleep(0)
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        for _ in range(50):
            # what LangChain leaves to the loop is closed in a few rounds
            await asyncio.sleep(0)
        return whole

    with record_cascade() as recorder, tracing_context(client=client, enabled=True):
        whole = asyncio.run(go())
    return Step(len(small.calls) + len(large.calls), whole, recorder.records, told)


def steps(program: Program, again: int | None = None) -> Iterator[tuple[int, Step, set[str]]]:
    """Yield (rounds, step, ids of ended runs) for every step of a program."""
    done: list[Step] = []
    with LangSmithServer(zstd=False) as server:
        client = Client(api_url=server.url, api_key="ls-none")
        while len(done) < MOST_STEPS and not (done and done[-1].whole):
            done.append(cancelled(program, len(done), again, client))
        client.flush()
        client.cleanup()
        for root in server.trees():
            for node in root.all():
                if "step" in node.metadata:
                    done[node.metadata["step"]].nodes.append(node)
        ended = server.ended
    assert done[-1].whole, "the program has more steps than the test takes"
    assert len(done) > 50, "the program has too few steps to be cancelled at"
    yield from ((rounds, step, ended) for rounds, step in enumerate(done))


def faults(step: Step, ended: set[str]) -> list[str]:
    """Return what is wrong with what a cancelled program left behind."""
    found = [f"the loop complains: {one}" for one in step.complaints]
    # a call may be left before its first tier hears of it
    if len(step.records) > 1 or (step.asked and not step.records):
        found.append(f"{len(step.records)} records of {step.asked} calls of tiers")
    outer = [node for node in step.nodes if node.name == "CascadeLLM"]
    below = [node for one in outer for node in one.all()]
    found += [f"{one.name} has no end" for one in below if one.run["id"] not in ended]
    if not step.records or len(outer) != 1:
        return found + [f"{len(outer)} cascades are traced"] * (
            bool(step.records) or len(outer) > 1
        )
    (record,), (run,) = step.records, outer
    answered = run.metadata.get("cascade_answered_by")
    if answered != record.trace.answered_by:
        found.append(f"answered by {answered} or by {record.trace.answered_by}?")
    if record.trace.abandoned != ("cascade:abandoned" in run.tags):
        found.append(f"left or not? tags {run.tags}")
    if run.run.get("error"):
        found.append(f"called a failure: {run.run['error'][:80]}")
    wanted, traced = total(step.records), run.total_tokens
    # a tier that had answered, whose handlers were still being told: only its run knows its usage
    unheard = record.trace.attempts[-1].output_tokens is None and wanted < traced
    if wanted != traced and not unheard:
        found.append(f"LangSmith says {traced} tokens, the record says {wanted}")
    return found


def all_faults(program: Program, again: int | None = None) -> list[str]:
    """Return what is wrong at any step of a program."""
    found = [(rounds, faults(step, ended)) for rounds, step, ended in steps(program, again)]
    return [f"after {rounds} rounds: {fault}" for rounds, some in found for fault in some]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_may_be_cancelled_at_any_step(program: Program) -> None:
    """Record and LangSmith tell the same of a cancelled call, whenever the cancellation comes."""
    assert [] == all_faults(program)


@pytest.mark.parametrize("again", [1, 3])
@pytest.mark.parametrize("program", [model_astream, model_ainvoke, agent_messages])
def test_a_program_may_be_cancelled_again_while_it_closes(program: Program, again: int) -> None:
    """A second cancellation cuts the closing short, not the record nor the marks."""
    assert [] == all_faults(program, again)


@pytest.mark.parametrize("program", [model_astream, agent_messages])
def test_an_end_that_waits_for_no_mark_is_noticed(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LangChain ends a run before its stream is closed: without waiting, marks are lost."""
    monkeypatch.setattr(OuterTracer, "hold", lambda *_: None)
    monkeypatch.setattr(flow.CascadeFlow, "_agenerate_with_cache", _unclosed)
    assert "answered by None or by large?" in str(all_faults(program))


def test_a_run_that_nobody_ends_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """LangChain leaves runs open whose handlers were being told when the call was cancelled."""
    monkeypatch.setattr(Outer, "end_open", lambda *_: None)
    assert "CascadeLLM has no end" in str(all_faults(model_ainvoke))


async def _unclosed(
    self: Any, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
) -> Any:
    kwargs[BOX] = self._box_at(kwargs, run_manager)
    answer = super(flow.CascadeFlow, self)._agenerate_with_cache
    try:
        return await answer(messages, stop, run_manager, **kwargs)
    except asyncio.CancelledError as gone:
        await run_manager.on_llm_error(gone)
        raise
