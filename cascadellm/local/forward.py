"""One step of a model with its key/value cache, for both families, alone or in a padded batch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol, Self

import torch
from torch.nn.functional import pad

from cascadellm.local.growing import GrowingLayer, growing_cache
from cascadellm.local.quick import QuickForward

__all__ = ["CausalSteps", "Seq2SeqSteps", "Steps", "decoder_start"]

_ROOM = 256


class Steps(Protocol):
    """A batch of sequences on one model. Rows are next-token logits, (batch, vocab), float32."""

    @property
    def open(self) -> bool:
        """Whether other sequences can join between two steps."""

    def start(self, prompts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Read prompts of shape (1, length) and return the first rows."""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token per sequence, shape (batch,), and return the next rows."""

    def join(self, other: Self) -> None:
        """Take over the sequences of another batch, after one's own."""

    def keep(self, places: Sequence[int]) -> None:
        """Drop all sequences but these, which then stand in this order."""


class CausalSteps:
    """A decoder-only model; shorter sequences of a batch are padded on the left.

    Args:
        module: A transformers causal language model.
        quick: A shorter way through the same layers for one sequence, or None.
    """

    def __init__(self, module: Any, quick: QuickForward | None = None) -> None:
        accepted = inspect.signature(module.forward).parameters
        self._module = module
        self._quick = quick
        self._positioned = "position_ids" in accepted
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._cache: Any = growing_cache(module.config)
        self._length = 0
        self._padding: list[int] = []
        self._mask: torch.Tensor | None = None
        self._places = torch.empty((1, 0), dtype=torch.int64)

    @property
    def open(self) -> bool:
        """Whether other sequences can join: every layer keeps all of its keys."""
        layers = self._cache.layers
        return bool(layers) and all(type(layer) is GrowingLayer for layer in layers)

    @torch.inference_mode()
    def start(self, prompts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Read prompts of shape (1, length) and return the first rows."""
        width = max(ids.shape[1] for ids in prompts)
        self._padding = [width - ids.shape[1] for ids in prompts]
        self._prepare()
        ids = [pad(ids, (width - ids.shape[1], 0)) for ids in prompts]
        return self._forward(torch.cat(ids).to(self._module.device), **self._last_only)

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token per sequence and return the next rows."""
        ids = tokens.unsqueeze(1)
        start, end = self._length, self._length + 1
        if self._quick is None or end > self._places.shape[1]:
            return self._forward(ids)
        if self._mask is None:
            logits = self._quick(ids, self._cache, start)
        else:
            places, mask = self._places[:, start], self._mask[:, :end]
            logits = self._quick.padded(ids, self._cache, places, mask)
        self._length = end
        return logits[:, -1].float()

    @torch.inference_mode()
    def join(self, other: Self) -> None:
        """Take over the sequences of another batch, after one's own."""
        missing = max(0, other._length - self._length)
        theirs = max(0, self._length - other._length)
        for layer, more in zip(self._cache.layers, other._cache.layers, strict=True):
            layer.join(more, missing, theirs)
        self._length += missing
        self._padding = [n + missing for n in self._padding] + [n + theirs for n in other._padding]
        self._prepare()

    @torch.inference_mode()
    def keep(self, places: Sequence[int]) -> None:
        """Drop all sequences but these, and the padding that none of them needs."""
        self._padding = [self._padding[place] for place in places]
        spare = min(self._padding) if self.open else 0
        if self.open:
            for layer in self._cache.layers:
                layer.keep(places, spare)
        else:
            self._cache.batch_select_indices(torch.tensor(places, device=self._module.device))
        self._length -= spare
        self._padding = [n - spare for n in self._padding]
        self._prepare()

    def _prepare(self) -> None:
        """Make positions and mask for the present padding, with room for some steps."""
        device = self._module.device
        room = max([self._length, *self._padding]) + _ROOM
        columns = torch.arange(room, device=device).unsqueeze(0)
        shifts = torch.tensor(self._padding, device=device).unsqueeze(1)
        padded = any(self._padding)
        self._places = (columns - shifts).clamp(min=0) if padded else columns
        self._mask = columns >= shifts if padded else None

    def _forward(self, ids: torch.Tensor, **extra: Any) -> torch.Tensor:
        start, end = self._length, self._length + ids.shape[1]
        if end > self._places.shape[1]:
            self._length = end
            self._prepare()
        if self._positioned:
            extra["position_ids"] = self._places[:, start:end]
        if self._mask is not None:
            extra["attention_mask"] = self._mask[:, :end]
        out = self._module(ids, past_key_values=self._cache, use_cache=True, **extra)
        self._length = end
        # a copy, so that the logits of a whole prompt are not kept alive by their last row
        rows: torch.Tensor = out.logits[:, -1].to(torch.float32, copy=out.logits.shape[1] > 1)
        return rows


class Seq2SeqSteps:
    """An encoder-decoder model: the encoder reads the prompt once, the decoder writes."""

    open = False

    def __init__(self, module: Any) -> None:
        self._module = module
        self._encoded: Any = None
        self._mask: torch.Tensor | None = None
        self._cache: Any = None

    @torch.inference_mode()
    def start(self, prompts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Read prompts of shape (1, length), padded on the right, and start the decoder."""
        width = max(ids.shape[1] for ids in prompts)
        edges = [(0, width - ids.shape[1]) for ids in prompts]
        device = self._module.device
        ids = torch.cat([pad(i, e) for i, e in zip(prompts, edges, strict=True)]).to(device)
        mask = [pad(torch.ones_like(i), e) for i, e in zip(prompts, edges, strict=True)]
        self._mask = torch.cat(mask).to(device)
        self._encoded = self._module.get_encoder()(
            input_ids=ids, attention_mask=self._mask, return_dict=True
        )
        return self.step(torch.full((len(ids),), decoder_start(self._module), device=device))

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token per sequence and return the next rows."""
        out = self._module(
            encoder_outputs=self._encoded,
            attention_mask=self._mask,
            decoder_input_ids=tokens.unsqueeze(1),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = out.past_key_values
        rows: torch.Tensor = out.logits[:, -1].float()
        return rows

    def join(self, other: Self) -> None:
        """Refuse: decoders of different age see different positions."""
        raise NotImplementedError("an encoder-decoder batch starts together")

    @torch.inference_mode()
    def keep(self, places: Sequence[int]) -> None:
        """Drop all sequences but these."""
        rows = torch.tensor(places, device=self._module.device)
        self._cache.batch_select_indices(rows)
        self._encoded.last_hidden_state = self._encoded.last_hidden_state[rows]
        assert self._mask is not None
        self._mask = self._mask[rows]


def decoder_start(module: Any) -> int:
    """Return the token with which an encoder-decoder model's decoder starts."""
    for config in (module.generation_config, module.config):
        found = getattr(config, "decoder_start_token_id", None)
        if found is not None:
            return int(found[0] if isinstance(found, list) else found)
    return int(module.config.pad_token_id or 0)
