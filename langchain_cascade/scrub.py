"""Credentials taken out of what a tracer is about to send.

LangChain knows API keys as secrets, but shows headers, and credentials inside a URL, as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["scrub", "scrubbed"]

_NAMES = re.compile(
    r"headers?$|authorization|api_?key|secret|password|credential|(access|auth|bearer)_?token",
    re.IGNORECASE,
)
_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_HIDDEN = "**hidden**"


def scrub(run: Any) -> None:
    """Take the credentials out of a run before it is sent."""
    run.serialized, run.extra = scrubbed(run.serialized), scrubbed(run.extra)


def scrubbed(value: Any) -> Any:
    """Return plain data without the values of names that hold credentials; a copy if changed."""
    if isinstance(value, str):
        return _IN_URL.sub(_HIDDEN, value) if "@" in value else value
    if isinstance(value, Mapping):
        # LangChain's own placeholder for a secret names the variable and holds no value
        if value.get("type") == "secret":
            return value
        return {key: _shown(key, one) for key, one in value.items()}
    if isinstance(value, list):
        return [scrubbed(one) for one in value]
    return value


def _shown(key: Any, value: Any) -> Any:
    held = value and not (isinstance(value, Mapping) and value.get("type") == "secret")
    if held and isinstance(key, str) and _NAMES.search(key) and not isinstance(value, bool):
        return _HIDDEN
    return scrubbed(value)
