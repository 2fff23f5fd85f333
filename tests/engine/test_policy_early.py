"""Early abort and prefix commitment: the same decision whether or not the tier streams."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cascadellm import (
    Answer,
    Cascade,
    ConfigurationError,
    Decision,
    EarlyAbort,
    Policy,
    PrefixCommit,
    Price,
    Request,
    Threshold,
    Tier,
    TokenScore,
    Valid,
    mean_logprob,
    min_logprob,
)
from cascadellm.drivers import Done, aadvance, advance
from cascadellm.effects import Call, Interrupted, Shown
from cascadellm.perform import AsyncLocalPerformer, LocalPerformer
from cascadellm.policies import Moment
from cascadellm.testing import FakeModel
from cascadellm.watching import STOPPED, Gate, Growing
from tests.engine.deciding import ASKED, PAID
from tests.engine.running import MODES, run


def scored(*logprobs: float) -> Answer:
    """Return an answer of words with these log-probabilities."""
    tokens = tuple(TokenScore(f"w{i} ", value) for i, value in enumerate(logprobs))
    return Answer("".join(t.token for t in tokens), tokens=tokens, finish_reason="stop")


def two(small: Any, policy: Any, **options: Any) -> tuple[Cascade, FakeModel, FakeModel]:
    """Return a cascade of two priced fakes, and the fakes."""
    first, last = FakeModel(small, name="small", **options), FakeModel("large", name="large")
    return Cascade([Tier(first, price=PAID), Tier(last, price=PAID)], policy), first, last


class NoStream(FakeModel):
    """A tier whose stream gives no scores until its end."""

    def stream(self, messages: Any, **kwargs: Any) -> Any:
        for piece in super().stream(messages, **kwargs):
            yield piece if piece.answer is not None else type(piece)(text=piece.text)

    async def astream(self, messages: Any, **kwargs: Any) -> Any:
        for piece in self.stream(messages, **kwargs):
            yield piece


def shown_live(cascade: Cascade, how: str, request: Request = ASKED) -> tuple[list[str], Any]:
    """Stream a call; return the live pieces' texts and the outcome."""
    if how == "sync":
        return _shown(cascade, request)
    return asyncio.run(_ashown(cascade, request))


def _shown(cascade: Cascade, request: Request) -> tuple[list[str], Any]:
    plan, perform, texts = cascade.plan(request), LocalPerformer(), []
    step = advance(plan, perform)
    while not isinstance(step, Done):
        source = step.source
        if not isinstance(source, Call):
            step = advance(plan, perform, send=source)
            continue
        gate = Gate(source.watch or (lambda answer: "commit"), Growing())
        try:
            texts += [piece.text for piece in perform.live(source, gate)]
            step = advance(plan, perform, send=gate.result())
        except Exception as error:
            step = advance(plan, perform, throw=Interrupted(error) if gate.shown else error)
    return texts, step.value


async def _ashown(cascade: Cascade, request: Request) -> tuple[list[str], Any]:
    plan, perform, texts = cascade.plan(request), AsyncLocalPerformer(), []
    step = await aadvance(plan, perform)
    while not isinstance(step, Done):
        source = step.source
        if not isinstance(source, Call):
            step = await aadvance(plan, perform, send=source)
            continue
        gate = Gate(source.watch or (lambda answer: "commit"), Growing())
        try:
            async for piece in perform.live(source, gate):
                texts.append(piece.text)
            step = await aadvance(plan, perform, send=gate.result())
        except Exception as error:
            thrown = Interrupted(error) if gate.shown else error
            step = await aadvance(plan, perform, throw=thrown)
    return texts, step.value


both = pytest.mark.parametrize("how", ["sync", "async"])


