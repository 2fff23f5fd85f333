"""The main flow: construction, pins, routes, errors, and what is told in which order."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from cascadellm import (
    Always,
    Answer,
    Cascade,
    ConfigurationError,
    Decision,
    Never,
    Policy,
    Price,
    Request,
    ScoreUnavailableError,
    Threshold,
    Tier,
    mean_logprob,
)
from cascadellm.drivers import Done, advance, drive
from cascadellm.effects import Interrupted, Relay
from cascadellm.events import (
    Accepted,
    Decided,
    Failed,
    TierAnswered,
    TierFailed,
    TierSkipped,
    TierStarted,
    observed,
    record_cascade,
)
from cascadellm.perform import LocalPerformer
from cascadellm.policies import Moment
from cascadellm.testing import EventRecorder, FakeModel
from tests.engine.running import ASKED, MODES, run


@dataclass(frozen=True, slots=True)
class Route(Policy):
    """Skips the tier; `goto` says where to."""

    goto: int | None = None

    def before(self, moment: Moment) -> Decision:
        return Decision(True, self.name, code="route", reason="as told", goto=self.goto)


@dataclass(frozen=True, slots=True)
class Jump(Policy):
    """Defers after the answer, to a given tier."""

    goto: int

    def after(self, moment: Moment) -> Decision:
        return Decision(True, self.name, code="jump", goto=self.goto)


def fakes(count: int, **first: Any) -> list[FakeModel]:
    """Return fakes t0, t1, ... that say their names."""
    return [
        FakeModel(**{"reply": f"from t{i}", "name": f"t{i}", **(first if i == 0 else {})})
        for i in range(count)
    ]


# --- construction ---------------------------------------------------------------------


@pytest.mark.parametrize("tiers", [[], (), None, "hf:model", 3])
def test_cascade_when_tiers_are_no_list(tiers: Any) -> None:
    """Tiers must be a list of at least one model."""
    with pytest.raises(ConfigurationError, match="at least one model"):
        Cascade(tiers, Never())


@pytest.mark.parametrize(("count", "policies"), [(2, 0), (2, 2), (3, 1), (1, 1)])
def test_cascade_when_policies_are_miscounted(count: int, policies: int) -> None:
    """N tiers take N - 1 policies, and the error says both numbers."""
    with pytest.raises(ConfigurationError, match=f"{count} tiers .* got {policies}"):
        Cascade(fakes(count), [Never()] * policies)


def test_cascade_when_no_policy_is_given() -> None:
    """Two tiers need a policy; one tier needs none."""
    with pytest.raises(ConfigurationError, match="need a policy"):
        Cascade(fakes(2))
    assert "from t0" == run(Cascade(fakes(1))).answer.text


@pytest.mark.parametrize(
    "options",
    [{"on_tier_error": "ignore"}, {"on_exhausted": "first"}, {"deadline_s": 0}],
)
def test_cascade_when_an_option_is_unknown(options: dict[str, Any]) -> None:
    """A choice that does not exist is refused at construction."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Cascade(fakes(1), **options)


def test_cascade_when_a_retry_is_wrong() -> None:
    """A tier's retry setting is checked when the cascade is built, not at its first call."""
    with pytest.raises(ConfigurationError, match="retry expects"):
        Cascade([Tier(FakeModel(), retry="often")])


def test_cascade_when_one_policy_stands_for_all() -> None:
    """One policy is used at each boundary."""
    outcome = run(Cascade(fakes(4), Always()))

    assert ["escalate"] * 3 + ["accept"] == [a.action for a in outcome.trace.attempts]


def test_cascade_when_the_policy_is_exchanged() -> None:
    """`with_policy` keeps tiers, options and clock, and leaves the original as it is."""
    first = Cascade(fakes(2), Never(), on_tier_error="raise", on_exhausted="best", deadline_s=9)
    second = first.with_policy(Always())

    assert ("t0", "t1") == (run(first).trace.answered_by, run(second).trace.answered_by)
    assert (first.tiers, "raise", "best", 9, first.clock) == (
        second.tiers,
        second.on_tier_error,
        second.on_exhausted,
        second.deadline_s,
        second.clock,
    )


def test_cascade_when_tiers_are_used() -> None:
    """A call changes neither tiers nor policies."""
    cascade = Cascade(fakes(2), Threshold(mean_logprob, -0.5))
    before = (cascade.tiers, cascade.policies, repr(cascade))
    run(cascade)

    assert before == (cascade.tiers, cascade.policies, repr(cascade))


