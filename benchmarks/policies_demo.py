"""Every policy on the demo pair: real judges and samples, drafts computed once and replayed."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from cascadellm import (
    Agreement,
    Always,
    Answer,
    Budget,
    Cascade,
    ContextFits,
    EarlyAbort,
    Grounded,
    Hedge,
    Judge,
    NeedsTools,
    Never,
    Policy,
    PrefixCommit,
    Price,
    PTrue,
    Request,
    Route,
    SelfConsistency,
    SelfVerify,
    SemanticEntropy,
    Threshold,
    Tier,
    Valid,
    mean_logprob,
    min_logprob,
)
from cascadellm.answer import Piece
from cascadellm.calibration import CalibrationRecords, fit_router
from cascadellm.demo import Question, load, questions
from cascadellm.evaluation import evaluate
from cascadellm.perform import AsyncLocalPerformer, LocalPerformer, adrive, drive
from cascadellm.policies.base import as_policy

SKILLS = ("word_problem", "one_fact", "two_facts", "not_in_context")
SMALL, LARGE = Price(0.42, 0.42), Price(2.17, 2.17)
"""In proportion to the models' parameters. Unit: USD per million tokens."""

_PROPOSED = "Question: {question}\nProposed answer: {answer}\n"
VERDICT = _PROPOSED + "Is the proposed answer correct? Answer True or False."
SOLVED = _PROPOSED + "Solve the question, then answer True or False."


class Replayed:
    """The small model: what it had said at first, and the model itself when asked again."""

    def __init__(self, model: Any) -> None:
        self.model, self.context_window = model, model.context_window
        self.model_name = model.model_name
        self.supports_tools = False
        self.drafts: dict[str, Answer] = {}

    def generate(self, messages: Any, **kwargs: Any) -> Answer:
        """Answer a question from memory; samples and verdicts are computed."""
        draft = self.drafts.get(messages[-1]["content"])
        if kwargs or draft is None:
            return self.model.generate(messages, **kwargs)  # type: ignore[no-any-return]
        return draft

    def stream(self, messages: Any, **kwargs: Any) -> Iterator[Piece]:
        """Yield a remembered draft token by token."""
        draft = self.generate(messages, **kwargs)
        prompt = None if draft.usage is None else draft.usage.input_tokens
        for token in draft.tokens or ():
            yield Piece(text=token.token, tokens=(token,), input_tokens=prompt)
        yield Piece(answer=draft)


@dataclass
class Pair:
    """The pair with everything both models answered to the questions."""

    small: Replayed
    large: Replayed
    fit: list[Question]
    tune: list[Question]
    test: list[Question]

    @classmethod
    def asked(cls, each: int) -> Pair:
        """Ask both models every question once."""
        small, large = Replayed(load("small")), Replayed(load("large"))
        fit, tune, test = (
            [q for s in SKILLS for q in questions(each, seed, s)] for seed in (30, 31, 32)
        )
        for model in (small, large):
            for item in (*fit, *tune, *test):
                found = model.model.generate(request(item).native)
                model.drafts[item.question] = found
        return cls(small, large, fit, tune, test)

    def tiers(self) -> list[Tier]:
        """Return the priced tiers."""
        return [Tier(self.small, price=SMALL), Tier(self.large, price=LARGE)]

    def right(self, items: Sequence[Question]) -> Any:
        """Return who was right. Shape (n, 2)."""
        models = (self.small, self.large)
        found = [[q.grade(m.drafts[q.question].text) for m in models] for q in items]
        return np.array(found, dtype=float)


def found_nothing(answer: Answer) -> bool:
    """Defer an answer that says that the context holds none."""
    return "not hold" in answer.text


def request(item: Question) -> Request:
    """Return a demo question as a request."""
    chat = [{"role": "user", "content": item.question}]
    return Request(chat, item.question, documents=item.facts)


@dataclass(frozen=True)
class Kind:
    """A policy by its threshold.

    Attributes:
        name: As in the table.
        make: From a threshold to the policy; policies without one ignore it.
        loose: Threshold at which a score is always computed in full and written down.
        of: Score of a request, for policies that write none when they ask the tier.
        plain: Whether there is no threshold to choose.
    """

    name: str
    make: Callable[[float], Policy]
    loose: float = math.inf
    of: Callable[[Request], float | None] | None = None
    plain: bool = False


