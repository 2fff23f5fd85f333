"""Feedback on a LangChain cascade: labels by hand, shadow calls, LangSmith."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import random
import threading
from uuid import uuid4

import numpy as np
import pytest
from langchain_core.tracers.langchain import LangChainTracer
from langsmith import Client

from cascadellm import Answer, Price, Threshold, Tier, TokenScore, record_cascade
from cascadellm.calibration import (
    AdaptiveThreshold,
    CalibrationRecords,
    DriftMonitor,
    FeedbackLoop,
    calibrate_threshold,
)
from cascadellm.errors import CalibrationError, ConfigurationError
from cascadellm.testing import FakeModel
from langchain_cascade import (
    CascadeCallbackHandler,
    CascadeLLM,
    feedback,
    feedback_from_langsmith,
    mean_logprob,
)
from tests.dropin.watching import was_asked
from tests.langchain.lc_tools import CHOW, PATHS, Recording, cascade, fakes
from tests.servers.langsmith_server import LangSmithServer

PRICE = Price(input=1.0, output=2.0)


def _watched(loop, policy=CHOW, **settings):
    tiers = [Tier(model, price=PRICE) for model in fakes(**{"logprob": -0.1, **settings})]
    return CascadeLLM(tiers, policy, feedback_loop=loop)


class Kept(CascadeCallbackHandler):
    """Keeps what is told after the answers."""

    def __init__(self):
        self.shadows, self.drifts = [], []

    def on_shadow_answered(self, event):
        self.shadows.append(event)

    def on_drift_detected(self, event):
        self.drifts.append(event)


@pytest.mark.parametrize("path", PATHS)
def test_feedback_reaches_every_monitor_and_threshold_once(path):
    """On every path a message's feedback is counted once, by monitor, function and threshold."""
    told, monitor = [], DriftMonitor(0.1)
    policy = AdaptiveThreshold(mean_logprob, -0.5, target=0.2, low=-2.0, high=0.0, rate=0.1)
    llm = _watched(FeedbackLoop([monitor, told.append]), policy)
    message = PATHS[path](llm, "hi", {})
    assert llm.feedback(message, correct=False)
    assert not llm.feedback(message, correct=True)
    assert 1 == monitor.observations
    assert -0.5 + 0.1 * 0.8 == pytest.approx(policy.threshold)
    (one,) = told
    assert (True, 1.0, 0.0, "feedback") == (one.accepted, one.loss, one.correct, one.source)
    assert (-0.1, -0.5) == pytest.approx((one.score, one.threshold))


def test_a_run_is_named_by_its_id_message_or_record():
    """The run id, the message id, the message and the record all name one call."""
    llm = _watched(FeedbackLoop())
    for name in (
        lambda m: m.id,
        lambda m: m.response_metadata["cascade"]["run_id"],
        lambda m: m.response_metadata["cascade"],
        lambda m: m,
    ):
        assert llm.feedback(name(llm.invoke("hi")), correct=True)


def test_the_record_names_a_call_of_another_process():
    """A stored record is enough, with the score and the decision of its call."""
    record = _watched(FeedbackLoop()).invoke("hi").response_metadata["cascade"]
    told = []
    other = _watched(FeedbackLoop([told.append]))
    with pytest.raises(CalibrationError, match="pass the record of the call itself"):
        other.feedback(record["run_id"], correct=False)
    stored = json.loads(json.dumps(record))
    assert other.feedback(stored, correct=False)
    assert not other.feedback(stored, correct=False)
    assert [(1.0, True, pytest.approx(-0.1))] == [(t.loss, t.accepted, t.score) for t in told]


def test_the_run_id_is_the_one_of_the_callbacks():
    """The id in the record is the id under which callbacks and LangSmith know the run."""
    seen = Recording()
    llm = _watched(FeedbackLoop())
    message = llm.invoke("hi", {"callbacks": [seen]})
    (run,) = seen.named("CascadeLLM")
    assert str(run.run_id) == message.response_metadata["cascade"]["run_id"]


def test_an_escalated_call_has_no_loss():
    """Where the last tier answered, a wrong answer is no loss of the cascade."""
    told = []
    llm = _watched(FeedbackLoop([told.append]), logprob=-2.0)
    llm.feedback(llm.invoke("hi"), correct=False)
    assert [(False, 0.0)] == [(one.accepted, one.loss) for one in told]


def test_where_the_last_tier_is_wrong_too_nothing_is_lost():
    """`reference_correct` lowers the loss to what the cascade really gave away."""
    told = []
    llm = _watched(FeedbackLoop([told.append]))
    llm.feedback(llm.invoke("hi"), correct=0.25, reference_correct=0.75)
    llm.feedback(llm.invoke("hi"), correct=0, reference_correct=0)
    assert [0.5, 0.0] == [one.loss for one in told]


