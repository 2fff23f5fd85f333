"""A provider's own retries, switched off where the tier has a retry loop of its own."""

from __future__ import annotations

import warnings
from typing import Any

from llama_index.core.llms.llm import LLM

__all__ = ["without_retries"]


def without_retries(model: Any) -> Any:
    """Return an LLM that asks its provider once per call; a copy, the user's own is untouched.

    LLMs on OpenAI's client make it anew from their settings; for others with retries a warning
    says that requests multiply.
    """
    times = getattr(model, "max_retries", 0) if isinstance(model, LLM) else 0
    if not times:
        return model
    if not hasattr(model, "_get_credential_kwargs"):
        warnings.warn(
            f"{type(model).__name__} retries {times} times by itself and its tier has "
            "retry= too, so requests multiply; set max_retries=0 on the LLM, or leave retry out",
            UserWarning,
            stacklevel=2,
        )
        return model
    copy: Any = model.model_copy(update={"max_retries": 0})
    # clients that exist carry the old number; others are made from the settings at the first call
    for name in ("_client", "_aclient"):
        client = getattr(copy, name, None)
        if client is not None:
            setattr(copy, name, client.with_options(max_retries=0))
    return copy