# --- EarlyAbort -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_abort_when_the_first_tokens_are_hopeless(mode: str) -> None:
    """The draft is stopped right after the deciding token, its stream closed, its part paid."""
    policy = EarlyAbort(mean_logprob, -1.0, after_tokens=3) | Threshold(mean_logprob, -0.5)
    cascade, small, _ = two(scored(-2, -2, -2, *[-0.01] * 50), policy)
    trace = run(cascade, mode).trace
    first = trace.attempts[0]

    assert ("large", "stopped", "early_abort") == (trace.answered_by, first.action, first.code)
    assert (3, 1) == (first.output_tokens, small.closed)
    assert first.cost_usd == pytest.approx((first.input_tokens or 0) / 1e6 + 3 / 1e6)
    assert trace.escalated
    assert -2 == first.score


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("logprobs", "answered_by", "code"),
    [
        ([-0.1] * 6, "small", "score"),
        ([-0.9] * 6, "large", "score"),
        ([-2, -2], "large", "score"),
        ([-1.0] * 3 + [-0.01] * 30, "small", "score"),
    ],
)
def test_abort_when_the_draft_goes_on(
    mode: str, logprobs: list[float], answered_by: str, code: str
) -> None:
    """A draft that is not stopped is written to its end and decided by the other part."""
    policy = EarlyAbort(mean_logprob, -1.0, after_tokens=3) | Threshold(mean_logprob, -0.5)
    cascade, small, _ = two(scored(*logprobs), policy)
    trace = run(cascade, mode).trace

    assert (answered_by, code, 0) == (trace.answered_by, trace.attempts[0].code, small.closed)
    assert len(logprobs) == trace.attempts[0].output_tokens


@pytest.mark.parametrize("mode", MODES)
def test_abort_when_the_tier_gives_no_scores_while_it_writes(mode: str) -> None:
    """Without scores on the way the finished draft gets the same decision."""
    model = NoStream(scored(-2, -2, -2, -0.01), name="small")
    cascade = Cascade(
        [model, FakeModel("large", name="large")], EarlyAbort(mean_logprob, -1.0, after_tokens=3)
    )
    first = run(cascade, mode).trace.attempts[0]

    assert ("escalate", "early_abort", 4) == (first.action, first.code, first.output_tokens)


def test_abort_when_scores_are_missing() -> None:
    """A tier without logprobs is never stopped; the other part decides."""
    cascade, _, _ = two("some words here", EarlyAbort(mean_logprob, -1), logprob=None)
    first = run(cascade).trace.attempts[0]

    assert ("accept", "not_stopped", None) == (first.action, first.code, first.score)


