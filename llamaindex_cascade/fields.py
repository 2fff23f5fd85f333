"""Fields of provider responses, which are dicts or objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["field_of"]


def field_of(value: Any, name: str) -> Any:
    """Return a mapping's item or an object's attribute, None when absent."""
    # a plain dict is the usual case, and the check for mappings is slow
    if type(value) is dict or isinstance(value, Mapping):
        return value.get(name)
    return getattr(value, name, None)
