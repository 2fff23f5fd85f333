"""Deferral rules: (draft row, target row) -> the law that the next token must follow.

Each rule is a small frozen value with one parameter. Letters inside this module:
p = target, q = draft, pi = target distribution, r = 1 means "defer to the target".
Ties keep the draft. Criteria read the unscaled rows (temperature 1); the mixture is made
of the scaled rows (after temperature, top-k, top-p, penalties), by default the same.

Importing this module loads no tensor library: the rules only call methods of the tensors
they are given.

Source: Narasimhan et al., "Faster Cascades via Speculative Decoding", arXiv 2405.19261.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cascadellm.errors import ConfigurationError
from cascadellm.local import rule_laws as laws
from cascadellm.local.rule_base import AlphaRule, BinaryRule, Rule, TokenRule, check_number

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BiLDStar",
    "Chow",
    "ChowLog",
    "Diff",
    "DiffLog",
    "Ensemble",
    "Lenient",
    "Lossless",
    "Mentored",
    "Opt",
    "OptLog",
    "Rule",
    "TokenV1",
    "TokenV2",
    "TokenV3",
    "rule_from_config",
]

_HIGH_OPT_ALPHA = 0.3


@dataclass(frozen=True, slots=True)
class Lossless(Rule):
    """Plain speculative decoding: pi = p (arXiv 2211.17192)."""

    @property
    def lossless(self) -> bool:
        """Always."""
        return True


@dataclass(frozen=True, slots=True)
class Chow(BinaryRule):
    """Defer iff max q < 1 - alpha (arXiv 2405.19261, eq. 2).

    Lossless below 0; the draft alone from 1 - 1/vocab on.
    """

    _range: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    @property
    def lossless(self) -> bool:
        """For alpha < 0: no row's maximum exceeds 1."""
        return self.alpha < 0

    @property
    def reads_target(self) -> bool:
        """Only where it defers."""
        return False

    def defers(self, q: Tensor, p: Tensor, scaled_q: Tensor, scaled_p: Tensor) -> Tensor:
        """Return max q < 1 - alpha."""
        return q.amax(-1, keepdim=True) < 1 - self.alpha


@dataclass(frozen=True, slots=True)
class Diff(BinaryRule):
    """Defer iff max q < max p - alpha (arXiv 2405.19261, eq. 5)."""

    _range: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    @property
    def lossless(self) -> bool:
        """At alpha = -1: max q < max p + 1 always holds."""
        return self.alpha <= -1

    def defers(self, q: Tensor, p: Tensor, scaled_q: Tensor, scaled_p: Tensor) -> Tensor:
        """Return max q < max p - alpha."""
        return q.amax(-1, keepdim=True) < p.amax(-1, keepdim=True) - self.alpha

    def ignores_draft(self, target_probs: Tensor) -> bool:
        """Where max p - alpha exceeds every max q."""
        return laws.surely_above_one(target_probs.amax(-1) - self.alpha)


@dataclass(frozen=True, slots=True)
class Opt(BinaryRule):
    """Defer iff max q < max p - alpha D(p, q) (arXiv 2405.19261, eq. 10).

    D is the total variation of the *scaled* rows; the maxima are unscaled. Any finite alpha
    is allowed: at temperatures between 0 and 1 no finite alpha is lossless. alpha = 0 is
    `Diff(0)`, not lossless. An over-confident draft costs quality at high alpha, so the rule
    warns there; check quality first, or prefer `TokenV3`.
    """

    def __post_init__(self) -> None:
        AlphaRule.__post_init__(self)
        if self.alpha >= _HIGH_OPT_ALPHA:
            warnings.warn(
                f"Opt(alpha={self.alpha:g}) keeps an over-confident draft; measure quality "
                "before relying on it, or use TokenV3",
                UserWarning,
                stacklevel=3,
            )

    def defers(self, q: Tensor, p: Tensor, scaled_q: Tensor, scaled_p: Tensor) -> Tensor:
        """Return max q < max p - alpha D(scaled p, scaled q)."""
        distance = laws.total_variation(scaled_p, scaled_q)
        return q.amax(-1, keepdim=True) < p.amax(-1, keepdim=True) - self.alpha * distance

    def ignores_draft(self, target_probs: Tensor) -> bool:
        """Where max p - alpha exceeds every max q: D is 1 where the two differ."""
        return laws.surely_above_one(target_probs.amax(-1) - self.alpha)


