"""Token scores out of a provider's raw response.

`ChatResponse.logprobs` lists the likeliest alternatives, argmax first, and does not say
which token was sampled, so the provider's own object is read instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llama_index.core.base.llms.types import ChatResponse

from cascadellm.answer import Piece, TokenScore

__all__ = ["chunk_scores", "can_score", "scoring_kwargs", "token_scores"]

_TOP = 5


def _field(value: Any, name: str) -> Any:
    # once per field of every token: a plain dict is the usual case, the other check is slow
    if type(value) is dict or isinstance(value, Mapping):
        return value.get(name)
    return getattr(value, name, None)


def _chat_style(content: Iterable[Any]) -> list[TokenScore]:
    scores = []
    for item in content:
        top = tuple(
            (str(_field(other, "token")), float(_field(other, "logprob")))
            for other in _field(item, "top_logprobs") or ()
        )
        scores.append(TokenScore(str(_field(item, "token")), float(_field(item, "logprob")), top))
    return scores


def _completion_style(logprobs: Any) -> list[TokenScore]:
    values = _field(logprobs, "token_logprobs") or ()
    tokens = _field(logprobs, "tokens") or [""] * len(values)
    tops = _field(logprobs, "top_logprobs") or [None] * len(values)
    scores = []
    for token, value, top in zip(tokens, values, tops, strict=False):
        ranked = sorted((top or {}).items(), key=lambda pair: -pair[1])
        logprob = math.nan if value is None else float(value)
        scores.append(TokenScore(str(token), logprob, tuple(ranked)))
    return scores


def chunk_scores(raw: Any) -> list[TokenScore] | None:
    """Return the token scores in one raw response or stream chunk, None if it has none."""
    piece = _field(raw, "piece")
    if isinstance(piece, Piece):
        return list(piece.tokens) or None
    choices = _field(raw, "choices")
    choice = choices[0] if isinstance(choices, Sequence) and choices else None
    logprobs = _field(choice, "logprobs")
    content = _field(logprobs, "content")
    if content:
        return _chat_style(content)
    if _field(logprobs, "token_logprobs"):
        return _completion_style(logprobs)
    return None


def token_scores(
    response: ChatResponse, *, text: str, reasoning: str | None, calls: bool
) -> tuple[TokenScore, ...] | None:
    """Return the scores of the chosen tokens, None when the provider gave none.

    Args:
        response: The tier's response.
        text: The answer without its reasoning.
        reasoning: The reasoning block, or None.
        calls: Whether the answer calls tools.
    """
    scores = chunk_scores(response.raw)
    if scores is None:
        scores = _single_entries(response)
    if not scores:
        return None
    return mark_parts(scores, text=text, reasoning=reasoning, calls=calls)


def _single_entries(response: ChatResponse) -> list[TokenScore] | None:
    # with one entry per token that entry is the chosen token; with more it is unknown
    lists = response.logprobs
    if not lists or any(len(entries) != 1 for entries in lists):
        return None
    return [TokenScore(entries[0].token, entries[0].logprob) for entries in lists]


def mark_parts(
    scores: Sequence[TokenScore], *, text: str, reasoning: str | None, calls: bool
) -> tuple[TokenScore, ...]:
    """Say of each token whether it belongs to the answer, its reasoning or a tool call."""
    if calls and not text.strip():
        return tuple(replace(score, part="arguments") for score in scores)
    if not reasoning:
        return tuple(scores)
    start = "".join(score.token for score in scores).rfind(text.strip())
    if start < 0 or not text.strip():
        return tuple(scores)
    marked, place = [], 0
    for score in scores:
        end = place + len(score.token)
        marked.append(score if end > start else replace(score, part="reasoning"))
        place = end
    return tuple(marked)


def can_score(llm: Any) -> bool | None:
    """Return whether an LLM can give logprobs; None when there is no telling."""
    names = {cls.__name__ for cls in type(llm).__mro__}
    if "OpenAIResponses" in names:
        return False
    if names & {"OpenAI", "LocalLLM", "CascadeLLM", "HuggingFaceLLM"}:
        return True
    if "MockLLM" in names:
        return False
    return None


def scoring_kwargs(llm: Any, reads: frozenset[str]) -> dict[str, Any]:
    """Return the call arguments that make an LLM give what a policy reads."""
    names = {cls.__name__ for cls in type(llm).__mro__}
    if "logprobs" not in reads or "OpenAI" not in names:
        return {}
    top = _TOP if "top_logprobs" in reads else 0
    if llm.metadata.is_chat_model:
        return {"logprobs": True, "top_logprobs": max(top, getattr(llm, "top_logprobs", 0) or 0)}
    # the completion endpoint takes the number itself
    return {"logprobs": max(top, 1)}
