"""The growing cache: the numbers of transformers' own cache, without copying it at every step."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from cascadellm.local import LocalModel, growing
from cascadellm.local.decoding import _closed_up as closed_up
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
    ours.keep(rows.tolist(), 5)
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


def _comings_and_goings(seed: int) -> tuple[int, int]:
    """Let sequences come, grow and go at random; compare with tensors made anew each time.

    Returns: How often the buffers were kept, and how often something changed.
    """
    source, ours, wanted = random.Random(seed), GrowingLayer(), None
    kept = changes = 0
    for number in range(200):
        count = 0 if wanted is None else len(wanted)
        before = None if ours._buffers is None else ours._buffers[0].data_ptr()
        if count == 0:
            ours, wanted = GrowingLayer(), _states(3, source.randint(60, 90), number)
            ours.update(wanted, -wanted)
        elif source.random() < 0.6:
            new = _states(count, 1, number)
            ours.update(new, -new)
            wanted = torch.cat([wanted, new], dim=2)
        elif source.random() < 0.6:
            alive = sorted(source.sample(range(count), source.randint(0, count)))
            places = source.sample(alive, len(alive)) if seed % 3 == 0 else closed_up(alive)
            spare = source.randint(0, 3)
            wanted = wanted[places, :, spare:] if places else None
            if places:
                ours.keep(places, spare)
        else:
            other = _states(source.randint(1, 3), source.randint(40, 110), number)
            length = max(wanted.shape[2], other.shape[2])
            left, theirs = length - wanted.shape[2], length - other.shape[2]
            joining = GrowingLayer()
            joining.update(other, -other)
            ours.join(joining, left, theirs)
            wanted = torch.cat([pad(wanted, (0, 0, left, 0)), pad(other, (0, 0, theirs, 0))])
        if wanted is not None:
            assert torch.equal(wanted, ours.keys), number
            assert torch.equal(-wanted, ours.values), number
            changes += 1
            after = None if ours._buffers is None else ours._buffers[0].data_ptr()
            kept += before is not None and before == after
    return kept, changes


@pytest.mark.parametrize("seed", range(12))
def test_random_comings_and_goings_change_nothing(seed: int) -> None:
    """Rows and columns that are used again hold what they should, whatever came before."""
    kept, changes = _comings_and_goings(seed)
    assert kept > changes / 3


def test_mutation_a_row_left_as_it_was_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison fails for a layer that forgets to empty the columns of who joins."""
    join = GrowingLayer.join

    def spoiled(self: Any, other: Any, left: int, other_left: int) -> None:
        join(self, other, left, other_left)
        if other_left:
            self.keys[-1, :, 0] = 7.0

    monkeypatch.setattr(GrowingLayer, "join", spoiled)
    with pytest.raises(AssertionError):
        _comings_and_goings(1)


def test_only_layers_that_keep_all_keys_are_replaced(llama: LocalModel) -> None:
    """Sliding windows stay as they are, and transformers' own registry is left alone."""
    config = llama.module.config
    assert {GrowingLayer} == {type(layer) for layer in growing_cache(config).layers}
    assert {DynamicLayer} == {type(layer) for layer in DynamicCache(config=config).layers}
    sliding = type(config)(**{**config.to_dict(), "sliding_window": 8})
    sliding.layer_types = ["sliding_attention"] * config.num_hidden_layers
    assert {DynamicSlidingWindowLayer} == {type(x) for x in growing_cache(sliding).layers}
