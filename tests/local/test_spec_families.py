"""Pairs of many architectures: those that roll back equal the target, the others are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from cascadellm.errors import ConfigurationError
from cascadellm.local import LocalModel, SpeculativePair, rules
from tests.local.spec_models import noisy_copy
from tests.local.tiny_models import _save, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
COMMON: dict[str, Any] = {
    "vocab_size": len(TOKENIZER), "eos_token_id": TOKENIZER.eos_token_id,
    "pad_token_id": TOKENIZER.pad_token_id, "bos_token_id": None,
}  # fmt: skip
SIZES: dict[str, Any] = {
    **COMMON, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
WINDOW = 16
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32, "head_dim": 8}
Build = Callable[[], Any]
FAMILIES: dict[str, tuple[Any, Build]] = {
    "absolute positions": (
        hf.GPT2LMHeadModel,
        lambda: hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=512, **COMMON),
    ),
    "every layer slides": (
        hf.Phi3ForCausalLM,
        lambda: hf.Phi3Config(sliding_window=WINDOW, **SIZES),
    ),
    "some layers slide": (
        hf.Gemma3ForCausalLM,
        lambda: hf.Gemma3TextConfig(head_dim=8, **MIXED, **SIZES),
    ),
    "later layers slide": (
        hf.Qwen2ForCausalLM,
        lambda: hf.Qwen2Config(
            use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2, **SIZES
        ),
    ),
    "chunked attention": (
        hf.Llama4ForCausalLM,
        lambda: hf.Llama4TextConfig(
            head_dim=8, attention_chunk_size=WINDOW, num_local_experts=2,
            intermediate_size_mlp=64, **SIZES,
        ),
    ),
    "experts": (hf.Qwen3MoeForCausalLM, lambda: hf.Qwen3MoeConfig(**EXPERTS, **SIZES)),
    "encoder-decoder without a shared table": (
        hf.MT5ForConditionalGeneration,
        lambda: hf.MT5Config(
            d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
            decoder_start_token_id=TOKENIZER.pad_token_id,
            **{k: v for k, v in COMMON.items() if k != "bos_token_id"},
        ),
    ),
}  # fmt: skip
RECURRENT: dict[str, tuple[Any, Build]] = {
    "states only": (
        hf.MambaForCausalLM,
        lambda: hf.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **COMMON),
    ),
    "states and attention": (
        hf.Qwen3NextForCausalLM,
        lambda: hf.Qwen3NextConfig(
            linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
            linear_value_head_dim=8, shared_expert_intermediate_size=16, **EXPERTS, **SIZES,
        ),
    ),
}  # fmt: skip


def built(kind: tuple[Any, Build], folder: Path) -> tuple[LocalModel, LocalModel]:
    """Return a draft and a target of one family."""
    path = _save(kind[0], kind[1](), TOKENIZER, folder / "target", 3, (8.0, 4.0))
    draft = noisy_copy(path, folder / "draft", noise=0.02)
    return LocalModel(draft, max_new_tokens=50), LocalModel(path, max_new_tokens=50)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_lossless_is_the_target_in_every_family(family, tmp_path) -> None:
    """Prompt and answer are longer than the window; drafts are kept and rejected."""
    draft, target = built(FAMILIES[family], tmp_path)
    alone = target.generate("Tell me about rain.")
    kept = rejected = 0
    for gamma in (1, 3, 8):
        answer = SpeculativePair(draft, target, rules.Lossless(), gamma).generate(
            "Tell me about rain."
        )
        assert alone.text == answer.text
        assert [t.token for t in alone.tokens] == [t.token for t in answer.tokens]
        kept += answer.speculation["accepted"]
        rejected += answer.speculation["rejected"]
    assert kept > 50
    assert rejected > 0


@pytest.mark.parametrize("family", RECURRENT)
def test_a_state_that_cannot_go_back_is_refused_at_construction(family, tmp_path) -> None:
    """The error names the model, the layer and what can be done instead."""
    draft, target = built(RECURRENT[family], tmp_path)
    with pytest.raises(ConfigurationError, match="draft cannot take part in a pair: layer 0 keeps"):
        SpeculativePair(draft, target, rules.Lossless(), 2)


def test_a_sliding_cache_stays_as_short_as_its_window(tmp_path) -> None:
    """What a rollback may need is kept, and nothing older."""
    draft, target = built(FAMILIES["some layers slide"], tmp_path)
    pair = SpeculativePair(draft, target, rules.Lossless(), 4)
    decoder = pair._runner.decoder(target.prompt("Tell me about rain."), pair.settings())
    for _ in range(12):
        decoder.round(4)
        for lane in decoder.lanes:
            for layer in lane._cache.layers:
                kept = layer.keys.shape[-2]
                longest = WINDOW + 4 if layer.is_sliding else lane.length
                assert kept <= longest
                if not layer.is_sliding:
                    assert lane.length == kept
    assert len(decoder.tokens) > 3 * WINDOW
