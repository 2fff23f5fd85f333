"""Markup that is escaped unless it was built here.

A model's answer is hostile input to a page. Every helper escapes plain `str`; only `Html`,
which these helpers return, passes unchanged.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any

__all__ = ["Html", "element", "escape", "join", "json_block"]

_VOID = frozenset({"br", "hr", "input", "meta"})


class Html(str):
    """Finished markup; the only text that is not escaped."""

    __slots__ = ()


def escape(value: Any) -> Html:
    """Return text that is safe between tags and inside quoted attributes."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(str(value), quote=True))


def join(parts: Iterable[Any], between: str = "") -> Html:
    """Escape and join parts."""
    return Html(between.join(escape(part) for part in parts))


def element(tag: str, *children: Any, **attributes: Any) -> Html:
    """Return one element; children and attribute values are escaped.

    Args:
        tag: Name of the element.
        *children: Text or `Html`; None is left out.
        **attributes: A trailing underscore is dropped (`class_`), other underscores become
            hyphens; None and False are left out, True is a bare attribute.
    """
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        name = key.rstrip("_").replace("_", "-")
        written.append(f" {name}" if value is True else f' {name}="{escape(value)}"')
    opening = f"<{tag}{''.join(written)}>"
    if tag in _VOID:
        return Html(opening)
    inner = join(child for child in children if child is not None)
    return Html(f"{opening}{inner}</{tag}>")


def json_block(identifier: str, data: Any) -> Html:
    """Return data for a page's script; no text in it can end the block."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, code in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(character, code)
    text = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return Html(f'<script type="application/json" id="{escape(identifier)}">{text}</script>')
