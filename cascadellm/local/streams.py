"""Where the loop's choices come from: private random streams, or none at temperature 0."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from cascadellm.local.settings import Settings
from cascadellm.local.verify import leading

__all__ = ["Choices", "GreedyChoices", "RandomChoices", "choices_for"]

_SEED_RANGE = 2**63 - 1
_STRIDE = 0x9E3779B97F4A7C15  # odd, so that the derived seeds differ for every seed


class Choices(Protocol):
    """The three kinds of choices of a draft-verify round."""

    def draft(self, law: Tensor) -> int:
        """Draw the next draft. Shape of the law: (vocab,)."""

    def accept(self, ratios: Tensor) -> int:
        """Return how many leading drafts pass their test. Shape of the ratios: (gamma,)."""

    def accept_block(self, thresholds: Tensor) -> int:
        """Return the last i (1-based) whose uniform is within its threshold, or 0."""

    def residual(self, law: Tensor) -> int:
        """Draw the token that the target writes. Shape of the law: (vocab,)."""


class RandomChoices:
    """Separate generators for drafts, acceptance and residual.

    One shared stream would couple the test to the draft it tests, and would make the drafts
    of an always-accepting rule differ from the draft model's own text.

    Args:
        seed: Seed of the drafts' stream; the other two are derived from it. None = fresh.
        device: Device of the laws.
    """

    def __init__(self, seed: int | None, device: torch.device | str) -> None:
        if seed is None:
            seed = torch.Generator().seed() & _SEED_RANGE
        self._draft = torch.Generator(device=device).manual_seed(seed)
        self._accept = torch.Generator().manual_seed((seed + _STRIDE) & _SEED_RANGE)
        self._residual = torch.Generator(device=device).manual_seed(
            (seed + 2 * _STRIDE) & _SEED_RANGE
        )

    def draft(self, law: Tensor) -> int:
        """Draw the next draft."""
        return int(torch.multinomial(law, 1, generator=self._draft))

    def accept(self, ratios: Tensor) -> int:
        """Keep a draft iff its uniform lies below its ratio."""
        uniforms = torch.rand(len(ratios), generator=self._accept, dtype=torch.float64)
        return leading([u < r for u, r in zip(uniforms.tolist(), ratios.tolist(), strict=True)])

    def accept_block(self, thresholds: Tensor) -> int:
        """Return the last i whose uniform is within its threshold, or 0."""
        uniforms = torch.rand(len(thresholds), generator=self._accept, dtype=torch.float64)
        pairs = zip(uniforms.tolist(), thresholds.tolist(), strict=True)
        return max((i for i, (u, h) in enumerate(pairs, 1) if u <= h), default=0)

    def residual(self, law: Tensor) -> int:
        """Draw the token that the target writes."""
        return int(torch.multinomial(law, 1, generator=self._residual))


class GreedyChoices:
    """Temperature 0: every law is a point mass, so nothing is left to chance."""

    def draft(self, law: Tensor) -> int:
        """Return the law's token."""
        return int(law.argmax())

    def accept(self, ratios: Tensor) -> int:
        """Keep a draft iff the target distribution holds it."""
        return leading([ratio > 0 for ratio in ratios.tolist()])

    def accept_block(self, thresholds: Tensor) -> int:
        """Return the last i with a positive threshold, or 0."""
        return max((i for i, h in enumerate(thresholds.tolist(), 1) if h > 0), default=0)

    def residual(self, law: Tensor) -> int:
        """Return the law's token."""
        return int(law.argmax())


def choices_for(settings: Settings, device: torch.device | str) -> Choices:
    """Return the choices of one call."""
    if settings.greedy:
        return GreedyChoices()
    return RandomChoices(settings.seed, device)
