"""Local models: the one place that uses torch and transformers, and only once a model is built.

- `LocalModel`: a Hugging Face model as a tier (`model`, `load`, `chat`, `generate`, `decoding`)
- `memory_estimate`: what a model will need, before loading it
- `Settings`: how one call decodes
- `SpeculativeCascade`, `TokenCascade`: deferral per token, as the policy of a boundary
- `SpeculativePair`, `SequentialPair`: the same as models of their own
- `compare`: how far two models are apart, and what speculation would gain
- `rules`: the deferral rules (`TokenV3`, `Lossless`, `Chow`, ...)
"""

from __future__ import annotations

from cascadellm.local import rules
from cascadellm.local.compare import Comparison, compare
from cascadellm.local.model import LocalModel, memory_estimate
from cascadellm.local.pair import SequentialPair, SpeculativePair
from cascadellm.local.settings import Settings
from cascadellm.local.speculative import SpeculativeCascade, TokenCascade

__all__ = [
    "Comparison",
    "LocalModel",
    "SequentialPair",
    "Settings",
    "SpeculativeCascade",
    "SpeculativePair",
    "TokenCascade",
    "compare",
    "memory_estimate",
    "rules",
]
