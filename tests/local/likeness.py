"""When two answers count as the same although they were computed in different batches."""

from __future__ import annotations

from cascadellm.answer import Answer

__all__ = ["same"]


def same(one: Answer | None, other: Answer | None) -> bool:
    """Whether text, tokens, calls and counts are equal, and scores up to rounding."""
    if one is None or other is None or one.tokens is None or other.tokens is None:
        return False
    pairs = list(zip(one.tokens, other.tokens, strict=False))
    return (
        (one.text, one.reasoning, one.tool_calls, one.usage, one.finish_reason)
        == (other.text, other.reasoning, other.tool_calls, other.usage, other.finish_reason)
        and len(one.tokens) == len(other.tokens)
        and all((a.token, a.part) == (b.token, b.part) for a, b in pairs)
        and all(abs(a.logprob - b.logprob) < 1e-3 for a, b in pairs)
    )
