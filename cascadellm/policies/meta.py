"""The meta-verifier: what a verifier's score says about the gain of asking the larger tier."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from cascadellm.answer import Decision
from cascadellm.effects import Plan
from cascadellm.errors import ConfigurationError
from cascadellm.policies.base import Moment, Policy, resolve

__all__ = ["MetaVerifier"]


@dataclass(frozen=True, slots=True)
class MetaVerifier(Policy):
    """Asks a verifier, and defers iff the larger tier is expected to gain enough.

    A threshold on the verifier's score sends on what the small tier likely got wrong, also where
    the larger tier would be wrong too. Here graded records say how much the larger tier gained
    at each score, so that questions which neither answers stay, and a verifier that errs to one
    side is read as what it is.

    Args:
        verifier: A policy that writes a score: `SelfVerify`, `PTrue`, `Judge`, ... Its own
            threshold does not matter; where it writes no score, its decision stands.
        gains: From a score to the expected gain, in [-1, 1]; a `GainMap` of
            `cascadellm.calibration.fit_gain_map`. None = unknown, and the decision stands.
        worth: Gain in quality that the larger tier's price is worth; less is not asked for.

    Raises:
        ConfigurationError: An argument is of the wrong kind.

    Source: arXiv 2310.12963 (AutoMix), the meta-verifier with a kernel observation model.
    """

    verifier: Policy
    gains: Callable[[float], float | None]
    worth: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.verifier, Policy) or self.verifier.level == "token":
            raise ConfigurationError(
                "MetaVerifier(verifier, gains) expects a policy that writes a score first, got "
                f"{self.verifier!r}"
            )
        if not callable(self.gains):
            raise ConfigurationError(
                f"MetaVerifier(gains) expects a GainMap of fit_gain_map, got {self.gains!r}"
            )
        number = isinstance(self.worth, (int, float)) and not isinstance(self.worth, bool)
        if not number or math.isnan(self.worth):
            raise ConfigurationError(f"MetaVerifier(worth=) must be a number, got {self.worth!r}")

    @property
    def reads(self) -> frozenset[str]:
        return self.verifier.reads

    def after(self, moment: Moment) -> Plan[Decision | None]:
        said: Decision | None = yield from resolve(self.verifier.after(moment), self.verifier.name)
        gain = None if said is None or said.score is None else self.gains(said.score)
        if said is None or gain is None or math.isnan(gain):
            return said
        defer = gain > self.worth
        return replace(
            said,
            defer=defer,
            policy=self.name,
            score_name="minus_expected_gain",
            score=-gain,
            threshold=-self.worth,
            code="meta",
            reason=f"{said.score_name} {said.score:.3g}: expected gain {gain:.3g} "
            f"{'>' if defer else '<='} {self.worth:g}",
            answer=None if defer else said.answer,
            goto=None,
        )