def test_cascade_repr_when_a_tier_holds_a_secret() -> None:
    """Call arguments and models, which may hold keys, do not show in reprs."""
    tier = Tier(FakeModel("x", name="m"), kwargs={"api_key": "sk-planted"})

    assert "sk-planted" not in repr(Cascade([tier])) + repr(tier)


def test_reads_when_asked_per_boundary() -> None:
    """A tier is asked for logprobs only where its boundary's policy reads them."""
    cascade = Cascade(fakes(3), [Threshold(mean_logprob, -1), Never()])

    assert [{"logprobs"}, set(), set()] == [set(cascade.reads(i)) for i in range(3)]


# --- pins, routes, admission ----------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_pin_when_the_tier_is_in_the_middle(mode: str) -> None:
    """A pinned tier is asked alone, and no policy decides."""
    models = fakes(3)
    outcome = run(Cascade(models, Always()), mode, pin="t1")

    assert ("t1", 1, False) == (
        outcome.trace.answered_by,
        outcome.trace.tier,
        outcome.trace.escalated,
    )
    assert [0, 1, 0] == [len(model.calls) for model in models]
    assert None is outcome.trace.attempts[0].policy


@pytest.mark.parametrize("mode", MODES)
def test_start_when_the_tier_is_in_the_middle(mode: str) -> None:
    """A call that begins at a tier leaves out those before it; the policies go on deciding."""
    for policy, answered_by in ((Always(), "t2"), (Never(), "t1")):
        models = fakes(3)
        outcome = run(Cascade(models, policy), mode, start="t1")
        assert answered_by == outcome.trace.answered_by
        assert policy.name == outcome.trace.attempts[0].policy
        assert (answered_by == "t2") == outcome.trace.escalated
        assert [0, 1, int(answered_by == "t2")] == [len(model.calls) for model in models]


def test_start_when_the_name_is_unknown() -> None:
    """An unknown name lists the tiers; a pin stands before a start."""
    with pytest.raises(ConfigurationError, match="no tier is named 't9'; tiers: 't0', 't1'"):
        run(Cascade(fakes(2), Never()), start="t9")
    assert "t0" == run(Cascade(fakes(2), Never()), pin="t0", start="t1").trace.answered_by


def test_pin_when_the_name_is_unknown() -> None:
    """An unknown name lists the tiers."""
    with pytest.raises(ConfigurationError, match="no tier is named 't9'; tiers: 't0', 't1'"):
        run(Cascade(fakes(2), Never()), pin="t9")


@pytest.mark.parametrize(
    ("goto", "expected"), [(None, "t1"), (1, "t1"), (2, "t2"), (3, "t3"), (99, "t3"), (0, "t1")]
)
@pytest.mark.parametrize("policy", [Route, Jump])
def test_goto_when_a_policy_names_a_tier(policy: Any, goto: int | None, expected: str) -> None:
    """`goto` leads forward to that tier, past the end to the last, never back."""
    if policy is Jump and goto is None:
        return
    cascade = Cascade(fakes(4), [policy(goto), Never(), Never()])

    assert expected == run(cascade).trace.answered_by


def test_skip_when_tiers_are_passed_over() -> None:
    """Every tier passed over is recorded as skipped, unasked and free of cost."""
    models = fakes(4)
    outcome = run(Cascade([Tier(m, price=Price(1, 1)) for m in models], Route(3)))

    assert ["skip"] * 3 + ["accept"] == [a.action for a in outcome.trace.attempts]
    assert [0, 0, 0, 1] == [len(model.calls) for model in models]
    assert [0.0] * 3 == [a.cost_usd for a in outcome.trace.attempts[:3]]
    assert outcome.trace.escalated
    assert outcome.trace.cost_usd is not None


def test_before_when_it_does_not_defer() -> None:
    """A route that does not defer asks the tier."""

    class Stay(Policy):
        def before(self, moment: Moment) -> Decision:
            return Decision(False, "stay")

    assert "t0" == run(Cascade(fakes(2), Stay())).trace.answered_by


