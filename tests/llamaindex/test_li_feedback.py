"""Feedback on a LlamaIndex cascade: labels by hand, shadow calls, events."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from llama_index.core.instrumentation import get_dispatcher
from pydantic import Field

from cascadellm import Price, Tier, record_cascade
from cascadellm.calibration import AdaptiveThreshold, DriftMonitor, FeedbackLoop
from cascadellm.errors import CalibrationError, ConfigurationError
from cascadellm.testing import FakeModel
from llamaindex_cascade import CascadeEventHandler, CascadeLLM, mean_logprob
from tests.llamaindex.li_support import CHOW, ENDPOINTS, Spans, asked, pair, text_of

PRICE = Price(input=1.0, output=2.0)


def _watched(loop, policy=CHOW, small="Four.", large="It is four.", logprob=-0.1):
    models = FakeModel(small, name="small", logprob=logprob), FakeModel(large, name="large")
    tiers = [Tier(model, price=PRICE) for model in models]
    return CascadeLLM(tiers, policy, feedback_loop=loop)


class Kept(CascadeEventHandler):
    """Keeps what is told after the answers."""

    shadows: list[Any] = Field(default_factory=list)
    drifts: list[Any] = Field(default_factory=list)

    def on_shadow_answered(self, event):
        self.shadows.append(event)

    def on_drift_detected(self, event):
        self.drifts.append(event)


@pytest.fixture
def kept():
    """A handler of the package's dispatcher, removed afterwards."""
    handler, dispatcher = Kept(), get_dispatcher("llamaindex_cascade")
    before = list(dispatcher.event_handlers)
    dispatcher.add_event_handler(handler)
    yield handler
    dispatcher.event_handlers[:] = before


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_feedback_reaches_every_monitor_and_threshold_once(endpoint):
    """On every endpoint a response's feedback is counted once, by monitor and threshold."""
    told, monitor = [], DriftMonitor(0.1)
    policy = AdaptiveThreshold(mean_logprob, -0.5, target=0.2, low=-2.0, high=0.0, rate=0.1)
    llm = _watched(FeedbackLoop([monitor, told.append]), policy)
    response = asked(llm, endpoint)[-1]
    assert llm.feedback(response, correct=False)
    assert not llm.feedback(response, correct=True)
    assert 1 == monitor.observations
    assert -0.5 + 0.1 * 0.8 == pytest.approx(policy.threshold)
    (one,) = told
    assert (True, 1.0, 0.0, "feedback") == (one.accepted, one.loss, one.correct, one.source)


def test_a_run_is_named_by_its_id_or_record():
    """The run id in the record and the record itself name the call."""
    llm = _watched(FeedbackLoop())
    for name in (lambda r: r.raw["cascade"]["run_id"], lambda r: r.raw["cascade"]):
        assert llm.feedback(name(llm.complete("hi")), correct=True)
    assert "run_id" not in pair()[0].complete("hi").raw["cascade"]


def test_wrong_feedback_is_refused():
    """An unknown run, a number out of range and a cascade without a loop are sentences."""
    llm = _watched(FeedbackLoop())
    with pytest.raises(CalibrationError, match="no call 'gone' is known"):
        llm.feedback("gone", correct=True)
    with pytest.raises(CalibrationError, match=r"must lie in \[0, 1\]"):
        llm.feedback("gone", correct=-1)
    with pytest.raises(ConfigurationError, match="has no feedback_loop"):
        pair()[0].feedback("gone", correct=True)


def test_a_drift_is_an_event_of_the_framework(kept):
    """The alarm reaches LlamaIndex's event handlers and the recorder, once."""
    llm = _watched(FeedbackLoop([DriftMonitor(0.05)]))
    with record_cascade() as recorder:
        for _ in range(30):
            llm.feedback(llm.complete("hi"), correct=False)
    (event,) = kept.drifts
    assert "no longer holds" in event.reason
    assert [event.evidence] == [one.evidence for one in recorder.drifts]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_accepted_drafts_are_checked_by_shadow_calls(endpoint):
    """On every endpoint the last tier is asked beside the answer, told with its cost."""
    monitor = DriftMonitor(0.5)
    loop = FeedbackLoop([monitor], shadow_share=1.0)
    llm = _watched(loop)
    handler, dispatcher = Kept(), get_dispatcher("llamaindex_cascade")
    before = list(dispatcher.event_handlers)
    dispatcher.add_event_handler(handler)
    try:
        with record_cascade() as recorder:
            if endpoint.startswith("a"):

                async def main():
                    from tests.llamaindex.li_support import ask

                    said = await ask(llm, endpoint)
                    assert await asyncio.to_thread(loop.settle)
                    return said

                answer = asyncio.run(main())[-1]
            else:
                answer = asked(llm, endpoint)[-1]
                assert loop.settle()
    finally:
        dispatcher.event_handlers[:] = before
    assert "Four." == text_of(answer)
    (shadow,), (event,) = recorder.shadows, handler.shadows
    assert ("large", 1.0, "It is four.") == (event.name, event.loss, event.text)
    assert shadow.run_id == event.run_id == recorder.traces[0].run_id
    assert recorder.shadow_cost_usd == event.call["cost_usd"] > 0
    assert "large" not in recorder.traces[0].tokens_by_tier
    assert 1 == monitor.observations


def test_a_shadow_call_is_no_part_of_the_calls_span():
    """The shadow call's span hangs on nothing: the answer's trace ended before it."""
    spans, dispatcher = Spans(), get_dispatcher()
    before = list(dispatcher.span_handlers)
    dispatcher.add_span_handler(spans)
    loop = FeedbackLoop(shadow_share=1.0)
    try:
        _watched(loop).complete("hi")
        assert loop.settle()
    finally:
        dispatcher.span_handlers[:] = before
    roots = [span for span in spans.completed_spans if span.parent_id is None]
    assert 2 == len(roots), [(s.id_, s.parent_id) for s in spans.completed_spans]


def test_a_shadow_call_that_fails_breaks_nothing():
    """The answer came already; the failure is told and counted as no observation."""
    monitor = DriftMonitor(0.5)
    loop = FeedbackLoop([monitor], shadow_share=1.0)
    with record_cascade() as recorder:
        assert "Four." == _watched(loop, large=RuntimeError("down")).complete("hi").text
        assert loop.settle()
    assert 0 == monitor.observations
    assert "RuntimeError: down" == recorder.shadows[0].call.error


def test_concurrent_calls_and_feedback_lose_nothing():
    """Feedback from many threads is counted once per call, and moves the threshold once."""
    monitor = DriftMonitor(0.5)
    policy = AdaptiveThreshold(mean_logprob, -0.9, target=0.5, low=-5, high=5, rate=0.001)
    llm = _watched(FeedbackLoop([monitor]), policy)

    def work():
        for _ in range(20):
            response = llm.complete("hi")
            llm.feedback(response, correct=False)
            llm.feedback(response.raw["cascade"]["run_id"], correct=False)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 120 == monitor.observations == policy.observations
    assert -0.9 + 120 * 0.0005 == pytest.approx(policy.threshold)


def test_mutation_counting_twice_is_noticed(monkeypatch):
    """A loop that forgets what it counted is seen by the check above."""
    real = FeedbackLoop._tell

    def forgets(self, cascade, call, *rest):
        call.counted = False
        return real(self, cascade, call, *rest)

    monkeypatch.setattr(FeedbackLoop, "_tell", forgets)
    with pytest.raises(AssertionError):
        test_concurrent_calls_and_feedback_lose_nothing()
