"""What a local model makes of a text before it answers: its last hidden states, averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from cascadellm.local.generate import Runner

__all__ = ["hidden_means"]


def hidden_means(runner: Runner, texts: Sequence[str]) -> list[list[float]]:
    """Return the mean of the last layer's states over the tokens of each text.

    A text longer than the context window is read up to there; one without tokens is all zeros.

    Raises:
        ModelError: The model was closed.
    """
    return [_mean(runner, str(text)) for text in texts]


@torch.no_grad()
def _mean(runner: Runner, text: str) -> list[float]:
    loaded = runner.loaded
    # outside a chat template, so that what is compared is the text and not the frame around it
    found = loaded.tokenizer(
        text, return_tensors="pt", truncation=True, max_length=loaded.context_window
    )
    ids = found["input_ids"].to(loaded.device)
    if ids.shape[-1] == 0:
        width = loaded.module.config.get_text_config().hidden_size
        return [0.0] * int(width)
    with runner.lock:
        if loaded.is_encoder_decoder:
            states = loaded.module.get_encoder()(input_ids=ids).last_hidden_state
        else:
            states = loaded.module.base_model(input_ids=ids, use_cache=False).last_hidden_state
    mean: list[float] = states[0].float().mean(dim=0).tolist()
    return mean
