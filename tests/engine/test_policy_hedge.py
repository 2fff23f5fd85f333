"""Hedging: overlap, cancellation, cost of the loser, one answer."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from cascadellm import (
    Always,
    Answer,
    Cascade,
    ConfigurationError,
    Decision,
    Hedge,
    Judge,
    Never,
    Policy,
    Price,
    Threshold,
    Tier,
    TokenScore,
    mean_logprob,
    min_logprob,
)
from cascadellm.drivers import adrive
from cascadellm.perform import AsyncLocalPerformer
from cascadellm.policies import Moment
from cascadellm.testing import EventRecorder, FakeModel
from tests.engine.deciding import ASKED, PAID
from tests.engine.running import MODES, run

both = pytest.mark.parametrize("mode", ["invoke", "ainvoke"])


def tiers(
    small: Any = "draft", large: Any = "final", *, draft_s: float = 0.0, large_s: float = 0.0
) -> tuple[list[Tier], FakeModel, FakeModel]:
    """Return two priced tiers that take so long for one word, and their fakes."""
    first = FakeModel(small, name="small", delay_s=draft_s)
    last = FakeModel(large, name="large", delay_s=large_s)
    return [Tier(first, price=PAID), Tier(last, price=PAID)], first, last


def timed(cascade: Cascade, mode: str) -> tuple[Any, float]:
    """Return the outcome and the wall time of a call."""
    begun = time.perf_counter()
    outcome = run(cascade, mode)
    return outcome, time.perf_counter() - begun


@both
@pytest.mark.parametrize(("draft_s", "large_s"), [(0.2, 0.6), (0.6, 0.6)])
def test_hedge_when_the_draft_is_deferred(mode: str, draft_s: float, large_s: float) -> None:
    """An escalated call takes the slower of both, not their sum."""
    both_tiers, _, large = tiers(draft_s=draft_s, large_s=large_s)
    cascade = Cascade(both_tiers, Hedge(Always(), after_s=0))
    outcome, wall_s = timed(cascade, mode)
    slower = max(draft_s, large_s)

    assert ("final", 1) == (outcome.answer.text, len(large.calls))
    # five percent, and what starting a loop or a thread costs on a busy machine
    assert slower <= wall_s < 1.05 * slower + 0.1
    assert ["escalate", "accept"] == [a.action for a in outcome.trace.attempts] or (
        draft_s == large_s
    )


@both
def test_hedge_when_a_judge_decides(mode: str) -> None:
    """The larger tier runs while the draft is being judged."""
    both_tiers, _, _ = tiers(draft_s=0.1, large_s=0.5)
    slow = Tier(FakeModel("Score: 1", name="judge", delay_s=0.4), price=PAID)
    _, wall_s = timed(Cascade(both_tiers, Hedge(Judge(slow), after_s=0)), mode)

    assert wall_s < 1.05 * 0.5 + 0.15


@both
def test_hedge_when_overlap_is_left_out(mode: str) -> None:
    """The timing tests have power: without the hedge the times add up."""
    both_tiers, _, _ = tiers(draft_s=0.3, large_s=0.4)
    _, wall_s = timed(Cascade(both_tiers, Always()), mode)

    assert wall_s >= 0.7


@pytest.mark.parametrize("mode", MODES)
def test_hedge_when_the_draft_is_accepted(mode: str) -> None:
    """An accepted draft does not wait for the larger tier, and charges what is known of it."""
    both_tiers, _, large = tiers("draft", "one two three four", large_s=0.3)
    outcome, wall_s = timed(Cascade(both_tiers, Hedge(Never(), after_s=0)), mode)
    (lost,) = outcome.trace.attempts[0].calls

    assert ("draft", 1) == (outcome.answer.text, len(large.calls))
    assert wall_s < 0.25
    assert ("large", "hedge") == (lost.name, lost.purpose)
    assert (None, None) == (lost.cost_usd, outcome.trace.cost_usd)
    assert not outcome.trace.escalated


@both
def test_hedge_when_the_loser_had_finished(mode: str) -> None:
    """A finished loser is charged in full."""
    both_tiers, _, _ = tiers("draft", "final")
    slow = Tier(FakeModel("Score: 9", name="judge", delay_s=0.3), price=PAID)
    both_tiers[0] = Tier(both_tiers[0].model, name="small", price=PAID)
    outcome = run(Cascade(both_tiers, Hedge(Slow(slow), after_s=0.05)), mode)
    lost = [call for call in outcome.trace.attempts[0].calls if call.purpose == "hedge"]

    assert "draft" == outcome.answer.text
    assert [None] != [call.cost_usd for call in lost]
    assert outcome.trace.cost_usd is not None
    assert {"small", "judge", "large"} == set(outcome.trace.tokens_by_tier)


class Slow(Judge):
    """A judge by another name, so that a policy of the user's own is hedged too."""

    __slots__ = ()


