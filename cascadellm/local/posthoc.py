"""Scores of an answer that another library's `generate` wrote: one forward pass over its ids."""

from __future__ import annotations

from typing import Any

import torch

from cascadellm.answer import Answer, TokenScore, Usage
from cascadellm.local.scoring import score_rows

__all__ = ["score_written"]

_ROWS = 64


@torch.inference_mode()
def score_written(
    module: Any, tokenizer: Any, ids: torch.Tensor, prompt: str, *, text: str, top: int = 5
) -> Answer:
    """Return a written answer with the scores that its own model gives it.

    The scores are those of the model's unprocessed law, whatever sampling wrote the tokens.
    Special tokens are read by the model and left out of the scores.

    Args:
        module: The causal model that wrote it.
        tokenizer: Its tokenizer.
        ids: Prompt and answer as `generate` returned them. Shape (1, n) or (n,), int64.
        prompt: The text that was tokenized as the prompt.
        text: The answer's text.
        top: Number of alternatives to keep per token.

    Returns:
        The answer with token scores in nats, and usage.
    """
    ids = ids.reshape(-1)
    start = len(tokenizer(prompt)["input_ids"])
    made = ids[start:]
    logits = module(ids.unsqueeze(0).to(module.device)).logits[0, start - 1 : -1]
    hidden = set(tokenizer.all_special_ids)
    scores: list[TokenScore] = []
    for at in range(0, len(made), _ROWS):
        tokens = made[at : at + _ROWS].to(logits.device)
        rows = score_rows(logits[at : at + _ROWS], tokens, top)
        for token, row in zip(tokens.tolist(), rows, strict=True):
            if token not in hidden:
                others = tuple((tokenizer.decode([other]), value) for other, value in row.top)
                said = tokenizer.decode([token])
                scores.append(TokenScore(said, row.logprob, others, row.entropy))
    return Answer(text, tokens=tuple(scores) or None, usage=Usage(start, len(made)))