def test_wrong_feedback_is_refused():
    """An unknown run, a number out of range and a cascade without a loop are sentences."""
    llm = _watched(FeedbackLoop(keep=1))
    first = llm.invoke("hi").id
    llm.invoke("hi")
    with pytest.raises(CalibrationError, match="the latest 1 answered calls are kept, 1 now"):
        llm.feedback(first, correct=True)
    with pytest.raises(CalibrationError, match=r"must lie in \[0, 1\]"):
        llm.feedback("x", correct=3)
    with pytest.raises(ConfigurationError, match="has no feedback_loop"):
        cascade().feedback("x", correct=True)
    with pytest.raises(ConfigurationError, match=r"shadow_share must lie in \[0, 1\]"):
        FeedbackLoop(shadow_share=2)
    with pytest.raises(ConfigurationError, match="a monitor has observe"):
        FeedbackLoop([3])


def test_a_drift_reaches_handlers_and_recorders():
    """The alarm is an event of the cascade, told once to its handlers and the recorder."""
    kept = Kept()
    llm = _watched(FeedbackLoop([DriftMonitor(0.05)]))
    llm.callbacks = [kept]
    with record_cascade() as recorder:
        for _ in range(30):
            llm.feedback(llm.invoke("hi"), correct=False)
    assert 1 == len(kept.drifts)
    assert kept.drifts == recorder.drifts
    assert "no longer holds" in kept.drifts[0].reason


def test_accepted_drafts_are_checked_by_shadow_calls():
    """A share of accepted calls also asks the last tier; its cost is told, its answer compared."""
    monitor, kept = DriftMonitor(0.5), Kept()
    loop = FeedbackLoop([monitor], shadow_share=0.3, max_pending=1000)
    models = fakes(logprob=-0.1)
    llm = CascadeLLM([Tier(m, price=PRICE) for m in models], CHOW, feedback_loop=loop)
    with record_cascade() as recorder:
        for number in range(200):
            llm.invoke(f"question {number}", {"callbacks": [kept]})
        assert loop.settle()
    asked = len(models[1].calls)
    assert 30 < asked < 90
    assert asked == monitor.observations == len(recorder.shadows) == len(kept.shadows)
    assert 200 == len(recorder.records)
    shadow = recorder.shadows[0]
    assert ("large", "shadow", "large says so") == (shadow.name, shadow.call.purpose, shadow.text)
    assert 1.0 == shadow.loss
    paid = shadow.call.input_tokens * 1e-6 + shadow.call.output_tokens * 2e-6
    assert paid == pytest.approx(shadow.call.cost_usd)
    assert sum(s.call.cost_usd for s in recorder.shadows) == pytest.approx(recorder.shadow_cost_usd)
    assert all("large" not in r.trace.tokens_by_tier for r in recorder.records)


def test_shadow_calls_of_equal_answers_have_no_loss():
    """Answers that differ in form only agree, and `compare` may judge otherwise."""
    told = []
    for compare in (None, lambda draft, last: 0.25):
        loop = FeedbackLoop([told.append], shadow_share=1, compare=compare)
        _watched(loop, small="Four.", large="four").invoke("hi")
        assert loop.settle()
    assert [0.0, 0.25] == [one.loss for one in told]
    assert {"shadow"} == {one.source for one in told}


def test_async_calls_are_checked_in_their_loop():
    """Async calls start their shadow calls as tasks, and an ended loop costs no answer."""
    monitor = DriftMonitor(0.5)
    loop = FeedbackLoop([monitor], shadow_share=1.0)
    llm = _watched(loop)

    async def main():
        await asyncio.gather(*(llm.ainvoke("hi") for _ in range(5)))
        assert await asyncio.to_thread(loop.settle)

    asyncio.run(main())
    assert 5 == monitor.observations
    with record_cascade() as recorder:
        assert "small says so" == asyncio.run(llm.ainvoke("hi")).text
    assert 0 == loop.pending
    assert len(recorder.shadows) <= 1


