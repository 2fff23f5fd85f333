"""A model's own layers without the generic forward pass around them.

For short inputs on small models most of the time goes into building masks, positions and
output records anew for every call. Here they are slices of tables made once. The layers, the
norm and the head are the model's own; a probe compares the result bit by bit with the model's
forward pass before it is used, and where it differs the model's forward pass is taken.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

__all__ = ["QuickForward"]

_FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")
_FIRST_ROOM = 512


class QuickForward:
    """Runs the layers of a decoder-only model on short inputs.

    Args:
        module: A model for which `quick_forward` found that this gives equal results.
        block: Longest input.
    """

    def __init__(self, module: Any, block: int) -> None:
        self._base = module.model
        self._head = module.lm_head
        self._layers = list(module.model.layers[: module.config.num_hidden_layers])
        self._sample = module.model.embed_tokens.weight[:1, :1]
        self.block = block
        self._room = 0
        self._grow(_FIRST_ROOM)

    @classmethod
    def of(cls, module: Any, block: int) -> QuickForward | None:
        """Return a quick forward pass, or None where it would not give the same numbers."""
        if not _known(module):
            return None
        quick = cls(module, block)
        return quick if quick._agrees(module) else None

    def __call__(self, ids: Tensor, cache: Any, start: int) -> Tensor:
        """Return logits of all given tokens.

        Args:
            ids: At most `block` tokens. Shape (1, k), int64.
            cache: The model's cache; the new keys and values are appended.
            start: Number of tokens in the cache.
        """
        count = ids.shape[1]
        end = start + count
        if end > self._room:
            self._grow(max(end, 2 * self._room))
        places = (self._cos[:, start:end], self._sin[:, start:end])
        mask = None
        if count > 1:
            mask = self._mask[:, :, :count, self._room - start : self._room + count]
        return self._run(ids, cache, places, mask)

    def padded(self, ids: Tensor, cache: Any, places: Tensor, mask: Tensor) -> Tensor:
        """Return logits of one token per sequence of a batch.

        Args:
            ids: Shape (batch, 1), int64.
            cache: The model's cache; the new keys and values are appended.
            places: Position of each token in its own sequence. Shape (batch,), int64.
            mask: False at padding, for all keys and the new one. Shape (batch, keys), bool.
        """
        if mask.shape[1] > self._room:
            self._grow(max(mask.shape[1], 2 * self._room))
        tables = (self._cos[0, places].unsqueeze(1), self._sin[0, places].unsqueeze(1))
        return self._run(ids, cache, tables, mask[:, None, None])

    def _run(self, ids: Tensor, cache: Any, places: Any, mask: Tensor | None) -> Tensor:
        hidden = self._base.embed_tokens(ids)
        for layer in self._layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_embeddings=places,
                past_key_values=cache,
                use_cache=True,
            )
        logits: Tensor = self._head(self._base.norm(hidden))
        return logits

    def _grow(self, room: int) -> None:
        """Make the tables of positions and masks long enough for `room` tokens."""
        device = self._sample.device
        positions = torch.arange(room, device=device).unsqueeze(0)
        self._cos, self._sin = self._base.rotary_emb(self._sample, position_ids=positions)
        seen = torch.ones((self.block, room), dtype=torch.bool, device=device)
        own = torch.ones((self.block, self.block), dtype=torch.bool, device=device).tril()
        self._mask = torch.cat((seen, own), dim=1)[None, None]
        self._room = room

    def _agrees(self, module: Any) -> bool:
        """Compare with the model's own forward pass, bit by bit, with and without a past."""
        device = self._sample.device
        width = self._base.embed_tokens.num_embeddings
        ids = (torch.arange(12, device=device) * 7919 % width).unsqueeze(0)
        ours, theirs = (DynamicCache(config=module.config) for _ in range(2))
        start = 0
        try:
            with torch.inference_mode():
                for count in (5, 1, 1, 4, 1):
                    part = ids[:, start : start + count]
                    mine = self(part, ours, start)
                    own = module(part, past_key_values=theirs, use_cache=True).logits
                    if not torch.equal(mine, own):
                        return False
                    start += count
        except (AttributeError, RuntimeError, TypeError, ValueError):
            # another layout of layers or arguments than the one this was written for
            return False
        return True


def _known(module: Any) -> bool:
    """Whether the model is of a plain decoder-only family with full attention everywhere."""
    config = module.config
    family = type(module).__name__.removesuffix("ForCausalLM")
    attention = getattr(config, "_attn_implementation", None)
    if family not in _FAMILIES or attention not in ("sdpa", "eager"):
        return False
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=config).layers):
        return False
    rope = getattr(module.model.rotary_emb, "rope_type", None)
    # a dispatched or quantised module may move weights in its outer forward pass
    dispatched = getattr(module, "hf_device_map", None) or hasattr(module, "_hf_hook")
    return rope in _STATIC_ROPE and not dispatched and not module.training
