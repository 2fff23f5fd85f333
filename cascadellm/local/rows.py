"""From logits to the two kinds of rows that a deferral rule reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from cascadellm.errors import ModelError
from cascadellm.local.constrain import GrammarProcessor
from cascadellm.local.rule_laws import point_mass

__all__ = ["Shaper", "check_finite"]

_MEMORYLESS = frozenset(
    {
        "EpsilonLogitsWarper",
        "EtaLogitsWarper",
        "MinPLogitsWarper",
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "TypicalLogitsWarper",
    }
)
"""Processors that do not read the tokens before the row."""


@dataclass(frozen=True, slots=True)
class Shaper:
    """Applies the same mask and the same processors to the rows of both models.

    Attributes:
        processors: transformers' processors, in order; empty = the plain softmax.
        greedy: Whether the scaled rows are point masses (temperature 0).
        mask: What may be written (a grammar), or None. It is part of both models: rules decide
            on masked rows.
    """

    processors: LogitsProcessorList
    greedy: bool
    mask: GrammarProcessor | None = None

    @classmethod
    def of(cls, chain: LogitsProcessorList, *, greedy: bool) -> Shaper:
        """Return a shaper for a model's processors, of which the first may be a grammar."""
        if chain and isinstance(chain[0], GrammarProcessor):
            return cls(LogitsProcessorList(chain[1:]), greedy, chain[0])
        return cls(chain, greedy)

    @property
    def plain(self) -> bool:
        """Whether the scaled rows equal the unscaled ones."""
        return not self.processors and not self.greedy

    def allowed(self, logits: Tensor, text: Sequence[int], first: int) -> Tensor:
        """Return logits with -inf where the mask forbids a token; arguments as in `processed`."""
        if self.mask is None:
            return logits
        whole: Any = torch.tensor([text])
        rows = [self.mask(whole[:, : first + i], logits[i : i + 1]) for i in range(len(logits))]
        return torch.cat(rows)

    def processed(self, logits: Tensor, text: Sequence[int], first: int) -> Tensor:
        """Return processed masked logits; row i follows text[: first + i]. Shape (k, vocab)."""
        if not self.processors:
            return logits
        device = logits.device
        if all(type(step).__name__ in _MEMORYLESS for step in self.processors):
            none: Any = torch.empty((len(logits), 0), dtype=torch.long, device=device)
            shaped: Tensor = self.processors(none, logits)
            return shaped
        whole: Any = torch.tensor([text], device=device)
        rows = [
            self.processors(whole[:, : first + i], logits[i : i + 1].clone())
            for i in range(len(logits))
        ]
        return torch.cat(rows)

    def scaled(self, logits: Tensor, text: Sequence[int], first: int) -> Tensor:
        """Return the laws that tokens are sampled from; arguments as in `processed`."""
        shaped = self.processed(logits, text, first)
        return point_mass(shaped) if self.greedy else shaped.softmax(-1)


def check_finite(best: Sequence[float], role: str, position: int) -> None:
    """Refuse rows without a likeliest token.

    Args:
        best: The largest logit of each row.
        role: Which model the rows come from.
        position: Number of tokens written before the first row.

    Raises:
        ModelError: A row holds NaN, or nothing but -inf.
    """
    for i, value in enumerate(best):
        if value != value or value in (float("inf"), float("-inf")):
            raise ModelError(
                f"the {role} model returned {value} as a next-token score for token "
                f"{position + i + 1} of the answer; nothing of this step was emitted. Load it "
                "with another dtype (dtype='float32' or 'bfloat16')"
            )
