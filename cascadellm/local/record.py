"""What a pair leaves behind: scores under the target distribution, counters, candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from cascadellm.local.assemble import RowScore
from cascadellm.local.decode import Round
from cascadellm.local.rule_base import Rule
from cascadellm.local.scoring import score_rows

__all__ = ["PairRecord"]


_CHUNK = 16


@dataclass(frozen=True, slots=True)
class _Rows:
    """Tokens of one round with the rows they were judged by; the last draft row may be late."""

    tokens: list[int]
    draft: list[Tensor]
    target: Tensor | None

    @property
    def complete(self) -> bool:
        """Whether the draft's row of every token has come."""
        return len(self.draft) == len(self.tokens)


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
        self._top, self._wanted, self._text = top, candidates, text
        self._scores: list[RowScore] = []
        self._draft_top: list[list[tuple[int, float]]] = []
        self._target_top: list[list[tuple[int, float]]] = []
        self._sources: list[bool] = []
        self._waiting: list[_Rows] = []
        self._counts = dict.fromkeys(
            ("drafted", "accepted", "rejected", "verify_calls", "draft_steps"), 0
        )

    @property
    def scores(self) -> list[RowScore]:
        """Scores so far; the last few tokens may wait for the next chunk."""
        return self._scores

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
        if self._top is None:
            return
        self._attach(found.late)
        target = None if found.target_rows is None else found.target_rows[:taken]
        self._waiting.append(_Rows(found.tokens[:taken], found.draft_rows[:taken], target))
        if sum(len(rows.tokens) for rows in self._waiting) >= _CHUNK:
            self._flush([rows for rows in self._waiting if rows.complete])

    @property
    def owes(self) -> bool:
        """Whether the last scores or candidates need a row of the draft that has not come."""
        read = bool(self._wanted) or not self._rule.lossless
        return read and not all(rows.complete for rows in self._waiting)

    def settle(self, late: Tensor | None) -> None:
        """Take the draft's rows that came after the last round, at the cost of one step."""
        self._counts["draft_steps"] += 1
        self._attach(late)

    def _attach(self, late: Tensor | None) -> None:
        rows = [] if late is None else [late[i : i + 1] for i in range(len(late))]
        for round_ in self._waiting:
            if rows and not round_.complete:
                round_.draft.append(rows.pop(0))

    @torch.inference_mode()
    def _flush(self, waiting: list[_Rows]) -> None:
        """Score the first of the rounds that are waiting, together."""
        self._waiting = self._waiting[len(waiting) :]
        if not waiting or self._top is None:
            return
        # without a target row (sequential, kept by the draft alone) pi is the draft's row;
        # where nobody reads them, the last rows of a lossless draft are missing
        target = [rows.target if rows.target is not None else rows.draft[0] for rows in waiting]
        draft = [row for rows in waiting for row in rows.draft]
        places = [
            place
            for place, (rows, i) in enumerate((r, i) for r in waiting for i in range(len(r.tokens)))
            if i < len(rows.draft)
        ]
        p_rows = torch.cat(target)
        tokens = torch.tensor([t for rows in waiting for t in rows.tokens], device=p_rows.device)
        law = p_rows
        if not self._rule.lossless:
            pi = self._rule.target_distribution(torch.cat(draft).softmax(-1), p_rows.softmax(-1))
            alone = [rows.target is None for rows in waiting for _ in rows.tokens]
            law = pi.log() if not any(alone) else _where(alone, p_rows, pi.log())
        self._scores += score_rows(law, tokens, self._top)
        if self._wanted:
            ours = _best(torch.cat(draft), self._wanted) if draft else []
            by_place = dict(zip(places, ours, strict=True))
            self._draft_top += [by_place.get(place, []) for place in range(len(tokens))]
            theirs = _best(p_rows, self._wanted)
            asked = [rows.target is not None for rows in waiting for _ in rows.tokens]
            self._target_top += [
                best if known else [] for best, known in zip(theirs, asked, strict=True)
            ]

    def close(self, token_ids: Sequence[int]) -> tuple[list[RowScore] | None, dict[str, Any]]:
        """Return the token scores and the counters of the whole answer."""
        self._flush(self._waiting)
        scores = None if self._top is None else self._scores[: len(token_ids)]
        record: dict[str, Any] = {
            "rule": type(self._rule).__name__,
            "alpha": self._rule.parameter,
            "gamma": self._gamma,
            **self._counts,
        }
        if self._top is not None and self._wanted:
            record["tokens"] = self._tokens(token_ids)
        return scores, record

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


def _where(chosen: Sequence[bool], rows: Tensor, others: Tensor) -> Tensor:
    mask = torch.tensor(chosen, device=rows.device).unsqueeze(-1)
    return torch.where(mask, rows.log_softmax(-1), others)


def _best(logits: Tensor, count: int) -> list[list[tuple[int, float]]]:
    """Return the likeliest tokens per row with their probabilities, best first."""
    probs, ids = logits.softmax(-1).topk(min(count, logits.shape[-1]), dim=-1)
    return [
        list(zip(row_ids, row, strict=True))
        for row_ids, row in zip(ids.tolist(), probs.tolist(), strict=True)
    ]