@pytest.mark.parametrize("mode", MODES)
def test_admit_when_a_tier_cannot_take_the_request(mode: str) -> None:
    """A tier that cannot take the request is skipped with the reason; the last is asked."""

    def admit(tier: Tier, request: Request) -> tuple[str, str] | None:
        return ("no_tools", f"{tier.label} has no tools")

    outcome = run(Cascade(fakes(3), Never()), mode, admit=admit)

    assert [("skip", "no_tools"), ("skip", "no_tools"), ("accept", "last")] == [
        (a.action, a.code) for a in outcome.trace.attempts
    ]
    assert "admission" == outcome.trace.attempts[0].policy


# --- errors -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_error_when_every_tier_fails(mode: str) -> None:
    """The last tier's own exception reaches the caller with notes on all tiers."""

    class MineError(Exception):
        pass

    failing = [FakeModel(ValueError("first"), name="a"), FakeModel(MineError("second"), name="b")]
    with pytest.raises(MineError, match="second") as caught:
        run(Cascade(failing, Never()), mode)

    notes = caught.value.__notes__
    assert "raised by tier 'b' (index 1) of the cascade" == notes[0]
    assert "earlier tier 'a': ValueError: first" == notes[1]
    assert None is caught.value.__cause__


def test_error_when_no_tier_has_answered_and_best_is_wanted() -> None:
    """Without an earlier answer `on_exhausted="best"` raises the last error."""
    failing = [FakeModel(ValueError("x"), name="a"), FakeModel(KeyError("y"), name="b")]
    with pytest.raises(KeyError, match="y"):
        run(Cascade(failing, Never(), on_exhausted="best"))


@pytest.mark.parametrize("mode", MODES)
def test_best_when_the_last_tier_fails(mode: str) -> None:
    """`on_exhausted="best"` gives the latest earlier answer and keeps the error on record."""
    models = [*fakes(2), FakeModel(TimeoutError("slow"), name="t2")]
    outcome = run(Cascade(models, Always(), on_exhausted="best"), mode)

    assert ("from t1", "t1", 1) == (
        outcome.answer.text,
        outcome.trace.answered_by,
        outcome.trace.tier,
    )
    assert "TimeoutError: slow" == outcome.trace.attempts[2].error


@pytest.mark.parametrize("mode", MODES)
def test_raise_when_tier_errors_must_not_escalate(mode: str) -> None:
    """`on_tier_error="raise"` passes the first tier's error on and asks no other."""
    large = FakeModel("x", name="large")
    cascade = Cascade([FakeModel(OSError("down"), name="a"), large], Never(), on_tier_error="raise")
    with pytest.raises(OSError, match="down"):
        run(cascade, mode)

    assert [] == large.calls


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_cancellation_when_a_tier_is_interrupted(kind: type[BaseException]) -> None:
    """What is no Exception passes through and asks no further tier."""

    class Broken(FakeModel):
        def generate(self, messages: Any, **kwargs: Any) -> Answer:
            raise kind

    large = FakeModel("x", name="large")
    with pytest.raises(kind):
        run(Cascade([Broken(name="a"), large], Never()))

    assert [] == large.calls


def test_interrupted_when_text_was_shown() -> None:
    """A live stream that breaks after text was shown asks nothing again and keeps its type."""
    models = fakes(2)
    plan = Cascade([models[0], Tier(models[1], retry=5)], Always(), on_exhausted="best").plan(ASKED)
    told = EventRecorder()
    perform = LocalPerformer([told])
    step = advance(plan, perform)
    assert isinstance(step, Relay)
    with pytest.raises(ConnectionError, match="cut"):
        advance(plan, perform, throw=Interrupted(ConnectionError("cut")))

    assert [1, 0] == [len(model.calls) for model in models]
    assert ("error", "connection") == (
        told.of(TierFailed)[0].attempt.action,
        told.of(TierFailed)[0].attempt.code,
    )
    assert 1 == len(told.of(Failed))


def test_relay_when_a_draft_is_accepted() -> None:
    """Before the relay of an accepted draft everything is decided; after it only the end."""
    told = EventRecorder()
    plan = Cascade(fakes(2), Never()).plan(ASKED)
    perform = LocalPerformer([told])
    step = advance(plan, perform)

    assert isinstance(step, Relay)
    assert isinstance(step.source, Answer)
    assert [TierStarted, TierAnswered, Decided] == [type(e) for e in told.events]
    last = advance(plan, perform, send=step.source)
    assert isinstance(last, Done)
    assert Accepted is type(told.events[-1])