def test_abort_when_the_sign_is_flipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The abort tests have power: a watcher that stops good drafts is noticed."""
    right = EarlyAbort.watch

    def flipped(self: EarlyAbort, moment: Moment) -> Any:
        inner = right(self, moment)
        return lambda answer: {"stop": "enough", "enough": "stop"}.get(inner(answer), "go_on")

    monkeypatch.setattr(EarlyAbort, "watch", flipped)
    cascade, small, _ = two(scored(*[-0.1] * 20), EarlyAbort(mean_logprob, -1, after_tokens=3))
    run(cascade)

    assert 1 == small.closed


def test_stopped_draft_when_a_policy_would_accept_it() -> None:
    """A draft that was cut short never stands, whatever the policy says afterwards."""

    class Careless(Policy):
        def watch(self, moment: Moment) -> Any:
            return lambda answer: "stop"

        def after(self, moment: Moment) -> Decision:
            return Decision(False, "Careless", reason="fine by me")

    cascade, _, _ = two(scored(-1, -1, -1), Careless())
    outcome = run(cascade)

    assert ("large", "stopped") == (outcome.answer.text, outcome.trace.attempts[0].code)


def test_stopped_draft_when_the_last_tier_fails() -> None:
    """A draft that was cut short is no best earlier answer."""
    small = FakeModel(scored(-2, -2, -2, -2), name="small")
    cascade = Cascade(
        [small, FakeModel(OSError("down"), name="large")],
        EarlyAbort(mean_logprob, -1, after_tokens=2),
        on_exhausted="best",
    )
    with pytest.raises(OSError, match="down"):
        run(cascade)


def test_watcher_when_it_raises(caplog: pytest.LogCaptureFixture) -> None:
    """A watcher that raises decides nothing; the finished draft is decided as ever."""

    class Broken(Policy):
        def watch(self, moment: Moment) -> Any:
            def watch(answer: Answer) -> Any:
                raise ZeroDivisionError("oops")

            return watch

    cascade, _, _ = two(scored(-1, -1), Broken())

    assert "small" == run(cascade).trace.answered_by
    assert "watcher of a growing draft failed" in caplog.text


# --- PrefixCommit ---------------------------------------------------------------------------


@both
def test_commit_when_the_first_tokens_are_good(how: str) -> None:
    """The held pieces come out together, the later ones live, and the record says why."""
    cascade, _, large = two(scored(*[-0.1] * 6), PrefixCommit(mean_logprob, -0.5, tokens=3))
    texts, outcome = shown_live(cascade, how)

    assert ["w0 ", "w1 ", "w2 ", "w3 ", "w4 ", "w5 ", ""] == texts
    assert ("small", "prefix") == (outcome.trace.answered_by, outcome.trace.attempts[0].code)
    assert [] == large.calls


@both
def test_commit_when_the_first_tokens_are_bad(how: str) -> None:
    """Nothing of a rejected draft is shown; its stream is closed and the large tier streams."""
    policy = PrefixCommit(mean_logprob, -0.5, tokens=3)
    cascade, small, _ = two(scored(*[-0.9] * 20), policy)
    texts, outcome = shown_live(cascade, how)

    assert "large" == "".join(texts)
    assert (1, "stopped", 3) == (
        small.closed,
        outcome.trace.attempts[0].action,
        outcome.trace.attempts[0].output_tokens,
    )


@both
def test_commit_when_the_rest_turns_bad(how: str) -> None:
    """The decision after the first tokens is final: what is shown stays."""
    logprobs = [-0.1, -0.1, -9.0, -9.0]
    cascade, _, _ = two(scored(*logprobs), PrefixCommit(mean_logprob, -0.5, tokens=2))
    texts, outcome = shown_live(cascade, how)

    assert "w0 w1 w2 w3 " == "".join(texts) == outcome.answer.text


@both
def test_commit_when_the_answer_is_short(how: str) -> None:
    """An answer shorter than the prefix is decided as a whole and not shown live."""
    policy = PrefixCommit(mean_logprob, -0.5, tokens=9)
    good, bad = two(scored(-0.1), policy)[0], two(scored(-0.9), policy)[0]

    assert ([], "small") == (shown_live(good, how)[0], shown_live(good, how)[1].trace.answered_by)
    assert "large" == shown_live(bad, how)[1].trace.answered_by


@both
def test_commit_when_tools_are_bound(how: str) -> None:
    """With tools bound nothing is shown before the draft is finished."""
    cascade, _, _ = two(scored(*[-0.1] * 9), PrefixCommit(mean_logprob, -0.5, tokens=2))
    request = Request(ASKED.native, "q", tools=({"name": "add"},))
    texts, outcome = shown_live(cascade, how, request)

    assert ([], "small") == (texts, outcome.trace.answered_by)


@both
def test_commit_when_another_part_may_still_defer(how: str) -> None:
    """Joined with a policy that reads the finished answer, nothing is shown live."""
    policy = PrefixCommit(mean_logprob, -0.5, tokens=2) | Valid()
    cut = Answer("w0 w1 ", tokens=scored(-0.1, -0.1).tokens, finish_reason="length")
    cascade, _, _ = two(cut, policy)
    texts, outcome = shown_live(cascade, how)

    assert "large" == "".join(texts) == outcome.answer.text


@both
def test_commit_when_either_part_may_accept(how: str) -> None:
    """With `&` one part's commitment is enough, because it accepts for all."""
    policy = PrefixCommit(mean_logprob, -0.5, tokens=2) & Threshold(min_logprob, 0)
    cascade, _, _ = two(scored(*[-0.1] * 4), policy)
    texts, outcome = shown_live(cascade, how)

    assert 5 == len(texts)
    assert "small" == outcome.trace.answered_by


@both
def test_commit_when_the_stream_breaks_after_it(how: str) -> None:
    """A stream that breaks after text was shown raises, and no other tier is asked."""

    class Breaking(FakeModel):
        def stream(self, messages: Any, **kwargs: Any) -> Any:
            for place, piece in enumerate(super().stream(messages, **kwargs)):
                if place == 4:
                    raise ConnectionError("cut")
                yield piece

        async def astream(self, messages: Any, **kwargs: Any) -> Any:
            for piece in self.stream(messages, **kwargs):
                yield piece

    large = FakeModel("large", name="large")
    small = Breaking(scored(*[-0.1] * 9), name="small")
    cascade = Cascade([small, large], PrefixCommit(mean_logprob, -0.5, tokens=2))
    with pytest.raises(ConnectionError, match="cut"):
        shown_live(cascade, how)
    assert [] == large.calls


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("logprobs", "answered_by"), [([-0.1] * 4, "small"), ([-0.9] * 4, "large"), ([-0.1], "small")]
)
def test_commit_when_the_call_is_not_streamed(
    mode: str, logprobs: list[float], answered_by: str
) -> None:
    """Whole-answer calls take the same decision."""
    cascade, _, _ = two(scored(*logprobs), PrefixCommit(mean_logprob, -0.5, tokens=2))

    assert answered_by == run(cascade, mode).trace.answered_by


