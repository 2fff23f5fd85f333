"""A key/value cache with room to grow, so that a new token does not copy all the others."""

from __future__ import annotations

from collections.abc import Sequence
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
    """A cache layer whose keys and values, once long, are a part of larger buffers.

    transformers' own layer joins old and new tensors at every step, which costs time in
    proportion to the whole cache. Here that happens while the cache is small, and later once in
    a while, as the buffers grow by half. A sequence that ends leaves its row to the next one
    that joins, and empty columns on the left are given up without a copy.
    """

    # a name here would make transformers build this layer everywhere
    _layer_type = None

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None
        self._first = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values, shape (batch, heads, new, width), and return all of them."""
        if self.keys is None or self.values is None or self.keys.numel() < _SMALL:
            self._buffers = None
            return super().update(key_states, value_states)
        count, start = self.keys.shape[0], self.keys.shape[2]
        end = start + key_states.shape[2]
        if self._buffers is None or self._buffers[0].shape[2] < self._first + end:
            more = (0, 0, 0, end - start + _room(start))
            self._buffers = (pad(self.keys, more), pad(self.values, more))
            self._first = 0
        new = slice(self._first + start, self._first + end)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:count, :, new] = states
        self._show(count, end)
        return self.keys, self.values

    def join(self, other: GrowingLayer, left: int, other_left: int) -> None:
        """Add the sequences of another layer, after so many empty columns on either side."""
        assert self.keys is not None
        assert other.keys is not None
        assert other.values is not None
        count, length = self.keys.shape[0], left + self.keys.shape[2]
        total = count + len(other.keys)
        if self._buffers is None or self._buffers[0].shape[0] < total or self._first < left:
            self._move(total, length, left)
        else:
            self._first -= left
        assert self._buffers is not None
        start, end = self._first, self._first + length
        for buffer, theirs in zip(self._buffers, (other.keys, other.values), strict=True):
            buffer[count:total, :, start + other_left : end] = theirs
            # masked, but 0 * NaN would not be 0
            buffer[:count, :, start : start + left] = 0
            buffer[count:total, :, start : start + other_left] = 0
        self._show(total, length)

    def keep(self, places: Sequence[int], spare: int) -> None:
        """Keep the sequences at these places, in this order, without their first columns."""
        assert self.keys is not None
        assert self.values is not None
        length = self.keys.shape[2] - spare
        if self._buffers is None or any(old < new for new, old in enumerate(places)):
            rows = torch.tensor(places, device=self.keys.device)
            self._buffers = (self.keys[rows, :, spare:], self.values[rows, :, spare:])
            self._first = 0
        else:
            for buffer in self._buffers:
                for new, old in enumerate(places):
                    if new != old:
                        buffer[new] = buffer[old]
            self._first += spare
        self._show(len(places), length)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these sequences."""
        super().batch_select_indices(indices)
        self._buffers = None

    def crop(self, tokens_to_remove: int) -> None:
        """Remove this many tokens (a number below 0) from the end."""
        super().crop(tokens_to_remove)
        self._buffers = None

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._buffers = None

    def _move(self, count: int, length: int, left: int) -> None:
        """Copy everything into buffers for `count` sequences, behind `left` columns."""
        buffers = []
        for mine in (self.keys, self.values):
            assert mine is not None
            shape = (count, mine.shape[1], length + _room(length), mine.shape[3])
            buffer = mine.new_empty(shape)
            buffer[: len(mine), :, left:length] = mine
            buffers.append(buffer)
        self._buffers, self._first = (buffers[0], buffers[1]), 0

    def _show(self, count: int, length: int) -> None:
        assert self._buffers is not None
        part = slice(self._first, self._first + length)
        self.keys, self.values = (buffer[:count, :, part] for buffer in self._buffers)


def _room(length: int) -> int:
    return _ROOM + length // 2


def growing_cache(config: Any) -> DynamicCache:
    """Return an empty cache for a model; layers that do not keep all keys stay as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [
        GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache
