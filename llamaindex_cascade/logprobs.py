"""Token scores out of a provider's raw response.

`ChatResponse.logprobs` lists the likeliest alternatives, argmax first, and does not say
which token was sampled, so the provider's own object is read instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatResponse

from cascadellm import logprobs as engine
from cascadellm.answer import Piece, TokenScore
from llamaindex_cascade.fields import field_of

__all__ = ["chunk_scores", "can_score", "scoring_kwargs", "token_scores", "usage_kwargs"]

_TOP = 5


def chunk_scores(raw: Any) -> list[TokenScore] | None:
    """Return the token scores in one raw response or stream chunk, None if it has none."""
    piece = field_of(raw, "piece")
    if isinstance(piece, Piece):
        return list(piece.tokens) or None
    choices = field_of(raw, "choices")
    choice = choices[0] if isinstance(choices, Sequence) and choices else None
    found = engine.token_scores(field_of(choice, "logprobs"))
    return None if found is None else list(found)


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
    return engine.part_of(tuple(scores), text, reasoning, calls)


def _single_entries(response: ChatResponse) -> list[TokenScore] | None:
    # with one entry per token that entry is the chosen token; with more it is unknown
    lists = response.logprobs
    if not lists or any(len(entries) != 1 for entries in lists):
        return None
    return [TokenScore(entries[0].token, entries[0].logprob) for entries in lists]


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


def usage_kwargs(llm: Any) -> dict[str, Any]:
    """Return the call arguments that make OpenAI count the tokens of a stream.

    Other servers that speak its protocol may refuse what they do not know; for those, give the
    LLM `additional_kwargs={"stream_options": {"include_usage": True}}`.
    """
    names = {cls.__name__ for cls in type(llm).__mro__}
    own = str(getattr(llm, "api_base", "") or "").startswith("https://api.openai.com/")
    if "OpenAI" not in names or not own or "stream_options" in (llm.additional_kwargs or {}):
        return {}
    return {"stream_options": {"include_usage": True}}
