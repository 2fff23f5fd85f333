"""One model of a pair with its cache, for decoder-only and encoder-decoder models."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cascadellm.local.cache import Rollback, new_cache
from cascadellm.local.quick import QuickForward

__all__ = ["CausalLane", "Seq2SeqLane"]


class _CachedLane:
    """The sequence of a lane: how long it is and how to shorten it.

    Args:
        module: A transformers model.
        name: Its name, for errors.
        width: Number of tokens in the rows that it returns; padding ids behind are cut off.
    """

    def __init__(self, module: Any, name: str, width: int) -> None:
        self._module = module
        self._device = module.device
        self._width = width
        self._cache = new_cache(module, name)
        self._take_back = Rollback(self._cache)
        self._length = 0

    @property
    def length(self) -> int:
        """Number of tokens whose keys and values are cached."""
        return self._length

    def rollback(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        self._take_back(length, self._length - length)
        self._length = length

    def _rows(self, logits: Tensor, keep: int) -> Tensor:
        """Return the last rows in full precision and the pair's width. Shape (keep, vocab)."""
        rows: Tensor = logits[0, -keep:, : self._width]
        # float64 stays as it is
        return rows.float() if rows.element_size() < 4 else rows


class CausalLane(_CachedLane):
    """A decoder-only model.

    Args:
        module: A transformers causal language model.
        name: Its name, for errors.
        width: As above.
        quick: Its quick forward pass, or None.
    """

    def __init__(
        self, module: Any, name: str, width: int, quick: QuickForward | None = None
    ) -> None:
        super().__init__(module, name, width)
        self._quick = quick
        self._keeps = "logits_to_keep" in inspect.signature(module.forward).parameters

    def forward(self, tokens: Sequence[int], keep: int) -> Tensor:
        """Append tokens and return the logits after each of the last `keep`."""
        ids = torch.tensor([tokens], device=self._device)
        if self._quick is not None and len(tokens) <= self._quick.block:
            logits = self._quick(ids, self._cache, self._length)
        else:
            extra = {"logits_to_keep": keep} if self._keeps else {}
            out = self._module(ids, past_key_values=self._cache, use_cache=True, **extra)
            logits = out.logits
        self._length += len(tokens)
        return self._rows(logits, keep)


class Seq2SeqLane(_CachedLane):
    """An encoder-decoder model: the encoder reads the prompt once, the decoder speculates.

    Args:
        module: A transformers encoder-decoder model.
        name: Its name, for errors.
        width: As above.
        prompt: The encoder's input. Shape (1, length), int64.
    """

    def __init__(self, module: Any, name: str, width: int, prompt: Tensor) -> None:
        super().__init__(module, name, width)
        ids = prompt.to(self._device)
        self._mask = torch.ones_like(ids)
        with torch.inference_mode():
            self._encoded = module.get_encoder()(
                input_ids=ids, attention_mask=self._mask, return_dict=True
            )

    def forward(self, tokens: Sequence[int], keep: int) -> Tensor:
        """Append decoder tokens and return the logits after each of the last `keep`."""
        out = self._module(
            encoder_outputs=self._encoded,
            attention_mask=self._mask,
            decoder_input_ids=torch.tensor([tokens], device=self._device),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._length += len(tokens)
        return self._rows(out.logits, keep)