@dataclass(frozen=True, slots=True)
class ChowLog(BinaryRule):
    """Defer iff H(q) > alpha, entropies in nats (Chow under log loss)."""

    @property
    def lossless(self) -> bool:
        """For alpha < 0: no entropy is negative."""
        return self.alpha < 0

    @property
    def reads_target(self) -> bool:
        """Only where it defers."""
        return False

    def defers(self, q: Tensor, p: Tensor, scaled_q: Tensor, scaled_p: Tensor) -> Tensor:
        """Return H(q) > alpha."""
        return laws.entropy(q) > self.alpha


@dataclass(frozen=True, slots=True)
class DiffLog(BinaryRule):
    """Defer iff H(q) > H(p) + alpha, in nats (Diff under log loss)."""

    def defers(self, q: Tensor, p: Tensor, scaled_q: Tensor, scaled_p: Tensor) -> Tensor:
        """Return H(q) > H(p) + alpha."""
        return laws.entropy(q) > laws.entropy(p) + self.alpha


@dataclass(frozen=True, slots=True)
class OptLog(BinaryRule):
    """Defer iff H(q) > H(p) + alpha D(p, q) (OPT under log loss; D of the scaled rows)."""

    def defers(self, q: Tensor, p: Tensor, scaled_q: Tensor, scaled_p: Tensor) -> Tensor:
        """Return H(q) > H(p) + alpha D(scaled p, scaled q)."""
        distance = laws.total_variation(scaled_p, scaled_q)
        return laws.entropy(q) > laws.entropy(p) + self.alpha * distance


@dataclass(frozen=True, slots=True)
class BiLDStar(BinaryRule):
    """Defer iff -log p(argmax q) > alpha, in nats (comparison form of arXiv 2302.07863)."""

    @property
    def lossless(self) -> bool:
        """For alpha < 0: no surprise is negative."""
        return self.alpha < 0

    def defers(self, q: Tensor, p: Tensor, scaled_q: Tensor, scaled_p: Tensor) -> Tensor:
        """Return -log p(argmax q) > alpha."""
        return -p.gather(-1, q.argmax(-1, keepdim=True)).log() > self.alpha

    def ignores_draft(self, target_probs: Tensor) -> bool:
        """Where no other token than the likeliest is likely enough."""
        return int((-target_probs.log() <= self.alpha).sum()) <= 1


@dataclass(frozen=True, slots=True)
class TokenV1(TokenRule):
    """Keep v iff q(v) >= max p - alpha (arXiv 2405.19261, eq. 13)."""

    _range: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    @property
    def lossless(self) -> bool:
        """At alpha = -1: no q(v) reaches max p + 1."""
        return self.alpha <= -1

    def keeps(self, q: Tensor, p: Tensor) -> Tensor:
        """Return q >= max p - alpha."""
        return q >= p.amax(-1, keepdim=True) - self.alpha

    def ignores_draft(self, target_probs: Tensor) -> bool:
        """Where max p - alpha exceeds every max q."""
        return laws.surely_above_one(target_probs.amax(-1) - self.alpha)


@dataclass(frozen=True, slots=True)
class TokenV2(TokenRule):
    """Keep v iff p(v) >= max p - alpha (arXiv 2405.19261, eq. 14)."""

    _range: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    @property
    def lossless(self) -> bool:
        """For alpha < 0: nothing exceeds the maximum."""
        return self.alpha < 0

    def keeps(self, q: Tensor, p: Tensor) -> Tensor:
        """Return p >= max p - alpha."""
        return p >= p.amax(-1, keepdim=True) - self.alpha

    def keeps_mode_only(self, target_probs: Tensor) -> bool:
        """Where no other token reaches the limit; q is not read."""
        return int(self.keeps(target_probs, target_probs).sum()) == 1


@dataclass(frozen=True, slots=True)
class TokenV3(TokenRule):
    """Keep v iff p(v) >= (1 - alpha) max p (arXiv 2405.19261, eq. 15).

    The default rule. alpha = 0 is not lossless above temperature 0; any alpha < 0 is.
    """

    alpha: float = 0.3
    _range: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    @property
    def lossless(self) -> bool:
        """For alpha < 0: nothing exceeds the maximum."""
        return self.alpha < 0

    def keeps(self, q: Tensor, p: Tensor) -> Tensor:
        """Return p >= (1 - alpha) max p."""
        return p >= (1 - self.alpha) * p.amax(-1, keepdim=True)

    def keeps_mode_only(self, target_probs: Tensor) -> bool:
        """Where no other token reaches the limit; q is not read."""
        return int(self.keeps(target_probs, target_probs).sum()) == 1