def test_policy_error_when_a_policy_breaks() -> None:
    """A policy that raises defers, and the record says what it raised."""

    def broken(answer: Answer) -> bool:
        raise ZeroDivisionError("oops")

    first = run(Cascade(fakes(2), broken)).trace.attempts[0]

    assert ("escalate", "policy_error") == (first.action, first.code)
    assert "ZeroDivisionError: oops" in first.reason


def test_policy_error_when_a_policy_raises_an_error_of_ours() -> None:
    """Errors of our own, such as a score that must not be missing, reach the caller."""
    cascade = Cascade(fakes(2, logprob=None), Threshold(mean_logprob, -1, missing="raise"))
    with pytest.raises(ScoreUnavailableError, match="tier 't0' gave no token logprobs"):
        run(cascade)


@pytest.mark.parametrize("value", [3, 0.5, "yes", object()])
def test_policy_error_when_a_policy_returns_nonsense(value: Any) -> None:
    """A policy that returns no Decision is a configuration error that names it."""

    class Odd(Policy):
        def after(self, moment: Moment) -> Any:
            return value

    with pytest.raises(ConfigurationError, match="policy 'Odd' must return a Decision"):
        run(Cascade(fakes(2), Odd()))


def test_policy_when_it_keeps_another_answer() -> None:
    """A decision may put another answer in place of the draft."""

    class Better(Policy):
        def after(self, moment: Moment) -> Decision:
            return Decision(False, "Better", answer=Answer("voted"))

    outcome = run(Cascade(fakes(2), Better()))

    assert ("voted", ((0, 5, "t0"),)) == (outcome.answer.text, outcome.trace.spans)


def test_moment_when_a_later_boundary_decides() -> None:
    """A policy sees tiers, earlier attempts, earlier answers and the cost so far."""
    seen: list[Moment] = []

    class Look(Policy):
        def after(self, moment: Moment) -> Decision:
            seen.append(moment)
            return Decision(True, "Look")

    tiers = [Tier(m, price=Price(1, 1)) for m in fakes(3)]
    run(Cascade(tiers, Look()))

    assert [0, 1] == [m.tier for m in seen]
    assert ["from t0"] == [a.text for a in seen[1].answers if a is not None]
    assert ["escalate"] == [a.action for a in seen[1].attempts]
    assert 0 < (seen[1].cost_usd or 0)
    assert ("t0", "t1", "t2") == tuple(t.label for t in seen[0].tiers)


def test_moment_when_there_is_no_answer_yet() -> None:
    """Reading the draft before the tier was asked is an error in words."""
    with pytest.raises(ConfigurationError, match="no answer before the tier was asked"):
        _ = Moment(ASKED, 0, "t0", ()).draft


# --- events -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_events_when_a_call_escalates_fails_over_and_skips(mode: str) -> None:
    """Handlers are told in the order of what happens, each thing once."""
    told = EventRecorder()
    models = [*fakes(2), FakeModel(OSError("x"), name="t2"), FakeModel("y", name="t3")]
    run(Cascade(models, [Route(1), Always(), Never()]), mode, handlers=[told])

    assert [
        TierSkipped,
        TierStarted,
        TierAnswered,
        Decided,
        TierStarted,
        TierFailed,
        TierStarted,
        TierAnswered,
        Accepted,
    ] == [type(event) for event in told.events]
    assert (None, "from t1", None, "y") == told.events[-1].drafts


def test_events_when_a_handler_raises(caplog: pytest.LogCaptureFixture) -> None:
    """A handler that raises is logged and changes nothing; the next one is still told."""

    class Bad:
        def on_event(self, event: Any) -> None:
            raise RuntimeError("handler bug")

    told = EventRecorder()
    outcome = run(Cascade(fakes(1)), handlers=[Bad(), told])

    assert "from t0" == outcome.answer.text
    assert 3 == len(told.events)
    assert "event handler 'Bad' failed" in caplog.text


def test_events_when_nobody_listens() -> None:
    """`observed` says whether a handler or a recorder is there."""
    assert not observed([])
    assert observed([EventRecorder()])
    with record_cascade():
        assert observed([])
    assert not observed([])


# --- cost ---------------------------------------------------------------------------------


