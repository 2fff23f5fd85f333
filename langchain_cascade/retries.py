"""A provider's own retries, switched off where the tier has a retry loop of its own."""

from __future__ import annotations

import warnings
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel

__all__ = ["without_retries"]

_ROOTS = {"root_client": "client", "root_async_client": "async_client"}


def without_retries(model: Any) -> Any:
    """Return a model that asks its provider once per call; a copy, the user's own is untouched.

    Models on OpenAI's client are copied with it; for others with retries a warning says that
    requests multiply.
    """
    times = getattr(model, "max_retries", 0) if isinstance(model, BaseChatModel) else 0
    if times == 0:
        return model
    update: dict[str, Any] = {"max_retries": 0}
    for root, resource in _ROOTS.items():
        client = getattr(model, root, None)
        if client is None:
            continue
        if not hasattr(client, "with_options"):
            break
        update[root] = client.with_options(max_retries=0)
        update[resource] = update[root].chat.completions
    if len(update) > 1:
        return model.model_copy(update=update)
    if times:
        warnings.warn(
            f"{type(model).__name__} retries {times} times by itself and its tier has "
            "retry= too, so requests multiply; set max_retries=0 on the model, or leave retry out",
            UserWarning,
            stacklevel=2,
        )
    return model