def test_a_cancelled_shadow_call_is_told_with_an_unknown_cost():
    """A shadow call that its loop cuts off is no observation, and its cost is unknown."""
    monitor = DriftMonitor(0.5)
    loop = FeedbackLoop([monitor], shadow_share=1.0)
    large = FakeModel("l", name="large", delay_s=30)
    llm = CascadeLLM([fakes(logprob=-0.1)[0], Tier(large, price=PRICE)], CHOW, feedback_loop=loop)

    async def main():
        await llm.ainvoke("hi")
        await was_asked(large)

    with record_cascade() as recorder:
        asyncio.run(main())
    (shadow,) = recorder.shadows
    assert ("cancelled", None, None) == (shadow.call.error, shadow.call.cost_usd, shadow.loss)
    assert 0 == monitor.observations
    assert recorder.shadow_cost_usd is None


def test_a_shadow_call_that_fails_breaks_nothing():
    """The answer came already; the failure is told and counted as no observation."""
    monitor = DriftMonitor(0.5)
    loop = FeedbackLoop([monitor], shadow_share=1.0)
    with record_cascade() as recorder:
        assert "small says so" == _watched(loop, large=RuntimeError("down")).invoke("hi").text
        assert loop.settle()
    assert 0 == monitor.observations
    assert "RuntimeError: down" == recorder.shadows[0].call.error


def test_a_compare_out_of_range_is_told_as_an_error():
    """A comparison that returns 7 is no observation."""
    monitor = DriftMonitor(0.5)
    loop = FeedbackLoop([monitor], shadow_share=1.0, compare=lambda draft, last: 7)
    with record_cascade() as recorder:
        _watched(loop).invoke("hi")
        assert loop.settle()
    assert 0 == monitor.observations
    assert "must return a loss" in recorder.shadows[0].call.error


def test_while_too_many_are_under_way_nothing_is_counted():
    """A queue that is full drops deferred calls as well, so that it hides no loss."""
    gate = threading.Event()

    def waits(messages):
        gate.wait(10)
        return "large"

    monitor = DriftMonitor(0.5)
    loop = FeedbackLoop([monitor], shadow_share=1.0, max_pending=1)
    llm = _watched(loop, large=waits)
    llm.invoke("hi")
    unsure = CascadeLLM(list(fakes(logprob=-2.0)), CHOW, feedback_loop=loop)
    unsure.invoke("hi")
    assert 0 == monitor.observations
    gate.set()
    assert loop.settle()
    unsure.invoke("hi")
    assert 2 == monitor.observations


def _lawful(rng, thinned):
    """Return two models whose answers follow a law: the small one is sure, and right if honest."""

    def small(_messages):
        chance = rng.random()
        right = rng.random() < chance * (1 - thinned)
        return Answer("yes" if right else "no", tokens=(TokenScore("x", math.log(chance)),))

    return FakeModel(small, name="small"), FakeModel("yes", name="large")


@pytest.mark.parametrize(("thinned", "fires"), [(0.0, False), (0.5, True)])
def test_planted_overconfidence_is_noticed_by_shadow_calls_alone(thinned, fires):
    """A small tier that gets worse at the same score raises the alarm; an honest one does not."""
    monitor = DriftMonitor(0.05)
    loop = FeedbackLoop([monitor], shadow_share=0.5, max_pending=10_000)
    policy = Threshold(mean_logprob, math.log(0.75))
    llm = CascadeLLM(list(_lawful(random.Random(2), thinned)), policy, feedback_loop=loop)
    with record_cascade() as recorder:
        for number in range(800):
            llm.invoke(f"question {number}")
        assert loop.settle()
    assert 300 < monitor.observations < 500
    assert fires == (monitor.alarm is not None) == (len(recorder.drifts) == 1)


def test_a_shadow_run_is_a_trace_of_its_own():
    """Callbacks of the call see no run of the shadow call: its tokens belong to no answer."""
    seen = Recording()
    loop = FeedbackLoop(shadow_share=1.0)
    _watched(loop).invoke("hi", {"callbacks": [seen]})
    assert loop.settle()
    assert ["CascadeLLM", "small"] == [run.name for run in seen.models]


def _promise(loss):
    rng = np.random.default_rng(0)
    score = rng.random(2000)
    small = rng.random(2000) < score
    agree = np.where(small, 1.0, rng.random(2000) < 0.1)
    correct = np.column_stack([small, np.ones(2000)])
    records = CalibrationRecords.of(score, correct, agree=agree)
    return calibrate_threshold(records, target_risk=0.2, loss=loss, score_range=(0, 1))


def test_shadow_calls_watch_the_loss_that_was_promised():
    """Disagreement is never taken for another promise, which it would call broken too early."""
    for loss in ("one_sided", "selective"):
        monitor = DriftMonitor(_promise(loss))
        with pytest.raises(ConfigurationError, match="shadow calls measure disagreement"):
            FeedbackLoop([monitor], shadow_share=0.1)
        FeedbackLoop([monitor])
        FeedbackLoop([monitor], shadow_share=0.1, compare=lambda draft, last: 0.0)
    FeedbackLoop([DriftMonitor(_promise("disagreement"))], shadow_share=0.1)


