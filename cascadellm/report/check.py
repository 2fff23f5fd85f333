"""What a line must hold to count as the record of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["fault"]

_ATTEMPT = {"tier": (int,), "name": (str,), "action": (str,)}
_COUNTS = ("input_tokens", "output_tokens")


def fault(row: Mapping[str, Any]) -> str | None:
    """Return why an object is no record of a call, None when it is one."""
    attempts = row.get("attempts")
    if not isinstance(attempts, list):
        return "no record of a call: 'attempts' is missing or no list"
    for attempt in attempts:
        wrong = _attempt_fault(attempt)
        if wrong is not None:
            return f"no record of a call: {wrong}"
    if not isinstance(row.get("answered_by"), (str, type(None))):
        return "no record of a call: 'answered_by' must be text or null"
    checks: tuple[tuple[str, Callable[[Any], bool]], ...] = (
        ("spans", _are_spans),
        ("drafts", lambda value: isinstance(value, list)),
        ("tokens_by_tier", _are_tokens),
    )
    for key, holds in checks:
        if row.get(key) is not None and not holds(row[key]):
            return f"no record of a call: {key!r} has an unknown form"
    return None


def _attempt_fault(attempt: Any) -> str | None:
    if not isinstance(attempt, dict):
        return "an attempt is no object"
    for key, kinds in _ATTEMPT.items():
        if not isinstance(attempt.get(key), kinds):
            return f"an attempt's {key!r} is missing or no {kinds[0].__name__}"
    for key in _COUNTS:
        if not isinstance(attempt.get(key), (int, type(None))):
            return f"an attempt's {key!r} is no whole number"
    calls = attempt.get("calls")
    if calls is not None and not (
        isinstance(calls, list) and all(isinstance(call, dict) for call in calls)
    ):
        return "an attempt's 'calls' has an unknown form"
    return None


def _are_spans(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(span, list)
        and len(span) == 3
        and isinstance(span[0], int)
        and isinstance(span[1], int)
        and isinstance(span[2], str)
        for span in value
    )


def _are_tokens(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(counts, dict) and all(isinstance(n, int) for n in counts.values())
        for counts in value.values()
    )
