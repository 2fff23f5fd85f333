"""Spans and events of a cascade: what hangs where, and who is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from pydantic import Field

from cascadellm import Always
from cascadellm.testing import FakeModel
from llamaindex_cascade import CascadeEventHandler, CascadeLLM, Threshold, Tier, mean_logprob
from tests.dropin.watching import was_asked
from tests.llamaindex.li_support import CHOW, ENDPOINTS, Events, Spans, ask, asked, pair, text_of


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_t01_tier_spans_descend_from_the_cascades_span(
    endpoint: str, spans: Spans, events: Events
) -> None:
    """Every tier's span hangs under its attempt, every decision event names the cascade's span."""
    llm, _, _ = pair()
    asked(llm, endpoint)
    (outer,) = spans.named(f"CascadeLLM.{endpoint}")
    prefix = "a" if endpoint.startswith("a") else ""
    inner = spans.named("LocalLLM.")
    assert len(inner) == 2
    for span in inner:
        assert spans.ancestors(span)[-2:] == [
            f"CascadeTier.{prefix}attempt",
            f"CascadeLLM.{endpoint}",
        ]
    (decision,) = events.of("CascadeDecisionEvent")
    assert decision.span_id == outer.id_
    assert not [event for event in events.events if event.span_id is None]


@pytest.mark.parametrize("endpoint", ["chat", "achat"])
def test_t01_decisions_hang_under_their_attempt(endpoint: str, spans: Spans) -> None:
    """A decision is a span of its own, under the attempt that it is about."""
    llm, _, _ = pair()
    asked(llm, endpoint)
    prefix = "a" if endpoint.startswith("a") else ""
    (decide,) = spans.named(f"DeferralPolicy.{prefix}decide")
    assert spans.ancestors(decide)[0] == f"CascadeTier.{prefix}attempt"
    assert not spans.open_spans


def test_spans_are_closed_after_a_tier_fails(spans: Spans) -> None:
    """A tier that raises drops its span and leaves none open."""
    llm = CascadeLLM([FakeModel(OSError("gone"), name="small"), FakeModel("ok")], CHOW)
    asked(llm, "chat")
    assert [s.id_.split("-")[0] for s in spans.dropped_spans] == [
        "LocalLLM.chat",
        "CascadeTier.attempt",
    ]
    assert not spans.open_spans


def test_spans_are_closed_after_a_cancelled_call(spans: Spans) -> None:
    """A cancelled task leaves no span open."""

    async def run() -> None:
        slow = FakeModel("slow", delay_s=30)
        llm = CascadeLLM([slow, FakeModel("ok", name="b")], CHOW)
        task = asyncio.create_task(ask(llm, "achat"))
        await was_asked(slow)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert not spans.open_spans


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_t09_a_handler_on_the_package_hears_every_event(endpoint: str) -> None:
    """The dispatcher `llamaindex_cascade` is the parent of every submodule's."""
    package = get_dispatcher("llamaindex_cascade")
    handler = Events(events=[])
    before = list(package.event_handlers)
    package.add_event_handler(handler)
    try:
        asked(pair()[0], endpoint)
    finally:
        package.event_handlers = before
    assert len(handler.of("CascadeDecisionEvent")) == 1
    assert len(handler.of("CascadeEndEvent")) == 1
    assert len(handler.of("LLMChatEndEvent", "LLMCompletionEndEvent")) == 1


class _Raises(BaseEventHandler):
    def handle(self, event: Any, **kwargs: Any) -> None:
        raise RuntimeError("a broken handler")


def test_t10_a_handler_that_raises_does_not_break_an_answer() -> None:
    """A broken instrumentation handler or engine handler never breaks an answer."""
    root = get_dispatcher()
    before = list(root.event_handlers)
    root.add_event_handler(_Raises())
    try:
        llm, _, _ = pair()
        assert text_of(asked(llm, "chat")[0]) == "Four, I am certain."
    finally:
        root.event_handlers = before


class _Typed(CascadeEventHandler):
    seen: list[str] = Field(default_factory=list)

    def on_tier_started(self, event: Any) -> None:
        self.seen.append(f"start {event.name}")

    def on_tier_answered(self, event: Any) -> None:
        self.seen.append(f"answer {event.name}")

    def on_tier_failed(self, event: Any) -> None:
        self.seen.append(f"fail {event.name} {event.attempt['code']}")

    def on_decision(self, event: Any) -> None:
        self.seen.append(f"decide {event.name} {event.defer} {event.score}")

    def on_accepted(self, event: Any) -> None:
        self.seen.append(f"accept {event.trace['answered_by']}")

    def on_failed(self, event: Any) -> None:
        self.seen.append(f"failed {event.error}")

    def on_tier_skipped(self, event: Any) -> None:
        self.seen.append(f"skip {event.name}")