@pytest.mark.parametrize(("missing", "answered_by"), [("defer", "large"), ("accept", "small")])
def test_commit_when_scores_are_missing(missing: Any, answered_by: str) -> None:
    """A missing score defers by default and is never shown live."""
    policy = PrefixCommit(mean_logprob, -0.5, tokens=2, missing=missing)
    cascade, _, _ = two("a b c d", policy, logprob=None)
    texts, outcome = shown_live(cascade, "sync")

    assert answered_by == outcome.trace.answered_by
    assert ("large" if answered_by == "large" else "") == "".join(texts)


def test_relay_when_the_performer_cannot_hold_back() -> None:
    """A streaming driver whose performer cannot watch is never handed a watched draft."""

    class Plain(LocalPerformer):
        watches = False

    cascade, _, _ = two(scored(*[-0.9] * 9), PrefixCommit(mean_logprob, -0.5, tokens=2))
    plan, perform = cascade.plan(ASKED), Plain()
    step = advance(plan, perform)

    assert not isinstance(step, Done)
    assert isinstance(step.source, Call)
    assert "large" == step.source.tier.label
    plan.close()


# --- the gate -------------------------------------------------------------------------------


def test_gate_when_its_consumer_leaves() -> None:
    """Closing the gate's iterator closes the source."""
    model = FakeModel(scored(-1, -1, -1, -1))
    gate = Gate(lambda answer: "commit", Growing())
    pieces = gate.through(model.stream("x"))
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]

    assert 1 == model.closed


def test_gate_when_the_source_is_a_list() -> None:
    """A source that cannot be closed is read all the same."""
    model = FakeModel(scored(-1, -1))
    gate = Gate(None, Growing())

    assert [] == list(gate.through(iter(list(model.stream("x")))))
    result = gate.result()
    assert isinstance(result, Answer)
    assert "w0 w1 " == result.text


def test_gate_when_it_commits() -> None:
    """The result of a committed draft is `Shown`; of a stopped one the cut answer."""
    shown, stopped = Gate(lambda a: "commit", Growing()), Gate(lambda a: "stop", Growing())
    for gate in (shown, stopped):
        list(gate.through(FakeModel(scored(-1, -1)).stream("x")))
    result = stopped.result()

    assert isinstance(shown.result(), Shown)
    assert isinstance(result, Answer)
    assert ("w0 ", STOPPED) == (result.text, result.finish_reason)


# --- arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [EarlyAbort, PrefixCommit])
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((-1, mean_logprob), {}, "expects a score first"),
        ((mean_logprob, float("nan")), {}, "got NaN"),
        ((mean_logprob, "low"), {}, "expects a number"),
        ((mean_logprob, -1), {"after_tokens": 0, "tokens": 0}, "whole number >= 1"),
    ],
)
def test_arguments_when_they_are_wrong(
    kind: Any, arguments: Any, options: Any, message: str
) -> None:
    """Wrong arguments are found at construction."""
    own = {k: v for k, v in options.items() if k in kind.__dataclass_fields__}
    with pytest.raises(ConfigurationError, match=message):
        kind(*arguments, **own)


def test_missing_when_the_choice_is_unknown() -> None:
    """An unknown choice is refused."""
    with pytest.raises(ConfigurationError, match="missing must be"):
        PrefixCommit(mean_logprob, -1, missing="raise")  # type: ignore[arg-type]


def test_config_when_written_and_read() -> None:
    """The policies survive their configs."""
    for policy in (
        EarlyAbort(mean_logprob, -1, after_tokens=4),
        PrefixCommit(min_logprob, -2, tokens=3, missing="accept"),
        EarlyAbort(mean_logprob, -1) | Threshold(mean_logprob, -0.5),
    ):
        assert policy == Policy.from_config(policy.to_config())
        assert policy.reads == {"logprobs"}


def test_price_when_the_prompt_is_unknown() -> None:
    """A stopped draft whose prompt length is unknown has no cost, never zero."""

    class Silent(FakeModel):
        def stream(self, messages: Any, **kwargs: Any) -> Any:
            for piece in super().stream(messages, **kwargs):
                yield type(piece)(text=piece.text, tokens=piece.tokens, answer=piece.answer)

    small = Tier(Silent(scored(*[-2.0] * 9), name="small"), price=Price(1, 1))
    cascade = Cascade([small, FakeModel("x")], EarlyAbort(mean_logprob, -1, after_tokens=2))

    assert None is run(cascade).trace.attempts[0].cost_usd
