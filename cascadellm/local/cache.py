"""Key/value caches that can be rolled back, on transformers' own cache classes."""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, EncoderDecoderCache

from cascadellm.errors import ConfigurationError

__all__ = ["Rollback", "new_cache"]


def new_cache(module: Any, name: str) -> Any:
    """Return an empty cache for a model whose drafts can be taken back.

    Args:
        module: A transformers model.
        name: Its name, for errors.

    Raises:
        ConfigurationError: A layer keeps a state that forgets what a rollback needs.
    """
    config = module.config
    if getattr(config, "is_encoder_decoder", False):
        # the whole model's configuration counts the encoder's layers
        decoder = module.get_decoder().config
        cache: Any = EncoderDecoderCache(DynamicCache(config=decoder), DynamicCache(config=decoder))
        _check_layers(cache.self_attention_cache, name)
        return cache
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    _check_layers(cache, name)
    return cache


def _check_layers(cache: Any, name: str) -> None:
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            continue
        if getattr(layer, "is_sliding", False) and hasattr(layer, "activate_past_recording"):
            # the window drops old states at once unless it is told to wait for a crop
            layer.activate_past_recording()
            continue
        raise ConfigurationError(
            f"{name} cannot take part in a pair: layer {number} keeps its past in a "
            f"{type(layer).__name__}, which cannot take back drafted tokens; use a model with "
            "full or sliding-window attention, or an answer-level policy"
        )


class Rollback:
    """Takes tokens back from the self-attention cache of one model.

    Args:
        cache: A cache made by `new_cache`.
    """

    def __init__(self, cache: Any) -> None:
        self._cache = getattr(cache, "self_attention_cache", cache)

    def __call__(self, length: int, removed: int) -> None:
        """Keep the first `length` tokens.

        Args:
            length: Tokens to keep.
            removed: Tokens that are taken back; 0 still lets a window drop what it may.
        """
        for layer in self._cache.layers:
            if type(layer) is not DynamicLayer:
                layer.crop(-removed)
            elif removed and layer.keys is not None and layer.values is not None:
                # views: the next append copies what is kept, so nothing stays behind
                layer.keys = layer.keys[:, :, :length]
                layer.values = layer.values[:, :, :length]