def test_an_error_rate_counts_errors_of_both_tiers():
    """For a selective promise a wrong answer counts, whether or not the last tier errs too."""
    selective, told = DriftMonitor(_promise("selective")), []
    llm = _watched(FeedbackLoop([selective, told.append]))
    llm.feedback(llm.invoke("hi"), correct=False, reference_correct=False)
    assert 1.0 == selective.state()["total"]
    assert 0.0 == told[0].loss


def test_the_seed_chooses_which_calls_are_checked():
    """Equal seeds check the same calls, another seed others."""
    picked = []
    for seed in (1, 1, 2):
        models = fakes(logprob=-0.1)
        loop = FeedbackLoop(shadow_share=0.2, max_pending=1000, seed=seed)
        llm = CascadeLLM(list(models), CHOW, feedback_loop=loop)
        for number in range(60):
            llm.invoke(f"question {number}")
        assert loop.settle()
        picked.append({str(messages) for messages, _ in models[1].calls})
    assert picked[0] == picked[1] != picked[2]


def test_copies_of_a_cascade_share_the_loop():
    """Copies, bindings and configured cascades know each other's calls."""
    llm = _watched(FeedbackLoop())
    for other in (copy.copy(llm), llm.model_copy(), llm.with_config(tags=["a"])):
        assert llm.feedback(other.invoke("hi"), correct=True)


def test_adaptive_threshold_follows_deferrals():
    """With `follow="deferral"` every call moves the threshold and no label is needed."""
    policy = AdaptiveThreshold(
        mean_logprob, -0.5, target=0.3, low=-2.0, high=0.0, rate=0.1, follow="deferral"
    )
    llm = _watched(FeedbackLoop(), policy)
    llm.feedback(llm.invoke("hi"), correct=False)
    assert -0.5 + 0.1 * 0.3 == pytest.approx(policy.threshold)


def test_concurrent_calls_and_feedback_lose_nothing():
    """Feedback from many threads is counted once per call, and moves the threshold once."""
    monitor = DriftMonitor(0.5)
    policy = AdaptiveThreshold(mean_logprob, -0.9, target=0.5, low=-5, high=5, rate=0.001)
    llm = _watched(FeedbackLoop([monitor]), policy)

    def work():
        for _ in range(20):
            message = llm.invoke("hi")
            llm.feedback(message, correct=False)
            llm.feedback(message.id, correct=False)

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


def test_mutation_a_full_queue_that_counts_deferrals_is_noticed(monkeypatch):
    """A full queue that still counts deferred calls is seen by the check above."""
    monkeypatch.setattr(FeedbackLoop, "pending", property(lambda self: 0))
    with pytest.raises(AssertionError):
        test_while_too_many_are_under_way_nothing_is_counted()


def test_labels_come_from_langsmith(monkeypatch):
    """What reviewers say in LangSmith of a run reaches the monitors, once per call."""
    monkeypatch.setattr(feedback, "_BATCH", 7)
    monitor, told = DriftMonitor(0.3), []
    loop = FeedbackLoop([monitor, told.append])
    llm = _watched(loop)
    with LangSmithServer() as server:
        client = Client(api_url=server.url, api_key="ls-none")
        tracer = LangChainTracer(client=client, project_name="p")
        messages = [llm.invoke(f"{i}", {"callbacks": [tracer]}) for i in range(30)]
        client.flush()
        session = uuid4()
        roots = [root.run["id"] for root in server.trees()]
        assert {str(run) for run in roots} == set(loop.waiting)
        for number, run in enumerate(roots):
            score = float(number % 3 > 0)
            client.create_feedback(run, "correctness", score=score, session_id=session)
            client.create_feedback(run, "style", score=0.0, session_id=session)
        client.create_feedback(roots[0], "correctness", value="no score", session_id=session)
        client.flush()
        assert 30 == feedback_from_langsmith(llm, client)
        assert 0 == feedback_from_langsmith(llm, client)
        assert 0 == feedback_from_langsmith(llm, client, run_ids=[roots[0], "0" * 32])
        client.cleanup()
    assert 30 == monitor.observations == len(messages)
    assert 10 == sum(one.loss for one in told)


def test_langsmith_needs_a_loop():
    """Without a loop nothing is asked, and the error says what to give."""
    with pytest.raises(ConfigurationError, match="has no feedback_loop"):
        feedback_from_langsmith(cascade(), None)
