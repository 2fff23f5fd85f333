"""Pairs of tiny models that agree often enough to make speculation interesting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

__all__ = ["noisy_copy", "set_config"]


def noisy_copy(source: str, folder: Path, *, noise: float = 0.05, seed: int = 5) -> str:
    """Save a copy of a model with noise on its weights, as a draft that often agrees.

    Args:
        source: Folder of the model.
        folder: Where to save.
        noise: Standard deviation relative to each weight's own.
        seed: Of the noise.
    """
    from transformers import AutoConfig, AutoTokenizer

    seq2seq = AutoConfig.from_pretrained(source).is_encoder_decoder
    family: Any = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    model = family.from_pretrained(source)
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight += noise * weight.std() * torch.randn(weight.shape, generator=stream)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return str(folder)


def set_config(folder: str, **values: Any) -> str:
    """Change entries of a saved model's config.json."""
    import json

    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    config.update(values)
    path.write_text(json.dumps(config))
    return folder
