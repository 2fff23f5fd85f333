"""Whether two local models make a good pair: how far their laws are apart, and what it pays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cascadellm.errors import ConfigurationError
from cascadellm.local.rules import Lossless, Rule
from cascadellm.local.speculative import check_rule

if TYPE_CHECKING:
    from cascadellm.local.model import LocalModel

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two models differ on the target's own answers, averaged over tokens.

    Attributes:
        tokens: Number of tokens compared.
        total_variation: D(target, draft), in [0, 1]; 1 - D is the lossless acceptance at
            temperature 1.
        kl: KL(target || draft). Unit: nats.
        js: Jensen-Shannon divergence, in [0, log 2]. Unit: nats.
        agreement: Share of tokens where both find the same token likeliest.
        acceptance: Probability that a draft is kept under the rule at the temperature.
        draft_s: Time of one draft step. Unit: seconds.
        target_s: Time of one step of the target alone. Unit: seconds.
        verify_s: gamma -> time of a verify call. Unit: seconds.
        speedup: gamma -> predicted speed relative to the target's own loop. The prediction
            takes acceptance as independent from token to token.
    """

    tokens: int
    total_variation: float
    kl: float
    js: float
    agreement: float
    acceptance: float
    draft_s: float
    target_s: float
    verify_s: Mapping[int, float]
    speedup: Mapping[int, float]

    @property
    def best_gamma(self) -> int:
        """The gamma with the largest predicted speed-up."""
        return max(self.speedup, key=lambda gamma: self.speedup[gamma])


def compare(
    draft: LocalModel,
    target: LocalModel,
    prompts: Sequence[Any],
    *,
    rule: Rule | None = None,
    temperature: float = 0.0,
    max_new_tokens: int = 64,
    gammas: Sequence[int] = (1, 2, 3, 4, 5, 6, 8),
) -> Comparison:
    """Measure how two models differ, and predict what speculation gains.

    The target answers each prompt; both models then score that text.

    Args:
        draft: The small model.
        target: The large model.
        prompts: Messages, as for `LocalModel.generate`.
        rule: Rule whose acceptance is measured; `Lossless` when not given.
        temperature: Temperature at which it would run.
        max_new_tokens: Most tokens of the target's answer per prompt.
        gammas: Drafted tokens per verify call to predict for.

    Raises:
        ConfigurationError: No prompts, or the models cannot decode together.
        VocabularyMismatchError: Their vocabularies differ.
    """
    rule = Lossless() if rule is None else rule
    check_rule(rule)
    if isinstance(prompts, str) or not prompts:
        raise ConfigurationError(f"prompts must be a list of at least one prompt, got {prompts!r}")
    if not gammas or min(gammas) < 1:
        raise ConfigurationError(f"gammas must be whole numbers >= 1, got {gammas!r}")
    from cascadellm.local.difference import measure

    return measure(
        draft, target, prompts, rule=rule, temperature=temperature,
        max_new_tokens=max_new_tokens, gammas=gammas,
    )  # fmt: skip
