"""What a pair leaves behind: scores under the target distribution, counters, candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from cascadellm.local.assemble import RowScore
from cascadellm.local.decode import Round
from cascadellm.local.rule_base import Rule
from cascadellm.local.scoring import ScoreBuffer

__all__ = ["PairRecord"]


class PairRecord:
    """Collects rounds; keeps a few rows at a time, never a history of whole rows.

    Args:
        rule: The deferral rule.
        gamma: As configured; None for the sequential baseline.
        top: Alternatives per token score; None = no scores.
        candidates: Likeliest tokens of each model to keep per token; 0 = none.
        text: Turns a token into its text.
    """

    def __init__(
        self,
        rule: Rule,
        gamma: int | Literal["adaptive"] | None,
        *,
        top: int | None,
        candidates: int,
        text: Callable[[int], str],
    ) -> None:
        self._rule, self._gamma = rule, gamma
        self._scores = None if top is None else ScoreBuffer(1, top)
        self._wanted = candidates
        self._text = text
        self._draft_top: list[list[tuple[int, float]]] = []
        self._target_top: list[list[tuple[int, float]]] = []
        self._sources: list[bool] = []
        self._counts = dict.fromkeys(
            ("drafted", "accepted", "rejected", "verify_calls", "draft_steps"), 0
        )

    @torch.inference_mode()
    def add(self, found: Round, taken: int) -> None:
        """Take a round of which the answer has the first `taken` tokens."""
        kept = min(found.kept, taken)
        counts = self._counts
        counts["drafted"] += found.drafted
        counts["accepted"] += kept
        counts["rejected"] += found.tested - found.kept
        counts["verify_calls"] += found.target_rows is not None
        counts["draft_steps"] += found.draft_steps
        self._sources += [True] * kept + [False] * (taken - kept)
        if self._scores is None:
            return
        target = None if found.target_rows is None else found.target_rows[:taken]
        rows = found.draft_rows[:taken]
        needs_draft = not self._rule.lossless or self._wanted
        draft = torch.cat(rows) if rows and needs_draft else None
        tokens = torch.tensor(found.tokens[:taken], device=found.device)
        self._scores.add(self._law(draft, target), tokens, [0] * taken)
        if self._wanted:
            self._draft_top += _best(draft, self._wanted, taken)
            self._target_top += _best(target, self._wanted, taken)

    def close(self, token_ids: Sequence[int]) -> tuple[list[RowScore] | None, dict[str, Any]]:
        """Return the token scores and the counters of the whole answer."""
        scores = None if self._scores is None else self._scores.of(0, len(token_ids))
        record: dict[str, Any] = {
            "rule": type(self._rule).__name__,
            "alpha": self._rule.parameter,
            "gamma": self._gamma,
            **self._counts,
        }
        if self._scores is not None and self._wanted:
            record["tokens"] = self._tokens(token_ids)
        return scores, record

    def _law(self, draft: Tensor | None, target: Tensor | None) -> Tensor:
        """Return log pi at temperature 1 for the emitted tokens, up to a constant per row."""
        if target is None:
            assert draft is not None
            return draft
        if self._rule.lossless or draft is None:
            return target
        return self._rule.target_distribution(draft.softmax(-1), target.softmax(-1)).log()

    def _tokens(self, token_ids: Sequence[int]) -> list[list[Any]]:
        """Return [text, wrote_draft, draft's candidates, target's candidates] per token."""

        def texts(pairs: Sequence[tuple[int, float]]) -> list[list[Any]]:
            return [[self._text(token), round(prob, 3)] for token, prob in pairs]

        return [
            [self._text(token), int(by_draft), texts(ours), texts(theirs)]
            for token, by_draft, ours, theirs in zip(
                token_ids, self._sources, self._draft_top, self._target_top, strict=True
            )
        ]


def _best(logits: Tensor | None, count: int, taken: int) -> list[list[tuple[int, float]]]:
    """Return the likeliest tokens per row; rows that are not there give an empty list."""
    if logits is None:
        return [[] for _ in range(taken)]
    probs, ids = logits.softmax(-1).topk(min(count, logits.shape[-1]), dim=-1)
    found = [
        list(zip(row_ids, row, strict=True))
        for row_ids, row in zip(ids.tolist(), probs.tolist(), strict=True)
    ]
    return found + [[] for _ in range(taken - len(found))]
