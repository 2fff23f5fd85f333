"""Local models: the one place that uses torch and transformers, and only once a model is built.

- `LocalModel`: a Hugging Face model as a tier (`model`, `load`, `chat`, `generate`, `decoding`)
- `memory_estimate`: what a model will need, before loading it
- `Settings`: how one call decodes
"""

from __future__ import annotations

from cascadellm.local.model import LocalModel, memory_estimate
from cascadellm.local.settings import Settings

__all__ = ["LocalModel", "Settings", "memory_estimate"]