@both
def test_hedge_when_the_draft_is_fast(mode: str) -> None:
    """Before its time the larger tier is not asked at all, and nothing is charged."""
    both_tiers, _, large = tiers()
    outcome = run(Cascade(both_tiers, Hedge(Never(), after_s=5)), mode)

    assert ([], ()) == (large.calls, outcome.trace.attempts[0].calls)
    assert outcome.trace.cost_usd is not None


@both
def test_hedge_when_a_fast_draft_is_deferred(mode: str) -> None:
    """A deferral does not wait for the hedge's time."""
    both_tiers, _, _ = tiers()
    outcome, wall_s = timed(Cascade(both_tiers, Hedge(Always(), after_s=5)), mode)

    assert "final" == outcome.answer.text
    assert wall_s < 1


@both
def test_hedge_when_the_draft_hangs(mode: str) -> None:
    """A draft slower than the larger tier does not make the user wait; its stream is closed."""
    words = " ".join(["word"] * 200)
    both_tiers, small, _ = tiers(words, "final", draft_s=0.05, large_s=0.1)
    told = EventRecorder()
    begun = time.perf_counter()
    outcome = run(Cascade(both_tiers, Hedge(Never(), after_s=0.1)), mode, handlers=[told])
    first = outcome.trace.attempts[0]

    assert time.perf_counter() - begun < 1.5
    assert ("final", "stopped", "hedge") == (outcome.answer.text, first.action, first.code)
    assert outcome.trace.escalated
    assert 1 <= (first.output_tokens or 0) < 30
    time.sleep(0.15)
    assert 1 == small.closed


@both
def test_hedge_when_the_draft_fails(mode: str) -> None:
    """A draft that fails leaves the call to the tier that runs already."""
    both_tiers, _, large = tiers(OSError("down"), large_s=0.1)
    outcome = run(Cascade(both_tiers, Hedge(Never(), after_s=0)), mode)

    assert ("final", ["error", "accept"], 1) == (
        outcome.answer.text,
        [a.action for a in outcome.trace.attempts],
        len(large.calls),
    )


@both
@pytest.mark.parametrize("decides", [Never(), Always()])
def test_hedge_when_the_larger_tier_fails(mode: str, decides: Policy) -> None:
    """A larger tier that fails early leaves the draft alone; a deferred draft meets its error."""
    both_tiers, _, large = tiers("draft", ConnectionError("gone"), draft_s=0.2)
    cascade = Cascade(both_tiers, Hedge(decides, after_s=0))
    if decides == Never():
        outcome = run(cascade, mode)
        assert "draft" == outcome.answer.text
        assert ["ConnectionError: gone"] == [c.error for c in outcome.trace.attempts[0].calls]
    else:
        with pytest.raises(ConnectionError, match="gone"):
            run(cascade, mode)
    assert 1 == len(large.calls)


@both
def test_hedge_when_a_middle_tier_defers_too(mode: str) -> None:
    """The tier that ran ahead is decided by its own boundary and hedged no further."""
    three = [Tier(FakeModel(f"t{i}", name=f"t{i}"), price=PAID) for i in range(3)]
    outcome = run(Cascade(three, [Hedge(Always(), after_s=0), Always()]), mode)

    assert ["t0", "t1", "t2"] == [a.name for a in outcome.trace.attempts]
    assert [1, 1, 1] == [len(tier.model.calls) for tier in three]