def kinds(pair: Pair) -> list[Kind]:
    """Return every policy, in the order of the table."""
    small, large = Tier(pair.small, price=SMALL), Tier(pair.large.model, price=LARGE)
    again = {"temperature": 1.0}
    texts = [q.question for q in pair.fit]
    router = fit_router(texts, pair.right(pair.fit), embed=pair.small.model).router

    def short(asked: Request) -> float:
        return -float(len(asked.text))

    def samples(t: float, together: int) -> Policy:
        return SelfConsistency(5, t, key="normalised", together=together, kwargs=again)

    return [
        Kind("Never", lambda _: Never(), plain=True),
        Kind("Always", lambda _: Always(), plain=True),
        Kind("Threshold(mean_logprob)", lambda t: Threshold(mean_logprob, t)),
        Kind("Threshold(min_logprob)", lambda t: Threshold(min_logprob, t)),
        Kind("Valid", lambda _: Valid(), plain=True),
        Kind("SelfConsistency(5), all at once", lambda t: samples(t, 4), 1.0),
        Kind("SelfConsistency(5), one by one", lambda t: samples(t, 1), 1.0),
        Kind("SemanticEntropy(4)", lambda t: SemanticEntropy(min(t, 0), 4, kwargs=again), 0.0),
        Kind("Agreement(small at another temperature)", lambda t: Agreement(
            [Tier(pair.small.model, name="warm", kwargs=again, price=SMALL)], t), 1.0),
        Kind("SelfVerify(4), itself", lambda t: SelfVerify(
            t, 4, model=small, prompt=VERDICT, kwargs=again), 1.0),
        Kind("SelfVerify(1), the large model solves first", lambda t: SelfVerify(
            t, 1, model=large, prompt=SOLVED, kwargs={"temperature": 0.0}), 1.0),
        Kind("PTrue, itself", lambda t: PTrue(t, model=small, prompt=VERDICT), 1.0),
        Kind("PTrue, the large model", lambda t: PTrue(t, model=large, prompt=VERDICT), 1.0),
        Kind("Judge, the large model", lambda _: Judge(
            large, threshold=10, kwargs={"max_new_tokens": 24}), plain=True),
        Kind("Grounded", Grounded, 1.0),
        Kind("Route(prompt length)", lambda t: Route(short, t), of=short),
        Kind("Route(fit_router on hidden states)", lambda t: Route(router, t), of=router),
        Kind("ContextFits(1900)", lambda _: ContextFits(1900), plain=True),
        Kind("NeedsTools", lambda _: NeedsTools(), plain=True),
        Kind("EarlyAbort(mean_logprob, 6 tokens)",
             lambda t: EarlyAbort(mean_logprob, t, after_tokens=6)),
        Kind("PrefixCommit(mean_logprob, 6 tokens)",
             lambda t: PrefixCommit(mean_logprob, t, tokens=6)),
        Kind("EarlyAbort | Threshold(mean_logprob)", lambda t: EarlyAbort(
            mean_logprob, min(8 * t, t), after_tokens=6) | Threshold(mean_logprob, t)),
        Kind("Budget & Threshold(mean_logprob)",
             lambda t: Budget(usd=2.5e-4) & Threshold(mean_logprob, t)),
        Kind("a function: says it found nothing", lambda _: as_policy(found_nothing), plain=True),
    ]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What a policy does on the test questions.

    Attributes:
        policy: Its name.
        norm: Of its score; of its yes or no where it has no score.
        threshold: Chosen on the tuning questions, None where there is none.
        deferred: Share sent on.
        accuracy: Accuracy.
        random: Accuracy of random deferral at that share.
        cost: Relative to always asking the large model, everything charged.
        extra: Calls of the policy per question.
        added_ms: Time that the policy adds to a call, drafts and large answers apart.
    """

    policy: str
    norm: float
    threshold: float | None
    deferred: float
    accuracy: float
    random: float
    cost: float
    extra: float
    added_ms: float


def run(pair: Pair, policy: Policy, items: Sequence[Question]) -> tuple[list[Any], list[float]]:
    """Return the outcome of each question and the seconds it took."""
    cascade, found, seconds = Cascade(pair.tiers(), policy), [], []
    for item in items:
        begun = time.perf_counter()
        found.append(drive(cascade.plan(request(item)), LocalPerformer()))
        seconds.append(time.perf_counter() - begun)
    return found, seconds


def scored(kind: Kind, outcomes: Sequence[Any], items: Sequence[Question]) -> Any:
    """Return each question's score; what was deferred without one is the least trusted."""
    if kind.of is not None:
        return np.array([kind.of(request(item)) for item in items], dtype=float)
    first = [outcome.trace.attempts[0] for outcome in outcomes]
    if kind.plain or all(one.score is None for one in first):
        return np.array([float(one.action == "accept") for one in first])
    found = np.array([math.nan if one.score is None else one.score for one in first], dtype=float)
    fill = [1e3 if one.action == "accept" else -1e3 for one in first]
    return np.where(np.isnan(found), fill, found)