def test_cost_when_all_prices_are_known() -> None:
    """The cost is the sum over all paid attempts: tokens times price plus time."""
    clock_values = iter(range(1000))
    tiers = [Tier(m, price=Price(100, 200, per_second=3)) for m in fakes(2)]
    cascade = Cascade(tiers, Always(), clock=lambda: float(next(clock_values)))
    trace = run(cascade).trace
    per_call = [
        (a.input_tokens * 100 + a.output_tokens * 200) / 1e6 + 3 * a.latency_s
        for a in trace.attempts
        if a.input_tokens is not None and a.output_tokens is not None
    ]

    assert trace.cost_usd == pytest.approx(sum(per_call))
    assert {"t0", "t1"} == set(trace.tokens_by_tier)


@pytest.mark.parametrize(
    ("prices", "known"),
    [
        ((None, None), False),
        ((Price(), None), False),
        ((None, Price()), False),
        ((Price(), Price()), True),
    ],
)
def test_cost_when_a_price_is_unknown(prices: tuple[Price | None, ...], known: bool) -> None:
    """One unknown price among the paid attempts makes the sum unknown, never zero."""
    tiers = [Tier(m, price=p) for m, p in zip(fakes(2), prices, strict=True)]

    assert known == (run(Cascade(tiers, Always())).trace.cost_usd is not None)


def test_cost_when_a_tier_was_never_asked() -> None:
    """The unknown price of a tier that was not asked does not matter."""
    tiers = [Tier(FakeModel("x", name="a"), price=Price(1, 1)), FakeModel("y", name="b")]

    assert None is not run(Cascade(tiers, Never())).trace.cost_usd


def test_cost_when_a_tier_gives_no_usage() -> None:
    """Without usage a token price gives no cost; a price per second does."""

    class Mute(FakeModel):
        def generate(self, messages: Any, **kwargs: Any) -> Answer:
            return Answer("x")

    priced = Cascade([Tier(Mute(name="a"), price=Price(1, 1))])
    timed = Cascade([Tier(Mute(name="a"), price=Price(per_second=1))])

    assert None is run(priced).trace.cost_usd
    assert None is not run(timed).trace.cost_usd


class LimitedError(Exception):
    """A provider's rate limit, which it does not bill."""

    status_code = 429


@pytest.mark.parametrize(("error", "known"), [(LimitedError("x"), True), (OSError("x"), False)])
def test_cost_when_an_attempt_failed(error: Exception, known: bool) -> None:
    """A failure that providers do not bill costs nothing; any other is unknown."""
    tiers = [
        Tier(FakeModel(error, name="a"), price=Price(1, 1)),
        Tier(FakeModel("x", name="b"), price=Price(1, 1)),
    ]

    assert known == (run(Cascade(tiers, Never())).trace.cost_usd is not None)


# --- mutations ------------------------------------------------------------------------------


def sharp(policy: Policy) -> tuple[str | None, str | None, str | None]:
    """Return who answers below, at and above a threshold of -0.5."""
    names = [
        run(Cascade(fakes(2, logprob=value), policy)).trace.answered_by
        for value in (-0.51, -0.5, -0.49)
    ]
    return names[0], names[1], names[2]


def test_threshold_when_the_score_is_at_the_edge() -> None:
    """A score equal to the threshold accepts."""
    assert ("t1", "t0", "t0") == sharp(Threshold(mean_logprob, -0.5))


def test_threshold_when_the_sign_is_flipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The edge test has power: a flipped comparison gives another result."""
    right = Threshold.after

    def flipped(self: Threshold, moment: Moment) -> Decision:
        decision = right(self, moment)
        return Decision(not decision.defer, decision.policy)

    monkeypatch.setattr(Threshold, "after", flipped)

    assert ("t1", "t0", "t0") != sharp(Threshold(mean_logprob, -0.5))


def test_threshold_when_ties_are_deferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """The edge test has power: deferring ties gives another result."""
    right = Threshold.after

    def strict(self: Threshold, moment: Moment) -> Decision:
        decision = right(self, moment)
        return Decision(decision.defer or decision.score == decision.threshold, decision.policy)

    monkeypatch.setattr(Threshold, "after", strict)

    assert ("t1", "t0", "t0") != sharp(Threshold(mean_logprob, -0.5))


def test_drive_when_the_plan_is_left_unfinished() -> None:
    """A driver that is interrupted closes the plan, so no place in a tier stays taken."""

    class Stop(BaseException):
        pass

    plan = Cascade(fakes(1)).plan(ASKED)

    def perform(effect: Any) -> Any:
        raise Stop

    with pytest.raises(Stop):
        drive(plan, perform)
    assert None is plan.gi_frame
