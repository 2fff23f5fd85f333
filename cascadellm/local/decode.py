"""The loop draft -> verify -> accept -> roll back, for any rule and any pair of lanes.

One round drafts gamma tokens, scores them with one target call, keeps a prefix and writes
one more token. p = target, q = draft, pi = target distribution. Every emitted token follows
pi given what stands before it, for every gamma.

Source: arXiv 2405.19261, algorithm 5; the token after a fully accepted block is drafted and
tested once more, because its law is pi, not the target's row.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cascadellm.local.rows import Shaper, check_finite
from cascadellm.local.rule_base import Rule, TokenRule
from cascadellm.local.streams import Choices
from cascadellm.local.verify import (
    acceptance_ratios,
    block_residual,
    block_thresholds,
    leading,
    residual,
)

__all__ = ["Decoder", "Lane", "Round"]


class Lane(Protocol):
    """One model with its key/value cache over the shared sequence of tokens."""

    @property
    def length(self) -> int:
        """Number of tokens whose keys and values are cached."""

    def forward(self, tokens: Sequence[int], keep: int) -> Tensor:
        """Append tokens and return the logits after each of the last `keep`. (keep, vocab)."""

    def rollback(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""


@dataclass(slots=True)
class Round:
    """What one round emitted.

    Attributes:
        tokens: Emitted tokens: kept drafts, then the one that the last test decided.
        kept: How many of them the draft wrote.
        tested: How many drafts were tested before the first rejection, that one included.
        drafted: How many tokens were drafted.
        draft_steps: Forward passes of the draft.
        draft_s: Time they took, sampling included. Unit: seconds.
        draft_rows: Its logits, one (1, vocab) row per drafted position.
        target_rows: Target logits at the same positions and one after, (drafted + 1, vocab);
            None where the target was not asked.
        late: Draft logits at the last tokens of the rounds before that had none, (k, vocab):
            they come with this round's first draft step.
    """

    tokens: list[int]
    kept: int
    tested: int
    drafted: int
    draft_steps: int
    draft_s: float
    draft_rows: list[Tensor]
    target_rows: Tensor | None
    late: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        row = self.draft_rows[0] if self.target_rows is None else self.target_rows
        return row.device


@dataclass(slots=True)
class _Block:
    """A drafted block: tokens, raw rows, masked rows, the laws sampled from, time taken."""

    tokens: list[int]
    rows: list[Tensor]
    allowed: list[Tensor]
    laws: list[Tensor]
    seconds: float = 0.0
    late: Tensor | None = None

    def emitted(self, tokens: list[int], kept: int, tested: int, target_rows: Tensor) -> Round:
        """Return the round in which this block was verified."""
        count = len(self.tokens)
        return Round(
            tokens, kept, tested, count, count, self.seconds, self.rows, target_rows, self.late
        )


class Decoder:
    """Draft-verify rounds over two lanes.

    Args:
        draft: Lane of the small model.
        target: Lane of the large model.
        rule: The deferral rule.
        shaper: Processors for the rows of both models.
        choices: Source of the random choices.
        prompt: Tokens that stand before the answer (for a seq2seq lane: the start token).
        eos_ids: Tokens after which nothing is drafted.
        block: Whether to verify whole blocks instead of single tokens.
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
        eos_ids: Collection[int] = (),
        block: bool = False,
    ) -> None:
        self._draft_lane = draft
        self._target_lane = target
        self._rule = rule.greedy_form if shaper.greedy else rule
        self._shaper = shaper
        self._choices = choices
        self._eos_ids = frozenset(eos_ids)
        self._block = block and not shaper.greedy
        self._start = len(prompt)
        self._owed = 0
        self.tokens = list(prompt)

    @property
    def lanes(self) -> tuple[Lane, Lane]:
        """The lanes of draft and target."""
        return self._draft_lane, self._target_lane

    @torch.inference_mode()
    def round(self, gamma: int) -> Round:
        """Run one round and roll both caches back to what was emitted.

        Args:
            gamma: Tokens to draft; fewer are drafted when an end token is. 0 writes a single
                token.

        Raises:
            ModelError: A row holds NaN; the answer stays as it was before the round.
        """
        base = len(self.tokens)
        text = list(self.tokens)
        block = self._draft(gamma, text)
        new = text[self._target_lane.length :]
        target_rows = self._target_lane.forward(new, len(block.tokens) + 1)
        allowed = self._shaper.allowed(target_rows, text, base)
        if self._rule.lossless and self._shaper.greedy:
            found = self._match(block, allowed, text, base)
        else:
            found = self._judge(block, allowed, text, base)
        found.target_rows = target_rows
        self.tokens.extend(found.tokens)
        missing = max(0, len(found.tokens) - len(block.rows))
        self._owed = missing if block.rows else self._owed + missing
        for lane in (self._draft_lane, self._target_lane):
            lane.rollback(min(lane.length, len(self.tokens) - 1))
        return found

    @torch.inference_mode()
    def late_rows(self) -> Tensor | None:
        """Return the draft logits that `Round.late` would bring; None where none are missing."""
        if not self._owed:
            return None
        rows = self._draft_lane.forward(self.tokens[self._draft_lane.length : -1], self._owed)
        self._owed = 0
        return rows

    def _draft(self, gamma: int, text: list[int]) -> _Block:
        """Draft up to gamma tokens and append them to the text."""
        block = _Block([], [], [], [])
        for _ in range(gamma):
            if self._propose(block, text) in self._eos_ids:
                break
        return block

    def _propose(self, block: _Block, text: list[int]) -> int:
        """Draft the next token of the text."""
        begun = time.perf_counter()
        rows = self._draft_lane.forward(text[self._draft_lane.length :], 1 + self._owed)
        row, written = rows[-1:], len(text) - self._start
        if self._owed:
            block.late, self._owed = rows[:-1], 0
            check_finite(block.late.amax(-1).tolist(), "draft", written - len(block.late))
        allowed = self._shaper.allowed(row, text, len(text))
        shaped = self._shaper.processed(allowed, text, len(text))
        best, likeliest = shaped.max(-1)
        check_finite(best.tolist(), "draft", written)
        if self._shaper.greedy:
            token = int(likeliest)
        else:
            law = shaped.softmax(-1)
            block.laws.append(law)
            token = self._choices.draft(law[0])
        block.rows.append(row)
        block.allowed.append(allowed)
        block.tokens.append(token)
        text.append(token)
        block.seconds += time.perf_counter() - begun
        return token

    def _match(self, block: _Block, target_rows: Tensor, text: list[int], base: int) -> Round:
        """Lossless at temperature 0: keep what the target would have written itself."""
        drafts = block.tokens
        best, tokens = self._shaper.processed(target_rows, text, base).max(-1)
        check_finite(best.tolist(), "target", base - self._start)
        own = tokens.tolist()
        kept = leading([mine == theirs for mine, theirs in zip(drafts, own, strict=False)])
        emitted = drafts if self._finished(drafts, kept) else own[: kept + 1]
        return block.emitted(emitted, kept, min(kept + 1, len(drafts)), target_rows)

    def _judge(self, block: _Block, target_rows: Tensor, text: list[int], base: int) -> Round:
        """Test the drafts against pi and write one more token."""
        best, likeliest = target_rows.max(-1)
        check_finite(best.tolist(), "target", base - self._start)
        scaled_p = self._shaper.scaled(target_rows, text, base)
        count = len(block.tokens)
        kept, written = 0, None
        if self._agreed(block.tokens, likeliest):
            kept = count
        elif count:
            rows = torch.cat(block.allowed)
            laws = block.laws
            scaled_q = torch.cat(laws) if laws else self._shaper.scaled(rows, text, base)
            pi = self._target(rows, target_rows[:count], scaled_q, scaled_p[:count])
            kept, law = self._accept(block.tokens, pi, scaled_q)
            written = None if law is None else self._choices.residual(law)
        tested = min(kept + 1, count)
        if written is None and not self._finished(block.tokens, kept):
            if self._without_draft(target_rows[count:]):
                written = self._choices.residual(scaled_p[count])
            else:
                written = self._bonus(block, target_rows[count:], scaled_p[count:], text)
                tested, kept = tested + len(block.tokens) - count, kept + (written is None)
        emitted = block.tokens[:kept] if written is None else [*block.tokens[:kept], written]
        return block.emitted(emitted, kept, tested, target_rows)

    def _agreed(self, drafts: list[int], likeliest: Tensor) -> bool:
        """Whether at temperature 0 both models have the same point masses: every rule's law."""
        if not self._shaper.greedy or self._shaper.processors:
            return False
        return drafts == likeliest.tolist()[: len(drafts)]

    def _without_draft(self, p_row: Tensor) -> bool:
        """Whether the next law is the target's whatever the draft says, so no step is needed."""
        if self._rule.lossless:
            return True
        return self._shaper.greedy and self._rule.ignores_draft(p_row.softmax(-1))

    def _bonus(self, block: _Block, p_row: Tensor, scaled_p: Tensor, text: list[int]) -> int | None:
        """After a fully accepted block: draft one more token and test it against the known p.

        The next law is rule(q, p); the target's own row would be wrong there. Returns the
        token to write in its place, None if it passed.
        """
        rule = self._rule
        if isinstance(rule, TokenRule) and rule.keeps_mode_only(p_row.softmax(-1)):
            # the same law as below: where both tokens would be the mode, no draft is needed
            other, mode = self._choices.residual(scaled_p[0]), int(p_row.argmax())
            return other if other == mode or self._propose(block, text) != mode else None
        token = self._propose(block, text)
        row = block.allowed[-1]
        q = block.laws[-1] if block.laws else self._shaper.scaled(row, text, len(text) - 1)
        pi = self._target(row, p_row, q, scaled_p)
        if self._choices.accept(acceptance_ratios(torch.tensor([token], device=row.device), pi, q)):
            return None
        return self._choices.residual(residual(pi, q)[0])

    def _target(self, q_rows: Tensor, p_rows: Tensor, scaled_q: Tensor, scaled_p: Tensor) -> Tensor:
        """Return pi: the unscaled rows decide, the scaled rows are mixed."""
        if self._rule.lossless:
            return scaled_p
        if self._shaper.plain:
            return self._rule.target_distribution(scaled_q, scaled_p)
        return self._rule.target_distribution(
            q_rows.softmax(-1), p_rows.softmax(-1), draft_scaled=scaled_q, target_scaled=scaled_p
        )

    def _accept(self, drafts: list[int], pi: Tensor, q: Tensor) -> tuple[int, Tensor | None]:
        """Return how many drafts are kept and, unless all are, the law of the next token."""
        ratios = acceptance_ratios(torch.tensor(drafts, device=q.device), pi, q)
        weights: Tensor | None = None
        if self._block:
            thresholds, weights = block_thresholds(ratios, pi, q)
            kept = self._choices.accept_block(thresholds)
        else:
            kept = self._choices.accept(ratios)
        if kept == len(drafts):
            return kept, None
        if weights is None:
            return kept, residual(pi[kept], q[kept])
        return kept, block_residual(weights[kept], pi[kept], q[kept])

    def _finished(self, drafts: list[int], kept: int) -> bool:
        """Whether all drafts were kept and the last one ends the answer."""
        return bool(drafts) and kept == len(drafts) and drafts[-1] in self._eos_ids