def chosen(score: Any, share: float) -> float:
    """Return the threshold that defers about this share, ties as they fall."""
    values = np.unique(score)
    rates = [(float((score < value).mean()), float(value)) for value in (*values, math.inf)]
    return min(rates, key=lambda pair: abs(pair[0] - share))[1]


def row(pair: Pair, kind: Kind, base_ms: float) -> Row:
    """Choose the threshold on the tuning questions and measure on the others."""
    right = pair.right(pair.test)
    threshold: float | None = None
    if not kind.plain:
        tuned, _ = run(pair, kind.make(kind.loose), pair.tune)
        # as many as the small model gets wrong: the same rule for every policy
        wrong = 1 - pair.right(pair.tune)[:, 0].mean()
        threshold = chosen(scored(kind, tuned, pair.tune), float(wrong))
        threshold = min(threshold, kind.loose) if math.isfinite(kind.loose) else threshold
    full = run(pair, kind.make(kind.loose), pair.test)[0] if not kind.plain else None
    outcomes, seconds = run(pair, kind.make(threshold or 0.0), pair.test)
    score = scored(kind, outcomes if full is None else full, pair.test)
    went = float(np.mean([o.trace.escalated for o in outcomes]))
    graded = [q.grade(o.answer.text) for q, o in zip(pair.test, outcomes, strict=True)]
    records = CalibrationRecords.of(score, right)
    value = evaluate(records, {"it": score}, resamples=0)["it"].values["norm"]
    always = fmean(_cost(pair, q) for q in pair.test)
    small, large = right.mean(axis=0)
    return Row(
        kind.name,
        float(value),
        threshold,
        went,
        fmean(graded),
        float(small + went * (large - small)),
        fmean(o.trace.cost_usd or 0.0 for o in outcomes) / always,
        fmean(sum(len(a.calls) for a in o.trace.attempts) for o in outcomes),
        1e3 * fmean(seconds) - base_ms,
    )


def _cost(pair: Pair, item: Question) -> float:
    return LARGE.cost(pair.large.drafts[item.question].usage) or 0.0


def hedged(pair: Pair, plain: Row) -> Row:
    """Race both live models on the test questions, against the same policy without the race."""
    policy = Threshold(mean_logprob, plain.threshold or 0.0)
    tiers = [Tier(pair.small.model, price=SMALL), Tier(pair.large.model, price=LARGE)]
    found: dict[bool, list[Any]] = {}
    took: dict[bool, float] = {}
    for race in (False, True):
        cascade = Cascade(tiers, Hedge(policy, after_s=0.0) if race else policy)

        async def ask(cascade: Cascade = cascade) -> list[Any]:
            plans = (cascade.plan(request(item)) for item in pair.test)
            return [await adrive(plan, AsyncLocalPerformer()) for plan in plans]

        asyncio.run(ask())
        begun = time.perf_counter()
        found[race] = asyncio.run(ask())
        took[race] = 1e3 * (time.perf_counter() - begun) / len(pair.test)
    outcomes = found[True]
    graded = [q.grade(o.answer.text) for q, o in zip(pair.test, outcomes, strict=True)]
    costs = [_known_cost(outcome) for outcome in outcomes]
    always = fmean(_cost(pair, q) for q in pair.test)
    return Row(
        "Hedge(Threshold(mean_logprob), after_s=0), live",
        plain.norm,
        plain.threshold,
        float(np.mean([o.trace.escalated for o in outcomes])),
        fmean(graded),
        plain.random,
        fmean(costs) / always,
        fmean(sum(len(a.calls) for a in o.trace.attempts) for o in outcomes),
        took[True] - took[False],
    )


def _known_cost(outcome: Any) -> float:
    """Return what is known of a hedged call's cost; a cancelled prefill is not."""
    attempts = outcome.trace.attempts
    calls = [call for attempt in attempts for call in attempt.calls]
    return sum(paid.cost_usd or 0.0 for paid in (*attempts, *calls))


def all_rows(each: int) -> tuple[Pair, list[Row]]:
    """Return the pair and a row for every policy."""
    pair = Pair.asked(each)
    run(pair, Never(), pair.test)
    base_ms = 1e3 * fmean(run(pair, Never(), pair.test)[1])
    rows = []
    for kind in kinds(pair):
        rows.append(row(pair, kind, base_ms))
        print(f"  {rows[-1].policy}: norm {rows[-1].norm:.3f}", flush=True)
    rows.append(hedged(pair, next(r for r in rows if r.policy == "Threshold(mean_logprob)")))
    return pair, rows
