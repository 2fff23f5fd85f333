"""A key/value cache with room to grow, so that a new token does not copy all the others."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

__all__ = ["GrowingLayer", "growing_cache"]

_ROOM = 64
# numbers; below, joining costs less than writing into a buffer
_SMALL = 32_768


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A cache layer whose keys and values, once long, are the first columns of longer buffers.

    transformers' own layer joins old and new tensors at every step, which costs time in
    proportion to the whole cache. Here that happens while the cache is small, and later once in
    a while, as the buffers grow by half.
    """

    # a name here would make transformers build this layer everywhere
    _layer_type = None

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values, shape (batch, heads, new, width), and return all of them."""
        if self.keys is None or self.values is None or self.keys.numel() < _SMALL:
            self._buffers = None
            return super().update(key_states, value_states)
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        if self._buffers is None or self._buffers[0].shape[2] < end:
            more = (0, 0, 0, end - start + _room(start))
            self._buffers = (pad(self.keys, more), pad(self.values, more))
        keys, values = self._buffers
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def join(self, other: GrowingLayer, left: int, other_left: int) -> None:
        """Add the sequences of another layer, after so many empty columns on either side."""
        both = []
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            assert mine is not None
            assert theirs is not None
            length = left + mine.shape[2]
            count, heads, _, width = mine.shape
            shape = (count + len(theirs), heads, length + _room(length), width)
            buffer = mine.new_empty(shape)
            buffer[:count, :, left:length] = mine
            buffer[count:, :, other_left:length] = theirs
            # masked, but 0 * NaN would not be 0
            buffer[:count, :, :left] = 0
            buffer[count:, :, :other_left] = 0
            both.append(buffer)
        self._hold(both[0], both[1], length)

    def keep(self, rows: torch.Tensor, spare: int) -> None:
        """Keep these sequences, without their first `spare` columns."""
        assert self.keys is not None
        assert self.values is not None
        keys, values = self._buffers or (self.keys, self.values)
        length = self.keys.shape[2] - spare
        self._hold(keys[rows, :, spare:], values[rows, :, spare:], length)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these sequences."""
        self.keep(indices, 0)

    def crop(self, tokens_to_remove: int) -> None:
        """Remove this many tokens (a number below 0) from the end."""
        super().crop(tokens_to_remove)
        self._buffers = None

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._buffers = None

    def _hold(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        self._buffers = (keys, values)
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]


def _room(length: int) -> int:
    return _ROOM + length // 2


def growing_cache(config: Any) -> DynamicCache:
    """Return an empty cache for a model; layers that do not keep all keys stay as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [
        GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache
