"""Ask every tier of a cascade, whichever framework it belongs to.

The cascade is asked under a policy that defers everything, so each tier answers through the
cascade's own path: its framework, its retries, its prices, its logprobs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from cascadellm.answer import Answer, Decision, Request
from cascadellm.cascade import Cascade
from cascadellm.drivers import drive
from cascadellm.errors import ConfigurationError
from cascadellm.events import CascadeEvent, TierAnswered, TierFailed, record_cascade
from cascadellm.perform import LocalPerformer
from cascadellm.policies.base import Moment, Policy
from cascadellm.tier import Tier

__all__ = ["Asker", "TierAnswer", "asker_of", "each_tier"]

_KNOWN: ContextVar[frozenset[int]] = ContextVar("cascadellm_known_tiers", default=frozenset())


@dataclass(frozen=True, slots=True)
class TierAnswer:
    """What one tier said to one question. Cost in USD, None when unknown."""

    tier: int
    name: str
    answer: Answer
    latency_s: float
    cost_usd: float | None


class Asker(Protocol):
    """Asks the tiers of a cascade."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tiers."""

    def __call__(
        self, question: Any, known: frozenset[int], tell: Callable[[TierAnswer], None]
    ) -> None:
        """Ask the tiers that are not in `known`, telling each answer as it arrives.

        Raises:
            Exception: A tier's own error, after the other tiers were asked.
        """


@dataclass(frozen=True, slots=True)
class EveryTier(Policy):
    """Defers until every tier was asked; skips the tiers already known."""

    wanted: frozenset[str] = frozenset({"logprobs"})

    @property
    def reads(self) -> frozenset[str]:
        return self.wanted

    def before(self, moment: Moment) -> Decision | None:
        if moment.tier not in _KNOWN.get():
            return None
        return Decision(True, self.name, code="known", reason="this tier has answered already")

    def after(self, moment: Moment) -> Decision:
        later = range(moment.tier + 1, len(moment.tiers))
        more = any(index not in _KNOWN.get() for index in later)
        return Decision(more, self.name, code="collect", reason="every tier is asked")


@dataclass(slots=True)
class _Watch:
    """Hears the tiers' answers and errors of one call."""

    tiers: Sequence[Tier]
    tell: Callable[[TierAnswer], None]
    errors: list[Exception] = field(default_factory=list)
    broken: list[Exception] = field(default_factory=list)

    def on_event(self, event: CascadeEvent) -> None:
        if isinstance(event, TierFailed):
            self.errors.append(event.error)
        elif isinstance(event, TierAnswered):
            cost = self.tiers[event.tier].cost(event.answer.usage, event.latency_s)
            said = TierAnswer(event.tier, event.name, event.answer, event.latency_s, cost)
            try:
                self.tell(said)
            except Exception as error:
                # events swallow what handlers raise; a full disk must not pass unseen
                self.broken.append(error)


@dataclass(frozen=True, slots=True)
class _CascadeAsker:
    names: tuple[str, ...]
    tiers: tuple[Tier, ...]
    run: Callable[[Any], Any]

    def __call__(
        self, question: Any, known: frozenset[int], tell: Callable[[TierAnswer], None]
    ) -> None:
        watch = _Watch(self.tiers, tell)
        token = _KNOWN.set(known)
        try:
            with record_cascade(content=False) as recorder:
                recorder.sinks = (watch,)
                self.run(question)
        finally:
            _KNOWN.reset(token)
        for error in (*watch.broken, *watch.errors):
            raise error


@dataclass(frozen=True, slots=True)
class _EachTier:
    names: tuple[str, ...]
    ask: Callable[[int, Any], Answer]
    tiers: tuple[Tier, ...]
    clock: Callable[[], float]

    def __call__(
        self, question: Any, known: frozenset[int], tell: Callable[[TierAnswer], None]
    ) -> None:
        failed: Exception | None = None
        for index, tier in enumerate(self.tiers):
            if index in known:
                continue
            begun = self.clock()
            try:
                answer = self.ask(index, question)
            except Exception as error:
                failed = error
                continue
            latency_s = self.clock() - begun
            cost = tier.cost(answer.usage, latency_s)
            tell(TierAnswer(index, self.names[index], answer, latency_s, cost))
        if failed is not None:
            raise failed


def each_tier(
    tiers: Sequence[Tier], ask: Callable[[int, Any], Answer], clock: Callable[[], float]
) -> Asker:
    """Return an asker over a plain function `ask(tier index, question) -> Answer`."""
    return _EachTier(tuple(t.label for t in tiers), ask, tuple(tiers), clock)


def asker_of(target: Any, *, reads: frozenset[str] = frozenset({"logprobs"})) -> Asker:
    """Return what asks every tier of a cascade.

    Args:
        target: A `cascadellm.Cascade`, or the `CascadeLLM` of either framework.
        reads: What the answers must carry, for the scores that will read them.

    Raises:
        ConfigurationError: The object is no cascade, or has one tier only.
    """
    policy = EveryTier(reads)
    tiers = tuple(t if isinstance(t, Tier) else Tier(t) for t in getattr(target, "tiers", ()) or ())
    if len(tiers) < 2:
        raise ConfigurationError(
            f"expected a cascade with at least two tiers, got {type(target).__name__} with "
            f"{len(tiers)}; pass a Cascade or a CascadeLLM"
        )
    run: Callable[[Any], Any]
    if isinstance(target, Cascade):
        engine = target.with_policy(policy)
        tiers = engine.tiers

        def run(question: Any) -> Any:
            return drive(engine.plan(_request(question)), LocalPerformer())

    elif hasattr(target, "invoke"):
        chain = target.model_copy(update={"policy": policy})
        tiers = chain.engine.tiers
        run = chain.invoke
    elif hasattr(target, "complete"):
        llm = target.with_policy(policy)
        tiers = tuple(getattr(llm, "_cascade").tiers)  # noqa: B009 - no public name yet

        def run(question: Any) -> Any:
            if not isinstance(question, str):
                raise ConfigurationError("a LlamaIndex cascade is asked with text, not messages")
            return llm.complete(question)

    else:
        raise ConfigurationError(f"expected a Cascade or a CascadeLLM, got {type(target).__name__}")
    return _CascadeAsker(tuple(t.label for t in tiers), tiers, run)


def _request(question: Any) -> Request:
    if isinstance(question, str):
        return Request([{"role": "user", "content": question}], question)
    return Request(question, "\n".join(str(m.get("content", "")) for m in question))