@dataclass(frozen=True, slots=True)
class Lenient(Rule):
    """Accept with min(1, p / (l q)), residual from p - q (arXiv 2211.17192, appendix A.5).

    No token is emitted with more than p / l. At temperature 0 it keeps the draft's token x
    iff p(x) >= l max p.
    """

    lenience: float

    def __post_init__(self) -> None:
        check_number("Lenient", "lenience", self.lenience, 0.0, 1.0, open_low=True)

    @property
    def lossless(self) -> bool:
        """At lenience 1."""
        return self.lenience == 1

    @property
    def greedy_form(self) -> Rule:
        """`TokenV3(1 - lenience)`: at temperature 0 the scaled rows hold no probabilities."""
        return Lossless() if self.lossless else TokenV3(alpha=1 - self.lenience)

    def _mix(self, q: Tensor, p: Tensor, scaled_q: Tensor, scaled_p: Tensor) -> Tensor:
        return laws.lenient(scaled_q, scaled_p, self.lenience)


@dataclass(frozen=True, slots=True)
class Ensemble(Rule):
    """pi = weight p + (1 - weight) q (arXiv 2604.07622, `assistant_ensemble_weight`).

    At temperature 0: the likeliest token of the mixture of the unscaled rows.
    """

    weight: float

    def __post_init__(self) -> None:
        check_number("Ensemble", "weight", self.weight, 0.0, 1.0)

    @property
    def lossless(self) -> bool:
        """At weight 1."""
        return self.weight == 1

    @property
    def greedy_form(self) -> Rule:
        """The point mass on the mixture's likeliest token."""
        return self if self.lossless else _EnsembleMode(self.weight)

    def _mix(self, q: Tensor, p: Tensor, scaled_q: Tensor, scaled_p: Tensor) -> Tensor:
        return self.weight * scaled_p + (1 - self.weight) * scaled_q


@dataclass(frozen=True, slots=True)
class _EnsembleMode(Rule):
    """`Ensemble` at temperature 0."""

    weight: float

    def _mix(self, q: Tensor, p: Tensor, scaled_q: Tensor, scaled_p: Tensor) -> Tensor:
        return laws.point_mass(self.weight * p + (1 - self.weight) * q)

    def ignores_draft(self, target_probs: Tensor) -> bool:
        """Where the target's lead is larger than all that the draft can add."""
        first, second = target_probs.topk(2, dim=-1).values[0].tolist()
        return bool(self.weight * (first - second) > 1 - self.weight + laws.ROUNDING)


@dataclass(frozen=True, slots=True)
class Mentored(AlphaRule):
    """pi = max{min{q, p / (1 - alpha)}, p / beta}, beta such that pi sums to 1.

    The largest acceptance for its divergence KL(p || pi) (Tran-Thien 2023;
    arXiv 2405.19261, lemma 2). Lossless at alpha = 0; at temperature 0 always.
    """

    def __post_init__(self) -> None:
        check_number("Mentored", "alpha", self.alpha, 0.0, 1.0, open_high=True)

    @property
    def lossless(self) -> bool:
        """At alpha = 0."""
        return self.alpha == 0

    @property
    def greedy_form(self) -> Rule:
        """`Lossless`: min{q, p / (1 - alpha)} is empty where two point masses differ."""
        return Lossless()

    def _mix(self, q: Tensor, p: Tensor, scaled_q: Tensor, scaled_p: Tensor) -> Tensor:
        return laws.mentored(scaled_q, scaled_p, self.alpha)


_RULES: tuple[type[Rule], ...] = (
    BiLDStar, Chow, ChowLog, Diff, DiffLog, Ensemble, Lenient, Lossless, Mentored, Opt, OptLog,
    TokenV1, TokenV2, TokenV3,
)  # fmt: skip


def rule_from_config(config: dict[str, Any]) -> Rule:
    """Build a rule from `rule.to_config()` data.

    Raises:
        ConfigurationError: The name is unknown or an argument is wrong.
    """
    by_name = {rule.__name__: rule for rule in _RULES}
    arguments = dict(config)
    name = arguments.pop("type", None)
    if name not in by_name:
        raise ConfigurationError(
            f"a rule's config needs 'type', one of {', '.join(sorted(by_name))}; got {name!r}"
        )
    try:
        return by_name[name](**arguments)
    except TypeError as error:
        raise ConfigurationError(f"{name} does not take {arguments!r}: {error}") from error