def test_typed_event_handler_is_told_in_order() -> None:
    """A handler with one method per event hears the whole story of a call."""
    root = get_dispatcher()
    before = list(root.event_handlers)
    handler = _Typed(seen=[])
    root.add_event_handler(handler)
    fails = FakeModel(TimeoutError("late"), name="tiny")
    small = FakeModel("hm", name="small", logprob=-2.0)
    llm = CascadeLLM([fails, small, FakeModel("yes", name="large")], CHOW)
    try:
        asked(llm, "chat")
        with pytest.raises(TimeoutError):
            asked(llm, "chat", cascade_tier="tiny")
    finally:
        root.event_handlers = before
    assert handler.seen == [
        "start tiny",
        "fail tiny timeout",
        "start small",
        "answer small",
        "decide small True -2.0",
        "start large",
        "answer large",
        "accept large",
        "start tiny",
        "fail tiny timeout",
        "failed TimeoutError('late')",
    ]


def test_without_listeners_no_span_and_no_event_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without handlers nothing is built for them."""
    from llamaindex_cascade import observe
    from llamaindex_cascade import spans as spans_module

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("built without a listener")

    monkeypatch.setattr(spans_module.Spans, "_trace", refuse)
    monkeypatch.setattr(spans_module, "instrumentation_event", refuse)
    monkeypatch.setattr(observe, "event_copy", refuse)
    monkeypatch.setattr(CascadeLLM, "to_payload", refuse)
    for endpoint in ENDPOINTS:
        asked(pair()[0], endpoint)


def test_judges_hang_under_the_decision(spans: Spans) -> None:
    """A policy that asks a judge nests the judge's call under its decision."""
    from cascadellm.effects import Judge
    from cascadellm.policies import Policy

    judge = Tier(FakeModel("bad", name="judge"))

    class Asks(Policy):
        def after(self, moment: Any) -> Any:
            verdict = yield Judge(judge, "Is it right?")
            from cascadellm import Decision

            return Decision(verdict.text == "bad", self.name, code="judge")

    llm, _, large = pair(policy=Asks())
    asked(llm, "chat")
    under = [
        span
        for span in spans.named("LocalLLM.")
        if "DeferralPolicy.decide" in spans.ancestors(span)
    ]
    assert len(under) == 1
    assert len(large.calls) == 1


@pytest.mark.parametrize("logprob", [-0.1, -2.0])
@pytest.mark.parametrize("endpoint", ["stream_chat", "astream_chat", "stream_complete"])
def test_t34_no_chunk_before_the_accepting_decision(
    endpoint: str, logprob: float, events: Events
) -> None:
    """Nothing is shown before the decision that accepts it."""
    asked(pair(logprob)[0], endpoint)
    kinds = [
        type(event).__name__
        for event in events.events
        if (event.span_id or "").startswith("CascadeLLM")
    ]
    first = next(i for i, kind in enumerate(kinds) if "InProgress" in kind)
    assert "CascadeDecisionEvent" in kinds[:first]
    assert "CascadeDecisionEvent" not in kinds[first:]


def test_t34_would_notice_a_draft_that_leaks() -> None:
    """The stream holds no character of a rejected draft."""
    chunks = asked(pair(-2.0)[0], "stream_chat")
    assert not [c for c in chunks if "Maybe" in (c.delta or "") + text_of(c)]


def test_boundaries_of_three_tiers_each_show_their_policy(events: Events) -> None:
    """Each decision event names the policy and threshold of its own boundary."""
    tiers = [FakeModel("a", name=n, logprob=-2.0) for n in ("s", "m")] + [FakeModel("b", name="l")]
    asked(CascadeLLM(tiers, [CHOW, Always()]), "chat")
    seen = [(e.name, e.policy, e.threshold) for e in events.of("CascadeDecisionEvent")]
    assert seen == [("s", "Threshold", -0.35), ("m", "Always", None)]
    assert Threshold(mean_logprob, -0.35) == CHOW
