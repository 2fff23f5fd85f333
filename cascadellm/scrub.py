"""Credentials taken out of what leaves the process: settings by their names, errors by form.

Frameworks hide keys that they know as secrets. They show headers, credentials inside a URL, and
whatever an error says, such as the whole of a header that no server would accept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["HIDDEN", "error_text", "scrubbed", "scrubbed_text"]

HIDDEN = "**hidden**"
"""What stands in place of a credential."""

_NAMES = re.compile(
    r"headers?$|authorization|api_?key|secret|password|credential|(access|auth|bearer)_?token",
    re.IGNORECASE,
)
_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_FORMS = (
    _IN_URL,
    # HTTP clients quote the value of a header that they refuse to send
    re.compile(r"""(?<=header value )b?(['"]).*?\1"""),
    re.compile(r"""\b(?i:bearer|basic)\s+(?=[^\s'",;]*[\d=])[^\s'",;\\]{6,}"""),
    re.compile(r"\b(?:(?:sk|pk|rk|gsk|xai|hf|lsv2|ghp|glpat)[-_]|AKIA|AIza)[\w-]{8,}"),
)
_NAMED = re.compile(
    r"(\b(?:x-)?(?:api|access|auth|secret|private)[-_ ]?(?:key|token)|\bauthorization|\bpassword)"
    r"""((?: provided)?["']?\s*[:=]\s*["']?)[^\s"',;}]+""",
    re.IGNORECASE,
)


def scrubbed(value: Any) -> Any:
    """Return plain data without the values of names that hold credentials; a copy if changed."""
    if isinstance(value, str):
        return _IN_URL.sub(HIDDEN, value) if "@" in value else value
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
        return HIDDEN
    return scrubbed(value)


def scrubbed_text(text: str) -> str:
    """Return the text of an error without what has the form of a credential."""
    for form in _FORMS:
        text = form.sub(HIDDEN, text)
    return _NAMED.sub(rf"\1\2{HIDDEN}", text)


def error_text(error: BaseException, longest: int = 500) -> str:
    """Return an error as records show it."""
    return scrubbed_text(f"{type(error).__name__}: {error}")[:longest]
