"""From next-token scores to a token: transformers' own processors and a private random stream."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cascadellm.local.settings import Settings

__all__ = ["choose", "processors", "random_stream"]


def processors(settings: Settings, _device: torch.device | str = "cpu") -> LogitsProcessorList:
    """Return transformers' processors for these settings, in the order `generate` uses.

    They are called with `input_ids` that hold the prompt and everything written so far.
    Greedy settings use the repetition penalty only.

    Args:
        settings: How the call decodes.
        _device: Device of the rows; none of these processors keeps tensors, so it is not read.
    """
    chain = LogitsProcessorList()
    if settings.repetition_penalty is not None and settings.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(float(settings.repetition_penalty)))
    if settings.greedy:
        return chain
    if settings.temperature != 1.0:
        chain.append(TemperatureLogitsWarper(float(settings.temperature)))
    if settings.top_k:
        chain.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p is not None and settings.top_p < 1.0:
        chain.append(TopPLogitsWarper(float(settings.top_p)))
    return chain


def random_stream(settings: Settings, device: torch.device | str) -> torch.Generator | None:
    """Return a random stream of this call's own; None when decoding is greedy.

    Without a seed the stream starts from the operating system's entropy, so torch's
    global stream is neither read nor moved.
    """
    if settings.greedy:
        return None
    stream = torch.Generator(device=device)
    if settings.seed is None:
        stream.seed()
    else:
        stream.manual_seed(settings.seed)
    return stream


def choose(rows: torch.Tensor, streams: Sequence[torch.Generator | None]) -> torch.Tensor:
    """Take one token per row.

    Args:
        rows: Processed next-token scores. Shape (batch, vocab), float.
        streams: One random stream per row, or None per row for the likeliest token.

    Returns:
        Token ids, -1 where the row holds NaN. Shape (batch,), int64.
    """
    best, tokens = rows.max(dim=-1)
    tokens = tokens.masked_fill(best.isnan(), -1)
    if all(stream is None for stream in streams):
        return tokens
    taken = tokens.tolist()
    drawn = [
        tokens[i : i + 1]
        if stream is None or taken[i] < 0
        else torch.multinomial(torch.softmax(rows[i], dim=-1), num_samples=1, generator=stream)
        for i, stream in enumerate(streams)
    ]
    return torch.cat(drawn)
