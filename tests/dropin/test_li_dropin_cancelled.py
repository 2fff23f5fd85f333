"""LlamaIndex programs that are cancelled at every single step of the event loop.

Models wait for the loop alone, so each step is the same in every run: no clock decides what
has happened when the cancellation comes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent

from cascadellm import Answer, Record
from cascadellm.testing import FakeModel
from llamaindex_cascade import CascadeLLM, session
from tests.dropin import li_programs as programs
from tests.dropin.li_watch import Watch
from tests.dropin.watching import total
from tests.llamaindex.li_support import CHOW, user

pytestmark = [
    pytest.mark.dropin,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

INDEX = programs.index_of(["Paris is the capital of France.", "Ada works as a baker."])
ANSWER = "Paris it certainly is."
MOST_STEPS = 1000


class Waiting(FakeModel):
    """Lets the loop go round a few times before it answers."""

    async def agenerate(self, messages: Any, **kwargs: Any) -> Answer:
        """Answer by the rule."""
        for _ in range(3):
            await asyncio.sleep(0)
        return await super().agenerate(messages, **kwargs)


async def achat(llm: CascadeLLM) -> None:
    """Ask the LLM."""
    await llm.achat(user())


async def astream_chat(llm: CascadeLLM) -> None:
    """Read the LLM's own stream."""
    async for _ in await llm.astream_chat(user()):
        await asyncio.sleep(0)


async def aquery(llm: CascadeLLM) -> None:
    """Ask a query engine."""
    await INDEX.as_query_engine(llm=llm).aquery("Where?")


async def astream_query(llm: CascadeLLM) -> None:
    """Read a query engine's stream."""
    told: Any = await INDEX.as_query_engine(llm=llm, streaming=True).aquery("Where?")
    async for _ in told.async_response_gen():
        await asyncio.sleep(0)


async def agent(llm: CascadeLLM) -> None:
    """Run an agent that streams."""
    await FunctionAgent(tools=[], llm=llm).run("Where?")


Program = Callable[[CascadeLLM], Coroutine[Any, Any, None]]


@dataclass
class Step:
    """A program that was cancelled after some rounds of the loop.

    Attributes:
        asked: Calls of tiers.
        whole: Whether the program had ended by then.
        records: What was recorded.
        complaints: What the loop complained about.
        spans: What a tracer exported.
    """

    asked: int
    whole: bool
    records: list[Record]
    complaints: list[str] = field(default_factory=list)
    spans: list[Any] = field(default_factory=list)


def cancelled(program: Program, rounds: int, again: int | None) -> Step:
    """Cancel a program after some rounds of the loop, and once more where `again` says so."""
    small = Waiting("Zebra zonk.", name="small", logprob=-2.0)
    large = Waiting(ANSWER, name="large")
    llm = CascadeLLM([small, large], CHOW)
    told: list[str] = []

    async def go() -> bool:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(str(context["message"])))
        task = asyncio.create_task(program(llm))
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
            # what LlamaIndex leaves to the loop is closed in a few rounds
            await asyncio.sleep(0)
        return whole

    with Watch(llm) as watch:
        whole = asyncio.run(go())
    asked = len(small.calls) + len(large.calls)
    return Step(asked, whole, watch.records, told, watch.spans)


def faults(step: Step) -> list[str]:
    """Return what is wrong with what a cancelled program left behind."""
    found = [f"the loop complains: {one}" for one in step.complaints]
    # a call may be left before its first tier hears of it
    if len(step.records) > 1 or (step.asked and not step.records):
        found.append(f"{len(step.records)} records of {step.asked} calls of tiers")
    if not step.records:
        return found
    (record,) = step.records
    named = {one.attributes.get("cascade.answered_by") for one in step.spans} - {None}
    if named - {record.trace.answered_by}:
        found.append(f"answered by {named} or by {record.trace.answered_by}?")
    wanted = total(step.records)
    sides = ("llm.token_count.prompt", "llm.token_count.completion")
    traced = sum(span.attributes.get(side, 0) for span in step.spans for side in sides)
    # a tier that had answered as its caller left: only its own span knows its usage
    unheard = record.trace.attempts[-1].output_tokens is None and wanted < traced
    if wanted != traced and not unheard:
        found.append(f"the spans say {traced} tokens, the record says {wanted}")
    return found


def all_faults(program: Program, again: int | None = None) -> list[str]:
    """Return what is wrong at any step of a program."""
    found: list[str] = []
    for rounds in range(MOST_STEPS):
        step = cancelled(program, rounds, again)
        found += [f"after {rounds} rounds: {fault}" for fault in faults(step)]
        if step.whole:
            assert rounds > 3, "the program has too few steps to be cancelled at"
            return found
    raise AssertionError("the program has more steps than the test takes")


@pytest.mark.parametrize("again", [None, 1])
@pytest.mark.parametrize("program", [achat, astream_chat, aquery, astream_query, agent])
def test_a_program_may_be_cancelled_at_any_step(program: Program, again: int | None) -> None:
    """Record and spans tell the same of a cancelled call, whenever the cancellation comes."""
    assert [] == all_faults(program, again)


def test_a_cancelled_call_that_leaves_no_record_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where nobody tells the plan that its caller left, the checks find it (mutation)."""
    monkeypatch.setattr(session, "_left", lambda *_: None)
    assert "0 records of 2 calls" in str(all_faults(astream_chat))
