"""Deciding sooner in LangChain: drafts stopped, committed to, and raced."""

from __future__ import annotations

import asyncio
import time
from functools import reduce
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.tracers.base import BaseTracer

from cascadellm import (
    Agreement,
    Always,
    Answer,
    EarlyAbort,
    Hedge,
    Judge,
    Never,
    PrefixCommit,
    Price,
    SelfConsistency,
    Tier,
    TokenScore,
    mean_logprob,
)
from cascadellm.testing import FakeModel
from langchain_cascade import CascadeLLM

PAID = Price(1, 1)


def scored(*logprobs: float) -> Answer:
    """Return an answer of words with these log-probabilities."""
    tokens = tuple(TokenScore(f"w{i} ", value) for i, value in enumerate(logprobs))
    return Answer("".join(t.token for t in tokens), tokens=tokens, finish_reason="stop")


def build(policy: Any, small: Any, **delays: float) -> tuple[CascadeLLM, FakeModel, FakeModel]:
    """Return a cascade of two priced fakes, and the fakes."""
    first = FakeModel(small, name="small", delay_s=delays.get("draft_s", 0.0))
    last = FakeModel("large", name="large", delay_s=delays.get("large_s", 0.0))
    tiers = [Tier(first, price=PAID), Tier(last, price=PAID)]
    return CascadeLLM(tiers=tiers, policy=policy), first, last


def chunks_of(llm: CascadeLLM, mode: str) -> list[AIMessageChunk]:
    """Return the chunks of a streamed call."""
    if mode == "stream":
        return list(llm.stream("q"))  # type: ignore[arg-type]

    async def collect() -> list[Any]:
        return [chunk async for chunk in llm.astream("q")]

    return asyncio.run(collect())


def ask(llm: CascadeLLM, mode: str, config: Any = None) -> AIMessage:
    """Return the message of a call on one of four paths."""
    if mode == "invoke":
        return llm.invoke("q", config)
    if mode == "ainvoke":
        return asyncio.run(llm.ainvoke("q", config))
    return reduce(lambda one, other: one + other, chunks_of(llm, mode))  # type: ignore[return-value]


MODES = ("invoke", "ainvoke", "stream", "astream")
modes = pytest.mark.parametrize("mode", MODES)


@modes
@pytest.mark.parametrize("traced", [False, True])
def test_abort_when_a_draft_is_hopeless(mode: str, traced: bool) -> None:
    """The draft's stream is closed at the deciding token and its part is charged, on each path."""
    llm, small, _ = build(EarlyAbort(mean_logprob, -1, after_tokens=3), scored(*[-3.0] * 30))
    config = {"callbacks": [_Quiet()]} if traced and "stream" not in mode else None
    record = ask(llm, mode, config).response_metadata["cascade"]
    first = record["attempts"][0]

    assert ("large", "stopped", "early_abort", 3) == (
        record["answered_by"],
        first["action"],
        first["code"],
        first["output_tokens"],
    )
    assert 1 == small.closed
    assert record["cost_usd"] is not None


@pytest.mark.parametrize("mode", ["stream", "astream"])
def test_commit_when_a_draft_is_good(mode: str) -> None:
    """A committed draft streams live from there on; nothing else is shown."""
    llm, _, large = build(PrefixCommit(mean_logprob, -1, tokens=3), scored(*[-0.1] * 9))
    chunks = chunks_of(llm, mode)
    whole: Any = reduce(lambda one, other: one + other, chunks)

    assert [f"w{i} " for i in range(9)] == [str(c.content) for c in chunks if c.content]
    assert ("small", "prefix") == (
        whole.response_metadata["cascade"]["answered_by"],
        whole.response_metadata["cascade"]["attempts"][0]["code"],
    )
    assert [] == large.calls


@pytest.mark.parametrize("mode", ["stream", "astream"])
def test_commit_when_a_draft_is_bad(mode: str) -> None:
    """Nothing of a rejected draft is shown."""
    llm, small, _ = build(PrefixCommit(mean_logprob, -1, tokens=3), scored(*[-3.0] * 9))
    chunks = chunks_of(llm, mode)

    assert "large" == "".join(str(chunk.content) for chunk in chunks)
    assert 1 == small.closed


