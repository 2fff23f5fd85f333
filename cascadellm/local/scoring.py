"""Scores of written tokens, computed a chunk at a time so that no full-vocabulary history grows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cascadellm.local.assemble import RowScore

__all__ = ["ScoreBuffer", "score_rows"]

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


class ScoreBuffer:
    """Collects the rows of a batch and scores them about sixteen at a time.

    Args:
        batch: Number of sequences.
        top: Number of alternatives to keep per token.
    """

    def __init__(self, batch: int, top: int) -> None:
        self._top = top
        self._rows: list[torch.Tensor] = []
        self._tokens: list[torch.Tensor] = []
        self._owners: list[int] = []
        self._scores: list[list[RowScore]] = [[] for _ in range(batch)]

    def add(self, rows: torch.Tensor, tokens: torch.Tensor, owners: Sequence[int]) -> None:
        """Take one row per sequence with the token chosen from it.

        Args:
            rows: Unprocessed next-token logits. Shape (n, vocab).
            tokens: Shape (n,), int64.
            owners: Which sequence of the batch each row belongs to.
        """
        self._rows.append(rows)
        self._tokens.append(tokens)
        self._owners.extend(owners)
        if len(self._owners) >= _CHUNK:
            self._flush()

    def of(self, owner: int, length: int) -> list[RowScore]:
        """Return the scores of one sequence's first `length` tokens."""
        self._flush()
        return self._scores[owner][:length]

    def _flush(self) -> None:
        if not self._rows:
            return
        found = score_rows(torch.cat(self._rows), torch.cat(self._tokens), self._top)
        for owner, score in zip(self._owners, found, strict=True):
            self._scores[owner].append(score)
        self._rows, self._tokens, self._owners = [], [], []