@both
def test_hedge_when_the_decision_jumps_past_the_next_tier(mode: str) -> None:
    """A jump past the tier that runs ahead cancels and charges it."""

    class Jump(Policy):
        def after(self, moment: Moment) -> Decision:
            return Decision(True, "Jump", goto=2)

    three = [Tier(FakeModel(f"t{i}", name=f"t{i}", delay_s=0.1 * i), price=PAID) for i in range(3)]
    outcome = run(Cascade(three, [Hedge(Jump(), after_s=0), Never()]), mode)

    assert "t2" == outcome.trace.answered_by
    assert ["hedge"] == [call.purpose for call in outcome.trace.attempts[0].calls]


@both
def test_hedge_when_the_growing_draft_scores_low(mode: str) -> None:
    """`when` starts the larger tier as soon as the growing draft's score is low."""
    tokens = tuple(TokenScore(f"w{i} ", -3.0) for i in range(8))
    draft = Answer("".join(t.token for t in tokens), tokens=tokens, finish_reason="stop")
    both_tiers, _, _ = tiers(draft, "final", draft_s=0.06, large_s=0.4)
    policy = Hedge(Threshold(mean_logprob, -1), when=min_logprob, below=-2, tokens=1)
    outcome, wall_s = timed(Cascade(both_tiers, policy), mode)

    assert "final" == outcome.answer.text
    assert wall_s < 8 * 0.06 + 0.4 - 0.1


@both
def test_hedge_when_the_score_is_high(mode: str) -> None:
    """`when` alone never starts the larger tier for a good draft."""
    both_tiers, _, large = tiers("a b c d e f g h i")
    policy = Hedge(Threshold(mean_logprob, -1), when=mean_logprob, below=-2)
    run(Cascade(both_tiers, policy), mode)

    assert [] == large.calls


async def test_hedge_when_the_caller_is_cancelled() -> None:
    """Cancelling the caller cancels both calls and closes both streams."""
    words = " ".join(["word"] * 200)
    both_tiers, small, large = tiers(words, words, draft_s=0.02, large_s=0.02)
    plan = Cascade(both_tiers, Hedge(Never(), after_s=0)).plan(ASKED)
    task = asyncio.create_task(adrive(plan, AsyncLocalPerformer()))
    await asyncio.sleep(0.15)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.05)

    assert (1, 1) == (small.closed, large.closed)
    assert 1 == len(asyncio.all_tasks())


async def test_hedge_when_calls_run_at_once() -> None:
    """Many hedged calls at once each get their own answer."""

    def echo(messages: Any) -> str:
        return str(messages)

    async def one(number: int) -> str:
        both_tiers, _, _ = tiers(echo, echo, draft_s=0.01, large_s=0.02)
        policy = Hedge(Always() if number % 2 else Never(), after_s=0)
        request = type(ASKED)(f"q{number}", "q")
        outcome = await adrive(Cascade(both_tiers, policy).plan(request), AsyncLocalPerformer())
        return outcome.answer.text

    assert [f"q{n}" for n in range(40)] == await asyncio.gather(*(one(n) for n in range(40)))


@both
def test_hedge_when_tiers_retry(mode: str) -> None:
    """Retries of a tier work beside the other tier."""
    import tenacity

    setting = tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_none())
    both_tiers, small, _ = tiers([OSError("x"), OSError("x"), "draft"], large_s=0.5)
    both_tiers[0] = Tier(small, name="small", retry=setting, price=PAID)

    assert "draft" == run(Cascade(both_tiers, Hedge(Never(), after_s=0.2)), mode).answer.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expects after_s="),
        ({"after_s": -1}, "seconds >= 0"),
        ({"after_s": float("inf")}, "seconds >= 0"),
        ({"when": mean_logprob}, "when= and below= together"),
        ({"after_s": 1, "below": -1}, "when= and below= together"),
        ({"when": 3, "below": -1}, "must be a score"),
        ({"after_s": 1, "tokens": 0}, "whole number >= 1"),
    ],
)
def test_hedge_when_arguments_are_wrong(options: dict[str, Any], message: str) -> None:
    """Wrong arguments are found at construction."""
    with pytest.raises(ConfigurationError, match=message):
        Hedge(Never(), **options)


def test_hedge_when_written_and_read() -> None:
    """The policy survives its config and reads what its parts read."""
    policy = Hedge(Threshold(mean_logprob, -1), after_s=0.5, when=min_logprob, below=-2)

    assert policy == Policy.from_config(policy.to_config())
    assert {"logprobs"} == policy.reads
    assert Price(1, 1) == PAID
