"""The growing cache: the numbers of transformers' own cache, without copying it at every step."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from cascadellm.local import LocalModel, growing
from cascadellm.local.growing import GrowingLayer, growing_cache


def _states(count: int, length: int, seed: int = 0) -> torch.Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.randn((count, 2, length, 4), generator=stream)


def _filled(lengths: list[int], count: int = 3) -> tuple[GrowingLayer, DynamicLayer]:
    """Return our layer and transformers' own after the same updates."""
    ours, theirs = GrowingLayer(), DynamicLayer()
    for step, length in enumerate(lengths):
        states = _states(count, length, step), _states(count, length, 99 + step)
        for layer in (ours, theirs):
            keys, values = layer.update(*states)
        assert torch.equal(ours.keys, keys)
        assert torch.equal(ours.values, values)
    return ours, theirs


@pytest.fixture(autouse=True)
def _always_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use buffers from the first token on, as long caches do."""
    monkeypatch.setattr(growing, "_SMALL", 0)


@pytest.mark.parametrize("lengths", [[5], [5, 1, 1, 1], [1] * 200, [70, 100, 1, 3]])
def test_updates_equal_those_of_transformers(lengths: list[int]) -> None:
    """Keys, values and lengths are the same after any updates."""
    ours, theirs = _filled(lengths)
    assert torch.equal(theirs.keys, ours.keys)
    assert torch.equal(theirs.values, ours.values)
    assert sum(lengths) == ours.get_seq_length()


def test_new_tokens_are_written_in_place_most_of_the_time() -> None:
    """Hundreds of steps move the cache a few times only; transformers' layer moves it always."""
    ours, theirs = _filled([10])
    places: dict[str, set[int]] = {"ours": set(), "theirs": set()}
    for step in range(300):
        for name, layer in (("ours", ours), ("theirs", theirs)):
            keys, _ = layer.update(_states(3, 1, step), _states(3, 1, step))
            places[name].add(keys.data_ptr())
    assert len(places["ours"]) < 10 < len(places["theirs"])


def test_kept_cropped_and_reset_layers_go_on_correctly() -> None:
    """After each way of shrinking, further updates still equal transformers' own."""
    ours, theirs = _filled([20, 1, 1])
    rows = torch.tensor([2, 0])
    ours.keep(rows, 5)
    theirs.keys, theirs.values = theirs.keys[rows, :, 5:], theirs.values[rows, :, 5:]
    for layer in (ours, theirs):
        layer.update(_states(2, 1), _states(2, 1))
        layer.crop(-3)
        layer.update(_states(2, 2, 7), _states(2, 2, 8))
        layer.batch_select_indices(torch.tensor([1]))
        layer.update(_states(1, 1, 9), _states(1, 1, 9))
    assert torch.equal(theirs.keys, ours.keys)
    assert torch.equal(theirs.values, ours.values)
    ours.reset()
    assert 0 == ours.get_seq_length()
    assert 4 == ours.update(_states(1, 4), _states(1, 4))[0].shape[2]


@pytest.mark.parametrize(("mine", "other"), [(9, 4), (4, 9), (6, 6)])
def test_joined_layers_are_padded_with_zeros_on_the_left(mine: int, other: int) -> None:
    """Both sides end at the same column; padding is zero, never what was in memory before."""
    ours, _ = _filled([mine])
    theirs, _ = _filled([other], count=2)
    length = max(mine, other)
    expected = torch.zeros((5, 2, length, 4))
    expected[:3, :, length - mine :] = ours.keys
    expected[3:, :, length - other :] = theirs.keys
    ours.join(theirs, length - mine, length - other)
    assert torch.equal(expected, ours.keys)
    ours.update(_states(5, 1), _states(5, 1))
    assert torch.equal(torch.cat([expected, _states(5, 1)], dim=2), ours.keys)


def test_only_layers_that_keep_all_keys_are_replaced(llama: LocalModel) -> None:
    """Sliding windows stay as they are, and transformers' own registry is left alone."""
    config = llama.module.config
    assert {GrowingLayer} == {type(layer) for layer in growing_cache(config).layers}
    assert {DynamicLayer} == {type(layer) for layer in DynamicCache(config=config).layers}
    sliding = type(config)(**{**config.to_dict(), "sliding_window": 8})
    sliding.layer_types = ["sliding_attention"] * config.num_hidden_layers
    assert {DynamicSlidingWindowLayer} == {type(x) for x in growing_cache(sliding).layers}
