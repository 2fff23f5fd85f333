"""How long hedged calls take, exactly where time is virtual, and what becomes of the loser."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage

import langchain_cascade
import llamaindex_cascade
from cascadellm import Always, Cascade, Hedge, Judge, Never, Policy, Request, Tier
from cascadellm.drivers import adrive
from cascadellm.perform import AsyncLocalPerformer
from cascadellm.testing import FakeModel
from tests.policies.both_frameworks import FRAMEWORKS, record_of
from tests.policies.every_policy import PAID
from tests.policies.virtual_time import virtual_seconds

EVERYWHERE = pytest.mark.parametrize("framework", ["engine", *FRAMEWORKS])
TIMES = pytest.mark.parametrize(
    ("draft_s", "judge_s", "large_s"),
    [(0.2, 0.4, 0.5), (0.2, 0.4, 0.6), (0.1, 0.3, 2.0), (1.0, 1.5, 0.7), (0.5, 0.0, 0.5)],
)


def tiers(draft: Any, large: Any, draft_s: float, large_s: float) -> list[Tier]:
    """Return two priced fakes with known delays per word."""
    return [
        Tier(FakeModel(draft, name="small", delay_s=draft_s), price=PAID),
        Tier(FakeModel(large, name="large", delay_s=large_s), price=PAID),
    ]


def deciding(judge_s: float, grade: int = 1) -> Policy:
    """Return a judge that takes so long."""
    return Judge(Tier(FakeModel(f"Score: {grade}", name="judge", delay_s=judge_s), price=PAID))


async def ask(framework: str, both: list[Tier], policy: Any) -> Any:
    """Ask once in a framework, async."""
    if framework == "engine":
        request = Request([{"role": "user", "content": "q"}], "q")
        return await adrive(Cascade(both, policy).plan(request), AsyncLocalPerformer())
    if framework == "langchain":
        return await langchain_cascade.CascadeLLM(tiers=both, policy=policy).ainvoke("q")
    llm = llamaindex_cascade.CascadeLLM(tiers=both, policy=policy)
    return await llm.achat([ChatMessage(role="user", content="q")])


def seconds(framework: str, draft_s: float, judge_s: float, large_s: float, hedge: bool) -> float:
    """Return the virtual time of an escalated call."""
    policy = deciding(judge_s)
    both = tiers("draft", "final", draft_s, large_s)
    asked = ask(framework, both, Hedge(policy, after_s=0) if hedge else policy)
    _, took_s = virtual_seconds(asked)
    assert 1 == len(both[1].model.calls)
    return took_s


@EVERYWHERE
@TIMES
def test_time_when_an_escalated_call_is_hedged(
    framework: str, draft_s: float, judge_s: float, large_s: float
) -> None:
    """The wall time is exactly max(draft + decision, large), also in both frameworks.

    The check has power: without the hedge it is exactly the sum.
    """
    hedged = seconds(framework, draft_s, judge_s, large_s, True)
    # a larger tier that answers while the draft is still being written ends the call
    slower = large_s if large_s <= draft_s else max(draft_s + judge_s, large_s)

    assert hedged == pytest.approx(slower, abs=1e-6)
    assert draft_s + judge_s + large_s == pytest.approx(
        seconds(framework, draft_s, judge_s, large_s, False), abs=1e-6
    )


@EVERYWHERE
@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
def test_time_when_it_is_real(framework: str, mode: str) -> None:
    """On a real clock, sync and async, the wall time is within five percent of it."""
    draft_s, judge_s, large_s = 0.4, 0.6, 1.0
    best = float("inf")
    # the least of a few calls: a busy machine only ever adds to it
    for _ in range(4):
        policy = Hedge(deciding(judge_s), after_s=0)
        both = tiers("draft", "final", draft_s, large_s)
        begun = time.perf_counter()
        found = record_of(framework, mode, both, policy)
        best = min(best, time.perf_counter() - begun)
        assert ["escalate", "accept"] == [a["action"] for a in found["attempts"]]
        if best <= 1.05 * large_s:
            break

    assert large_s <= best <= 1.05 * large_s


WORDS = " ".join(["word"] * 100)


@EVERYWHERE
@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
@pytest.mark.parametrize("loser", ["small", "large"])
def test_loser_when_the_other_tier_answers(loser: str, framework: str, mode: str) -> None:
    """The loser's stream is closed, and what it said until then is charged as far as known."""
    if loser == "large":
        both, policy = tiers("draft", WORDS, 0.1, 0.02), Hedge(Never(), after_s=0)
    else:
        both, policy = tiers(WORDS, "final", 0.02, 0.1), Hedge(Never(), after_s=0)
    found = record_of(framework, mode, both, policy)
    lost = both[loser == "large"].model
    _until(lambda: lost.closed == 1)

    assert (1, 1) == (lost.closed, len(lost.calls))
    assert loser != found["answered_by"]
    first = found["attempts"][0]
    if loser == "large":
        (call,) = first["calls"]
        assert ("large", "hedge") == (call["name"], call["purpose"])
        assert (call["output_tokens"] or 0) < 50
    else:
        assert ("stopped", "hedge") == (first["action"], first["code"])
        assert (first["output_tokens"] or 0) < 50


@EVERYWHERE
async def test_both_when_the_caller_is_cancelled(framework: str) -> None:
    """Cancelling the caller closes both streams and leaves no task behind."""
    both = tiers(WORDS, WORDS, 0.02, 0.02)
    before = asyncio.all_tasks()
    task = asyncio.create_task(ask(framework, both, Hedge(Always(), after_s=0)))
    await asyncio.sleep(0.3)
    assert [1, 1] == [len(tier.model.calls) for tier in both]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(100):
        if all(tier.model.closed for tier in both) and before == asyncio.all_tasks():
            break
        await asyncio.sleep(0.01)

    assert [1, 1] == [tier.model.closed for tier in both]
    assert before == asyncio.all_tasks()


async def test_both_when_cancelling_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks have power: a handle that cancels nothing leaves the loser's stream open."""
    from cascadellm.background import TaskHandle

    monkeypatch.setattr(TaskHandle, "cancel", lambda self: None)
    both = tiers("draft", WORDS, 0.05, 0.02)
    await ask("engine", both, Hedge(Never(), after_s=0))
    await asyncio.sleep(0.1)

    assert 0 == both[1].model.closed


def _until(reached: Any) -> None:
    ends = time.perf_counter() + 3
    while not reached() and time.perf_counter() < ends:
        time.sleep(0.01)
