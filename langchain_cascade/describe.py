"""Settings as text: equal for equal settings, different for different ones, without secrets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from langchain_core.runnables import Runnable
from pydantic import BaseModel, SecretStr

from cascadellm.scores import SCORES, Score
from cascadellm.tier import LocalLike
from langchain_cascade.local import LocalChatModel

__all__ = ["describe"]

_SECRET = re.compile(r"key|secret|passw|credential|authorization|header|cookie|token$", re.I)
_OF_THE_RUN = ("callbacks", "metadata", "tags")


def describe(value: Any) -> str:
    """Return a text that is equal for equal settings and differs for different ones.

    Functions go by their qualified name; lambdas, local functions and objects without
    settings of their own by their identity in this process.
    """
    if isinstance(value, Score):
        custom = value.name not in SCORES and value.level is None
        return f"{value.name}:{describe(value.function)}" if custom else value.name
    if value is None or isinstance(value, (str, int, float, bool)):
        return repr(value)
    if is_dataclass(value) and not isinstance(value, (type, Runnable)) and not _local(value):
        settings = [f.name for f in fields(value) if f.init]
        inner = ", ".join(f"{name}={describe(getattr(value, name))}" for name in settings)
        return f"{type(value).__name__}({inner})"
    if isinstance(value, Mapping):
        known = {str(k): describe(v) for k, v in value.items() if not _secret(str(k), v)}
        return str(sorted(known.items()))
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(describe(item) for item in value)}]"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(describe(item) for item in value))}}}"
    if isinstance(value, BaseModel):
        return _pydantic(value)
    return _local_model(value) if _local(value) else _by_name(value)


def _local(value: Any) -> bool:
    # wrappers that forward attributes cannot be asked whether they look like a local model
    return not isinstance(value, Runnable) and isinstance(value, LocalLike)


def _pydantic(value: BaseModel) -> str:
    shown = {
        name: describe(field)
        for name, field in value
        if name not in _OF_THE_RUN and not _secret(name, field)
    }
    if isinstance(value, LocalChatModel):
        shown["model"] = describe(value.model)
    return f"{type(value).__name__}{sorted(shown.items())}"


def _local_model(value: Any) -> str:
    settings = getattr(value, "settings", None)
    own = describe(settings()) if callable(settings) else f"object {id(value):x}"
    return f"{type(value).__name__}({getattr(value, 'path', value.model_name)}, {own})"


def _secret(name: str, value: Any) -> bool:
    if isinstance(value, SecretStr):
        return True
    return isinstance(value, (str, dict)) and _SECRET.search(name) is not None


def _by_name(value: Any) -> str:
    name = getattr(value, "__qualname__", None)
    if isinstance(value, Callable) and name and "<" not in name:  # type: ignore[arg-type]
        return f"{value.__module__}.{name}"
    return f"{type(value).__name__} {id(value):x}"
