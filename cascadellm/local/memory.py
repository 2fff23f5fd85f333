"""How much memory a model will need, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from cascadellm.errors import ModelError
from cascadellm.local.load import LoadOptions, choose_device, choose_dtype, read_config

__all__ = ["MemoryEstimate", "estimate"]


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Memory that a model needs on its device.

    Attributes:
        parameters: Number of weights.
        weights_bytes: Size of the weights.
        cache_bytes: Size of the key/value cache for the tokens and batch asked about.
    """

    parameters: int
    weights_bytes: int
    cache_bytes: int

    @property
    def total_bytes(self) -> int:
        """Weights plus cache; activations come on top, usually below a tenth of it."""
        return self.weights_bytes + self.cache_bytes

    def __str__(self) -> str:
        return (
            f"{self.total_bytes / 2**30:.2f} GiB: {self.weights_bytes / 2**30:.2f} weights "
            f"({self.parameters:,} parameters) + {self.cache_bytes / 2**30:.2f} cache"
        )


def estimate(options: LoadOptions, tokens: int, batch_size: int) -> MemoryEstimate:
    """Estimate without reading any weights.

    Raises:
        ModelError: There is no such model, or it is no language model.
    """
    config = read_config(options)
    seq2seq = bool(getattr(config, "is_encoder_decoder", False))
    family = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            module = family.from_config(  # type: ignore[no-untyped-call]
                config, trust_remote_code=options.trust_remote_code
            )
    except ValueError as error:
        raise ModelError(f"{options.path} is no language model: {error}") from error
    parameters = sum(weight.numel() for weight in module.parameters())
    size = _bytes_per_number(options, config)
    packed = _packed_bytes(options.quantization_config, size)
    return MemoryEstimate(
        parameters=parameters,
        weights_bytes=round(parameters * packed),
        cache_bytes=round(_cache_numbers(config, seq2seq) * size * tokens * batch_size),
    )


def _bytes_per_number(options: LoadOptions, config: Any) -> int:
    dtype = choose_dtype(options, choose_device(options))
    if dtype == "auto":
        dtype = getattr(config, "dtype", None)
    return dtype.itemsize if isinstance(dtype, torch.dtype) else 4


def _packed_bytes(quantization: Any, size: int) -> float:
    """Return bytes per weight; only bitsandbytes' switches are known, others count in full."""
    if getattr(quantization, "load_in_4bit", False):
        return 0.5
    return 1.0 if getattr(quantization, "load_in_8bit", False) else float(size)


def _cache_numbers(config: Any, seq2seq: bool) -> int:
    """Return how many numbers one token adds to the cache (keys and values of all layers)."""
    text = config.get_text_config(decoder=True)
    layers = getattr(text, "num_decoder_layers", None) or text.num_hidden_layers
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = (
        getattr(text, "head_dim", None)
        or getattr(text, "d_kv", None)
        or text.hidden_size // text.num_attention_heads
    )
    # a decoder with an encoder caches keys of the prompt beside its own
    return int(2 * layers * heads * width * (2 if seq2seq else 1))
