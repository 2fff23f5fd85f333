"""The same law as the draft-verify loop, one token after the other: a baseline.

A rule that decides from the draft's row alone (Chow) asks the target only where it defers;
every other rule needs both rows at every token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cascadellm.local.decode import Lane, Round
from cascadellm.local.rows import Shaper, check_finite
from cascadellm.local.rule_base import BinaryRule, Rule
from cascadellm.local.streams import Choices
from cascadellm.local.verify import acceptance_ratios, residual

__all__ = ["SequentialDecoder"]


class SequentialDecoder:
    """Writes one token per round from the target distribution itself.

    Args:
        draft: Lane of the small model.
        target: Lane of the large model.
        rule: The deferral rule.
        shaper: Processors for the rows of both models.
        choices: Source of the random choices.
        prompt: Tokens that stand before the answer.
    """

    def __init__(
        self,
        draft: Lane,
        target: Lane,
        rule: Rule,
        shaper: Shaper,
        choices: Choices,
        *,
        prompt: Sequence[int],
    ) -> None:
        self._draft, self._target = draft, target
        self._rule = rule.greedy_form if shaper.greedy else rule
        self._shaper, self._choices = shaper, choices
        self._start = len(prompt)
        self.tokens = list(prompt)

    @property
    def lanes(self) -> tuple[Lane, Lane]:
        """The lanes of draft and target."""
        return self._draft, self._target

    @torch.inference_mode()
    def round(self, gamma: int = 0) -> Round:
        """Write one token.

        Raises:
            ModelError: A row holds NaN.
        """
        text, written = self.tokens, len(self.tokens) - self._start
        row = self._draft.forward(text[self._draft.length :], 1)
        check_finite(row.amax(-1).tolist(), "draft", written)
        allowed = self._shaper.allowed(row, text, len(text))
        q, scaled_q = allowed.softmax(-1), self._shaper.scaled(allowed, text, len(text))
        rule = self._rule
        alone = rule if isinstance(rule, BinaryRule) and not rule.reads_target else None
        if alone is not None and not bool(alone.defers(q, q, scaled_q, scaled_q)):
            token = self._choices.draft(scaled_q[0])
            self.tokens.append(token)
            return Round([token], 1, 1, 1, 1, 0.0, [row], None)
        other = self._target.forward(text[self._target.length :], 1)
        check_finite(other.amax(-1).tolist(), "target", written)
        theirs = self._shaper.allowed(other, text, len(text))
        scaled_p = self._shaper.scaled(theirs, text, len(text))
        pi = rule.target_distribution(
            q, theirs.softmax(-1), draft_scaled=scaled_q, target_scaled=scaled_p
        )
        token = self._choices.draft(scaled_q[0])
        ratio = acceptance_ratios(torch.tensor([token], device=row.device), pi, scaled_q)
        kept = self._choices.accept(ratio)
        if not kept:
            token = self._choices.residual(residual(pi, scaled_q)[0])
        self.tokens.append(token)
        return Round([token], kept, 1, 1, 1, 0.0, [row], other)