@modes
def test_commit_when_all_paths_are_compared(mode: str) -> None:
    """Every path gives the same text and record."""
    for logprob, answered_by in ((-0.1, "small"), (-3.0, "large")):
        llm, _, _ = build(PrefixCommit(mean_logprob, -1, tokens=3), scored(*[logprob] * 9))
        message = ask(llm, mode)
        assert answered_by == message.response_metadata["cascade"]["answered_by"]


@modes
def test_hedge_when_a_draft_is_deferred(mode: str) -> None:
    """The larger tier runs beside the draft."""
    llm, _, _ = build(Hedge(Always(), after_s=0), "draft", draft_s=0.3, large_s=0.5)
    begun = time.perf_counter()
    message = ask(llm, mode)

    assert "large" == message.content
    assert time.perf_counter() - begun < 0.75


@modes
def test_hedge_when_a_draft_is_accepted(mode: str) -> None:
    """An accepted draft does not wait for the larger tier, and the loser is on record."""
    llm, _, _ = build(Hedge(Never(), after_s=0), "draft", large_s=2.0)
    begun = time.perf_counter()
    record = ask(llm, mode).response_metadata["cascade"]

    assert "small" == record["answered_by"]
    assert time.perf_counter() - begun < 1.5
    assert ["hedge"] == [call["purpose"] for call in record["attempts"][0]["calls"]]


@modes
@pytest.mark.parametrize(
    ("make", "purposes"),
    [
        (lambda judge: Judge(judge("Score: 9")), ["judge"]),
        (lambda judge: Agreement([judge("42"), judge("42")]), ["agreement"] * 2),
        (lambda judge: SelfConsistency(3, 1.0), ["resample"] * 2),
    ],
)
def test_policy_when_it_asks_models(mode: str, make: Any, purposes: list[str]) -> None:
    """Judges, other models and resamples are asked and charged on every path."""
    made: list[int] = []

    def judge(reply: str) -> Tier:
        made.append(1)
        return Tier(FakeModel(reply, name=f"judge{len(made)}"), price=PAID)

    llm, _, _ = build(make(judge), "42")
    record = ask(llm, mode).response_metadata["cascade"]
    calls = record["attempts"][0]["calls"]

    assert purposes == [call["purpose"] for call in calls]
    assert all(call["cost_usd"] for call in calls)
    assert "small" == record["answered_by"]


@modes
def test_t15_when_a_stopped_draft_is_traced(mode: str) -> None:
    """A stopped draft's run carries its usage and the interrupt mark, and is no failure."""

    class Kept(BaseTracer):
        """A tracer that keeps its root runs."""

        def __init__(self) -> None:
            super().__init__()
            self.roots: list[Any] = []

        def _persist_run(self, run: Any) -> None:
            self.roots.append(run)

    kept = Kept()
    llm, _, _ = build(EarlyAbort(mean_logprob, -1, after_tokens=3), scored(*[-3.0] * 30))
    config: Any = {"callbacks": [kept]}
    if mode == "stream":
        list(llm.stream("q", config))
    elif mode == "astream":

        async def drain() -> None:
            async for _ in llm.astream("q", config):
                pass

        asyncio.run(drain())
    else:
        ask(llm, mode, config)
    (root,) = kept.roots
    small = next(run for run in root.child_runs if run.name == "small")

    assert (None, None) == (root.error, small.error)
    assert (True, "stopped", 3) == (
        small.metadata["ls_is_error_interrupt"],
        small.metadata["cascade_action"],
        small.metadata["usage_metadata"]["output_tokens"],
    )


def _quiet_class() -> Any:
    from langchain_core.callbacks import BaseCallbackHandler

    class Quiet(BaseCallbackHandler):
        """A handler that listens, so that the long path is taken."""

    return Quiet


_Quiet = _quiet_class()
