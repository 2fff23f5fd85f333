"""What a pair holds in memory, and what leaves it when a model breaks half way."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from cascadellm.errors import ModelError
from cascadellm.local import LocalModel, SpeculativePair, record, rules
from tests.local.spec_models import noisy_copy
from tests.local.tiny_models import tiny_llama, tiny_t5

ASK = "Tell me about rain."
# a width that no other tensor of the models has
VOCAB = 389


@pytest.fixture(scope="module", params=["causal", "t5"])
def models(request, tmp_path_factory):
    base = tmp_path_factory.mktemp("limits")
    if request.param == "causal":
        large = tiny_llama(base / "large", layers=2, width=64, seed=1, vocab=VOCAB, window=1024)
        noise = 0.05
    else:
        large, noise = tiny_t5(base / "large", layers=2, seed=2, vocab=VOCAB), 0.001
    found = [
        LocalModel(path, max_new_tokens=160)
        for path in (noisy_copy(large, base / "small", noise=noise), large)
    ]
    yield found
    for model in found:
        model.close()


def rows_alive(weights: set[int]) -> int:
    """Return how many rows of the vocabulary's width are held, each storage counted once."""
    held: dict[int, int] = {}
    for thing in gc.get_objects():
        # isinstance would ask some lazy modules for their class
        if issubclass(type(thing), torch.Tensor) and thing.dim() and thing.shape[-1] == VOCAB:
            storage = thing.untyped_storage()
            if storage.data_ptr() not in weights:
                held[storage.data_ptr()] = storage.nbytes() // (VOCAB * thing.element_size())
    return sum(held.values())


def held_over_time(models: Any, rule: Any, **settings: Any) -> list[int]:
    """Return the rows held at each piece of a stream, without those of its end."""
    weights = {
        weight.untyped_storage().data_ptr()
        for model in models
        for weight in (*model.module.parameters(), *model.module.buffers())
    }
    pair = SpeculativePair(*models, rule, 3)
    pieces = (piece for piece in pair.stream(ASK, **settings) if piece.answer is None)
    return [rows_alive(weights) for number, piece in enumerate(pieces) if number % 4 == 0]


@pytest.mark.parametrize("rule", [rules.Lossless(), rules.TokenV3(0.3)], ids=str)
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "T=1"])
def test_no_history_of_whole_rows_is_kept(models, rule, settings) -> None:
    """As many rows are held late in a long answer as early in it, with scores and candidates."""
    held = held_over_time(models, rule, top_logprobs=5, **settings)
    assert len(held) > 7
    quarter = len(held) // 4
    assert 0 < max(held[quarter:]) <= max(60, max(held[:quarter]) + 8)


def test_mutation_rows_that_pile_up_are_noticed(models, monkeypatch) -> None:
    """A record that scores everything at the end holds ever more rows."""
    monkeypatch.setattr(record, "_CHUNK", 10**9)
    with pytest.raises(AssertionError):
        test_no_history_of_whole_rows_is_kept(models, rules.TokenV3(0.3), {})


def test_both_caches_grow_with_the_text_and_no_faster(models) -> None:
    """After n tokens every layer of both models holds fewer than n of the sequence."""
    pair = SpeculativePair(*models, rules.TokenV3(0.3), 4)
    decoder = pair._runner.decoder(models[1].prompt(ASK), pair.settings())
    sizes = []
    for _ in range(25):
        decoder.round(4)
        total = 0
        for lane in decoder.lanes:
            cache = getattr(lane._cache, "self_attention_cache", lane._cache)
            for layer in cache.layers:
                assert layer.keys.shape[-2] == lane.length < len(decoder.tokens)
                total += layer.keys.numel() + layer.values.numel()
        sizes.append((len(decoder.tokens), total))
    per_token = [total / tokens for tokens, total in sizes]
    assert max(per_token) < 1.3 * min(per_token[5:])


@contextmanager
def broken(model: LocalModel, after: int) -> Iterator[None]:
    """Let a model's head return NaN from one call on."""
    calls = 0

    def spoil(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        nonlocal calls
        calls += 1
        return output * float("nan") if calls > after else None

    hook = model.module.lm_head.register_forward_hook(spoil)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rule", [rules.Lossless(), rules.TokenV3(0.3)], ids=str)
@pytest.mark.parametrize("place", [0, 1], ids=["draft", "target"])
def test_a_row_of_nan_names_the_step_and_shows_nothing_unaccepted(
    models, place, rule, temperature
) -> None:
    """What was streamed before the error is the beginning of the sound answer."""
    pair = SpeculativePair(*models, rule, 3)
    settings = {"temperature": temperature, "seed": 5, "max_new_tokens": 60}
    sound = pair.generate(ASK, **settings)
    role = ("draft", "target")[place]
    for after in (0, 4, 9):
        shown: list[str] = []
        with broken(models[place], after):
            stream = pair.stream(ASK, **settings)
            with pytest.raises(ModelError, match=rf"the {role} model returned nan .* for") as told:
                shown.extend(piece.text for piece in stream)
        assert sound.text.startswith("".join(shown))
        step = int(str(told.value).partition("for token ")[2].split()[0])
        assert "nothing of this step was emitted" in str(told.value)
        assert any(shown) <= (step > 1)
        # the target has been asked nine times by then
        assert any(shown) or after < 9 or role == "draft"
        assert step <= 60
        assert (step == 1) == (after == 0)
    assert sound == pair.generate(ASK, **settings)
