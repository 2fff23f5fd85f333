"""A costlier target with the same function: layers that add nothing to the residual stream."""

from __future__ import annotations

import copy
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from cascadellm.local import LocalModel


def deepened(model: LocalModel, layers: int, folder: Path) -> LocalModel:
    """Save and load a copy of a model with more decoder layers and the same function.

    The new layers are copies of the last one with zero output projections: a cost model for
    timing, no claim about quality.

    Args:
        model: The target; left as it is.
        layers: Number of decoder layers of the copy.
        folder: Where the copy is saved.
    """
    seq2seq = model.is_encoder_decoder
    module = copy.deepcopy(model.module)
    stack = module.decoder.block if seq2seq else module.model.layers
    while len(stack) < layers:
        stack.append(_silent(stack[-1], len(stack), seq2seq=seq2seq))
    if seq2seq:
        module.config.num_decoder_layers = layers
    else:
        module.config.num_hidden_layers = layers
        if getattr(module.config, "layer_types", None):
            module.config.layer_types = [module.config.layer_types[0]] * layers
    module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return LocalModel(str(folder), name=f"{model.model_name}-{layers}-layers")


def _silent(layer: Any, place: int, *, seq2seq: bool) -> Any:
    twin = copy.deepcopy(layer)
    if seq2seq:
        attention, cross, feed = (part for part in twin.layer)
        attention.SelfAttention.layer_idx = cross.EncDecAttention.layer_idx = place
        outputs = [attention.SelfAttention.o, cross.EncDecAttention.o, feed.DenseReluDense.wo]
        if getattr(attention.SelfAttention, "has_relative_attention_bias", False):
            attention.SelfAttention.has_relative_attention_bias = False
            del attention.SelfAttention.relative_attention_bias
    else:
        twin.self_attn.layer_idx = place
        outputs = [twin.self_attn.o_proj, twin.mlp.down_proj]
    with torch.no_grad():
        for linear in outputs:
            linear.weight.zero_()
            if linear.bias is not None:
                linear.bias.zero_()
    return twin


def step_seconds(model: LocalModel, prompt: str, tokens: int = 16) -> float:
    """Return the processor time of one decoding step."""
    times = []
    for _ in range(3):
        begun = time.thread_time()
        answer = model.generate(prompt, max_new_tokens=tokens, logprobs=False)
        assert answer.usage is not None
        times.append((time.thread_time() - begun) / answer.usage.output_tokens)
    return statistics.median(times)


def with_ratio(
    small: LocalModel,
    large: LocalModel,
    prompt: str,
    ratio: float,
    folder: Path,
    layers: int | None = None,
) -> tuple[LocalModel, int]:
    """Return a deepened target of which a draft step costs at most `ratio`, and its layers.

    Layers that an earlier run found are taken as they are.
    """
    if layers is not None:
        return deepened(large, layers, folder / f"{layers}-layers"), layers
    module = large.module
    first = len(module.decoder.block if large.is_encoder_decoder else module.model.layers)
    draft, target = step_seconds(small, prompt), step_seconds(large, prompt)
    layers, found = first, large
    while draft / target > ratio and layers < 40 * first:
        layers = max(layers + 1, int(1.05 * layers * draft / target / ratio))
        found = deepened(large, layers, folder / f"{layers}-layers")
        target = step_seconds(found, prompt)
    return found, layers
