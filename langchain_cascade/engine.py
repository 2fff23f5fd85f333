"""The engine behind one `CascadeLLM`: tiers resolved once, and what is known about each."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.runnables import Runnable

from cascadellm.calibration.feedback import FeedbackLoop
from cascadellm.cascade import Cascade
from cascadellm.errors import ConfigurationError
from cascadellm.events import Handler
from cascadellm.policies import Policy
from cascadellm.tier import LocalLike, Tier
from langchain_cascade.convert import openai_tools
from langchain_cascade.describe import describe
from langchain_cascade.local import LocalChatModel
from langchain_cascade.tier import (
    BoundTools,
    as_runnable,
    base_model,
    bind_tools,
    lacks_logprobs,
    logprob_arguments,
    resolve,
)

__all__ = ["Engine"]


class Engine:
    """An engine's cascade over Runnables; immutable but for what it learns about tiers.

    Args:
        tiers: As given by the user.
        policy: As given by the user, or a policy's config.
        on_tier_error: As in `cascadellm.Cascade`.
        on_exhausted: As in `cascadellm.Cascade`.
        deadline_s: As in `cascadellm.Cascade`.
        handlers: Event handlers of the engine.
        tier_callbacks: Whether tiers run as children of the cascade's run.
        trace_logprobs: Whether LangSmith gets the tiers' logprobs.
        trace_feedback: Whether LangSmith gets scores as feedback.
        feedback_loop: Who is told what becomes of answers, or None.
    """

    def __init__(
        self,
        tiers: Sequence[Any],
        policy: Any,
        *,
        on_tier_error: Any = "escalate",
        on_exhausted: Any = "raise",
        deadline_s: float | None = None,
        handlers: Sequence[Handler] = (),
        tier_callbacks: bool = True,
        trace_logprobs: bool = True,
        trace_feedback: bool = False,
        feedback_loop: FeedbackLoop | None = None,
    ) -> None:
        if isinstance(tiers, (str, bytes)) or not isinstance(tiers, Sequence):
            raise ConfigurationError(f"tiers must be a list of models, got {tiers!r}")
        policy = _policy(policy)
        ready = _unwrapped([resolve(tier) for tier in tiers], policy)
        self.cascade = Cascade(
            ready,
            policy,
            on_tier_error=on_tier_error,
            on_exhausted=on_exhausted,
            deadline_s=deadline_s,
        )
        self.handlers = tuple(handlers)
        self.tier_callbacks = tier_callbacks
        self.trace_logprobs = trace_logprobs
        self.trace_feedback = trace_feedback
        self.feedback_loop = feedback_loop
        self.sync_only: set[int] = set()
        labelled = [*self.cascade.tiers, *(unit.tier for unit in self.cascade.units)]
        self._tiers = {tier.label: tier for tier in labelled}
        # by identity; the models are kept, so that no id is used twice
        self._runnables = {id(t.model): (t.model, as_runnable(t.model)) for t in labelled}
        self.shown: dict[str, Any] = {
            "tiers": [tier.label for tier in self.cascade.tiers],
            "policy": [describe(policy) for policy in self.cascade.policies],
            "on_tier_error": on_tier_error,
            "on_exhausted": on_exhausted,
            "deadline_s": deadline_s,
        }
        # a tier with callbacks of its own shows its runs whatever the caller does
        self.quiet = all(
            _is_quiet(base_model(runnable)) for _, runnable in self._runnables.values()
        )
        self._warn()

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The tiers, named."""
        return self.cascade.tiers

    @property
    def last(self) -> Runnable[Any, Any]:
        """The last tier."""
        return self.runnable(self.cascade.tiers[-1])

    def runnable(self, tier: Tier) -> Runnable[Any, Any]:
        """Return a tier's or judge's Runnable; a policy's own model is wrapped once."""
        model = tier.model
        found = self._runnables.get(id(model))
        if found is None:
            found = self._runnables.setdefault(id(model), (model, as_runnable(model)))
        return found[1]

    def asked(self, index: int, name: str) -> Tier:
        """Return the tier, or the pair, that was asked under a name."""
        return self._tiers.get(name) or self.cascade.tiers[index]

    def decided_at(self, pin: str | None) -> Mapping[int, Policy]:
        """Return the policy per tier index where one decides in a call."""
        if pin is not None:
            return {}
        pairs = zip(self.cascade.units, self.cascade.boundaries, strict=False)
        return {unit.index: policy for unit, policy in pairs}

    def logprob_arguments(self, tier: Tier, reads: frozenset[str]) -> dict[str, Any]:
        """Return what switches a tier's logprobs on, if its policy reads them."""
        return logprob_arguments(self.runnable(tier), reads) if reads else {}

    def bind_tools(self, tools: Sequence[Any], options: Mapping[str, Any]) -> BoundTools:
        """Bind tools to every tier in its own format.

        Raises:
            ConfigurationError: A tier cannot bind tools; names the tier.
        """
        bound = {
            name: bind_tools(self.runnable(tier), tools, options, name)
            for name, tier in self._tiers.items()
        }
        return BoundTools(list(openai_tools(tools)), bound)

    def _warn(self) -> None:
        for unit, policy in zip(self.cascade.units, self.cascade.boundaries, strict=False):
            why = lacks_logprobs(self.runnable(unit.tier)) if policy.reads else None
            if why is not None:
                warnings.warn(
                    f"the policy {policy.name} at tier {unit.tier.label!r} reads logprobs, but "
                    f"{why}; without them its score is missing",
                    UserWarning,
                    stacklevel=4,
                )


def _is_quiet(model: Any) -> bool:
    return not (getattr(model, "callbacks", None) or getattr(model, "verbose", False))


def _policy(policy: Any) -> Any:
    """Return the policy, built from config data where data were given."""
    if isinstance(policy, Mapping):
        return Policy.from_config(policy)
    if isinstance(policy, (list, tuple)):
        return [_policy(one) for one in policy]
    return policy


def _unwrapped(tiers: list[Tier], policy: Any) -> list[Tier]:
    """Hand the local models themselves to a token-level policy, which joins them."""
    per_boundary = policy if isinstance(policy, list) else [policy] * (len(tiers) - 1)
    result = list(tiers)
    for place, one in enumerate(per_boundary[: len(tiers) - 1]):
        if getattr(one, "level", "answer") != "token":
            continue
        for index in (place, place + 1):
            tier = result[index]
            if isinstance(tier.model, LocalChatModel) and isinstance(tier.model.model, LocalLike):
                result[index] = tier.but(model=tier.model.model)
    return result
