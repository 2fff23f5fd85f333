"""One step of a model with its key/value cache, for both families, alone or in a padded batch."""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import torch

from cascadellm.local.quick import QuickForward

__all__ = ["CausalSteps", "Seq2SeqSteps", "Steps", "left_pad", "right_pad"]


class Steps(Protocol):
    """A batch of sequences on one model. Rows are next-token logits, (batch, vocab), float32."""

    def start(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Read the prompts and return the first rows."""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token per sequence and return the next rows."""

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all sequences but these."""

    def release(self) -> None:
        """Drop the cache."""


class CausalSteps:
    """A decoder-only model; the prompts of a batch are padded on the left.

    Args:
        module: A transformers causal language model.
        room: Most tokens of prompt plus answer that will be asked for.
        quick: A shorter way through the same layers for one token of one sequence, or None.
    """

    def __init__(self, module: Any, room: int, quick: QuickForward | None = None) -> None:
        accepted = inspect.signature(module.forward).parameters
        self._module = module
        self._quick = quick
        self._positioned = "position_ids" in accepted
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._places = torch.arange(room + 1, device=module.device).unsqueeze(0)
        self._cache: Any = None
        self._mask: torch.Tensor | None = None
        self._offset: torch.Tensor | None = None
        self._length = 0

    @torch.inference_mode()
    def start(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Read the prompts.

        Args:
            ids: Shape (batch, length), int64.
            mask: 0 at padding. Shape (batch, length); None without padding.
        """
        if mask is not None:
            self._mask = torch.nn.functional.pad(mask, (0, self._places.shape[1]), value=1)
            self._offset = mask.shape[1] - mask.sum(dim=1, keepdim=True)
        return self._forward(ids, **self._last_only)

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token per sequence and return the next rows."""
        if self._quick is None or self._mask is not None or len(tokens) > 1:
            return self._forward(tokens.unsqueeze(1))
        logits = self._quick(tokens.unsqueeze(1), self._cache, self._length)
        self._length += 1
        return logits[:, -1].float()

    @torch.inference_mode()
    def keep(self, rows: torch.Tensor) -> None:
        """Drop all sequences but these."""
        self._cache.batch_select_indices(rows)
        if self._mask is not None and self._offset is not None:
            self._mask, self._offset = self._mask[rows], self._offset[rows]

    def release(self) -> None:
        """Drop the cache."""
        self._cache = None

    def _forward(self, ids: torch.Tensor, **extra: Any) -> torch.Tensor:
        end = self._length + ids.shape[1]
        if self._positioned:
            places = self._places[:, self._length : end]
            if self._offset is not None:
                places = (places - self._offset).clamp(min=0)
            extra["position_ids"] = places
        if self._mask is not None:
            extra["attention_mask"] = self._mask[:, :end]
        out = self._module(ids, past_key_values=self._cache, use_cache=True, **extra)
        self._cache, self._length = out.past_key_values, end
        # a copy, so that the logits of a whole prompt are not kept alive by their last row
        rows: torch.Tensor = out.logits[:, -1].to(torch.float32, copy=out.logits.shape[1] > 1)
        return rows


class Seq2SeqSteps:
    """An encoder-decoder model: the encoder reads the prompt once, the decoder writes."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._encoded: Any = None
        self._mask: torch.Tensor | None = None
        self._cache: Any = None

    @torch.inference_mode()
    def start(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Read the prompts, padded on the right where `mask` is 0, and start the decoder."""
        self._mask = torch.ones_like(ids) if mask is None else mask
        self._encoded = self._module.get_encoder()(
            input_ids=ids, attention_mask=self._mask, return_dict=True
        )
        first = decoder_start(self._module)
        return self._forward(torch.full((len(ids),), first, device=ids.device))

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token per sequence and return the next rows."""
        return self._forward(tokens)

    @torch.inference_mode()
    def keep(self, rows: torch.Tensor) -> None:
        """Drop all sequences but these."""
        self._cache.batch_select_indices(rows)
        self._encoded.last_hidden_state = self._encoded.last_hidden_state[rows]
        assert self._mask is not None
        self._mask = self._mask[rows]

    def release(self) -> None:
        """Drop the cache and what the encoder read."""
        self._cache = self._encoded = None

    def _forward(self, tokens: torch.Tensor) -> torch.Tensor:
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


def decoder_start(module: Any) -> int:
    """Return the token with which an encoder-decoder model's decoder starts."""
    for config in (module.generation_config, module.config):
        found = getattr(config, "decoder_start_token_id", None)
        if found is not None:
            return int(found[0] if isinstance(found, list) else found)
    return int(module.config.pad_token_id or 0)


def left_pad(prompts: list[torch.Tensor], pad: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pad prompts of shape (1, length) on the left; the mask is None where nothing is padded."""
    width = max(ids.shape[1] for ids in prompts)
    if all(ids.shape[1] == width for ids in prompts):
        return torch.cat(prompts), None
    edges = [(width - ids.shape[1], 0) for ids in prompts]
    return _pad(prompts, edges, pad)


def right_pad(prompts: list[torch.Tensor], pad: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pad prompts of shape (1, length) on the right; the mask is None where nothing is padded."""
    width = max(ids.shape[1] for ids in prompts)
    if all(ids.shape[1] == width for ids in prompts):
        return torch.cat(prompts), None
    edges = [(0, width - ids.shape[1]) for ids in prompts]
    return _pad(prompts, edges, pad)


def _pad(
    prompts: list[torch.Tensor], edges: list[tuple[int, int]], pad: int
) -> tuple[torch.Tensor, torch.Tensor]:
    put = torch.nn.functional.pad
    ids = [put(ids, edge, value=pad) for ids, edge in zip(prompts, edges, strict=True)]
    mask = [put(torch.ones_like(i), e, value=0) for i, e in zip(prompts, edges, strict=True)]
    return torch.cat(ids), torch.cat(mask)
