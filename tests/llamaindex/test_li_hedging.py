"""Policies that ask models, and hedging, on the paths of LlamaIndex."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage

from cascadellm import Agreement, Always, Hedge, Judge, Never, Price, SelfConsistency, Tier
from cascadellm.testing import FakeModel
from llamaindex_cascade import CascadeLLM

PAID = Price(1, 1)
ASKED = [ChatMessage(role="user", content="q")]
modes = pytest.mark.parametrize("mode", ["chat", "achat", "stream_chat", "astream_chat"])


def build(policy: Any, small: str = "42", **delays: float) -> CascadeLLM:
    """Return a cascade of two priced fakes."""
    first = FakeModel(small, name="small", delay_s=delays.get("draft_s", 0.0))
    last = FakeModel("large", name="large", delay_s=delays.get("large_s", 0.0))
    return CascadeLLM(tiers=[Tier(first, price=PAID), Tier(last, price=PAID)], policy=policy)


def ask(llm: CascadeLLM, mode: str) -> Any:
    """Return the last response of a call on one of four paths."""
    if mode == "chat":
        return llm.chat(ASKED)
    if mode == "achat":
        return asyncio.run(llm.achat(ASKED))
    if mode == "stream_chat":
        return list(llm.stream_chat(ASKED))[-1]

    async def last() -> Any:
        return [response async for response in await llm.astream_chat(ASKED)][-1]

    return asyncio.run(last())


def record(response: Any) -> dict[str, Any]:
    """Return the record of a response."""
    return response.raw["cascade"]  # type: ignore[no-any-return]


@modes
def test_hedge_when_a_draft_is_deferred(mode: str) -> None:
    """The larger tier runs beside the draft."""
    llm = build(Hedge(Always(), after_s=0), draft_s=0.3, large_s=0.5)
    begun = time.perf_counter()
    response = ask(llm, mode)

    assert "large" == response.message.content
    assert time.perf_counter() - begun < 0.75
    assert ["escalate", "accept"] == [a["action"] for a in record(response)["attempts"]]


@modes
def test_hedge_when_a_draft_is_accepted(mode: str) -> None:
    """An accepted draft does not wait for the larger tier, and the loser is on record."""
    llm = build(Hedge(Never(), after_s=0), large_s=2.0)
    begun = time.perf_counter()
    found = record(ask(llm, mode))

    assert "small" == found["answered_by"]
    assert time.perf_counter() - begun < 1.5
    assert ["hedge"] == [call["purpose"] for call in found["attempts"][0]["calls"]]


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

    found = record(ask(build(make(judge)), mode))
    calls = found["attempts"][0]["calls"]

    assert purposes == [call["purpose"] for call in calls]
    assert all(call["cost_usd"] for call in calls)
    assert "small" == found["answered_by"]
