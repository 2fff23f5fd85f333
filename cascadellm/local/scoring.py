"""Scores of written tokens, computed a chunk at a time so that no full-vocabulary history grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from cascadellm.local.assemble import RowScore

__all__ = ["ScoreBuffer", "ScoreList", "score_rows"]

_CHUNK = 16


@torch.inference_mode()
def score_rows(rows: torch.Tensor, tokens: torch.Tensor, top: int) -> list[RowScore]:
    """Score tokens under the laws of their rows.

    Args:
        rows: Unscaled logits, or log-probabilities of a law. Shape (n, vocab), float.
        tokens: The tokens taken. Shape (n,), int64.
        top: Number of alternatives to keep per token.

    Returns:
        n scores; logprob = log softmax(row)[token] in nats, entropy of softmax(row) in nats.
    """
    law = torch.log_softmax(rows.float(), dim=-1)
    taken = law.gather(1, tokens.unsqueeze(1)).squeeze(1).tolist()
    # a token of probability 0 adds nothing to the entropy; 0 * -inf would be NaN
    entropy = torch.special.entr(law.exp()).sum(dim=-1).tolist()
    if top == 0:
        return [RowScore(*pair) for pair in zip(taken, entropy, strict=True)]
    best, ids = law.topk(min(top, law.shape[-1]), dim=-1)
    alternatives = zip(ids.tolist(), best.tolist(), strict=True)
    return [
        RowScore(logprob, spread, tuple(zip(*pairs, strict=True)))
        for logprob, spread, pairs in zip(taken, entropy, alternatives, strict=True)
    ]


@dataclass(slots=True)
class ScoreList:
    """The scores of one sequence.

    Attributes:
        top: Number of alternatives to keep per token.
        found: Scores so far, in the order of the tokens.
    """

    top: int
    found: list[RowScore] = field(default_factory=list)


class ScoreBuffer:
    """Collects rows and scores them about sixteen at a time, into the lists they belong to."""

    def __init__(self) -> None:
        self._rows: list[torch.Tensor] = []
        self._tokens: list[torch.Tensor] = []
        self._lists: list[ScoreList] = []

    def add(self, rows: torch.Tensor, tokens: torch.Tensor, lists: Sequence[ScoreList]) -> None:
        """Take one row per sequence with the token chosen from it.

        Args:
            rows: Unprocessed next-token logits. Shape (n, vocab).
            tokens: Shape (n,), int64.
            lists: Where the score of each row goes.
        """
        self._rows.append(rows)
        self._tokens.append(tokens)
        self._lists.extend(lists)
        if len(self._lists) >= _CHUNK:
            self.flush()

    def flush(self) -> None:
        """Score the rows that are waiting."""
        if not self._rows:
            return
        top = max(scores.top for scores in self._lists)
        found = score_rows(torch.cat(self._rows), torch.cat(self._tokens), top)
        for scores, score in zip(self._lists, found, strict=True):
            fits = len(score.top) <= scores.top
            scores.found.append(score if fits else replace(score, top=score.top[: scores.top]))
        self._rows, self._tokens, self._lists = [], [], []
