"""Token log-probabilities as providers report them, read into `TokenScore`s and written back.

Three shapes are known: OpenAI's `{"content": [{token, logprob, top_logprobs}]}`, a flat list
of such items (Ollama), and the legacy `{tokens, token_logprobs, top_logprobs}`. Items may be
dicts or objects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from cascadellm.answer import Part, TokenScore

__all__ = ["complete", "openai_shape", "part_of", "token_scores"]

_PARTS = ("answer", "reasoning", "arguments", "other")
_LEAST_SHARE = 0.5


def token_scores(logprobs: Any) -> tuple[TokenScore, ...] | None:
    """Return the token scores in any known shape, None where there are none."""
    if isinstance(logprobs, Mapping) or not isinstance(logprobs, Sequence):
        if _get(logprobs, "token_logprobs") is not None:
            return _legacy(logprobs)
        logprobs = _get(logprobs, "content")
    if not isinstance(logprobs, Sequence) or isinstance(logprobs, str) or not logprobs:
        return None
    scores = [_score(item) for item in logprobs]
    found = [score for score in scores if score is not None]
    return tuple(found) if len(found) == len(scores) else None


def _get(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)


def _number(value: Any) -> float | None:
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value)


def _score(item: Any) -> TokenScore | None:
    # once per token of every answer: a dict's own method spares two calls per field
    get = item.get if type(item) is dict else partial(_get, item)
    logprob = _number(get("logprob"))
    if logprob is None or logprob != logprob:
        return None
    top, entropy, part = get("top_logprobs"), get("entropy"), get("part")
    return TokenScore(
        str(get("token") or ""),
        logprob,
        _alternatives(top) if top else (),
        _number(entropy),
        part if part in _PARTS else "answer",
    )


def _alternatives(items: Any) -> tuple[tuple[str, float], ...]:
    if isinstance(items, Mapping):
        pairs = [(str(token), _number(value)) for token, value in items.items()]
    elif isinstance(items, Sequence) and not isinstance(items, str):
        pairs = [(str(_get(one, "token") or ""), _number(_get(one, "logprob"))) for one in items]
    else:
        return ()
    known = [(token, value) for token, value in pairs if value is not None]
    return tuple(sorted(known, key=lambda pair: -pair[1]))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []


def _legacy(logprobs: Any) -> tuple[TokenScore, ...] | None:
    values = _listed(_get(logprobs, "token_logprobs"))
    texts = _listed(_get(logprobs, "tokens")) or [""] * len(values)
    tops = _listed(_get(logprobs, "top_logprobs")) or [None] * len(values)
    if not values or not len(values) == len(texts) == len(tops):
        return None
    scores = []
    for place, (text, value, top) in enumerate(zip(texts, values, tops, strict=True)):
        number = _number(value)
        if number is None or math.isnan(number):
            # the first token of an echoed prompt has no predecessor and hence no score
            if place == 0 and len(values) > 1:
                continue
            return None
        scores.append(TokenScore(str(text), number, top=_alternatives(top)))
    return tuple(scores)


def complete(
    tokens: tuple[TokenScore, ...] | None, text: str, output_tokens: int | None, called: bool
) -> bool:
    """Return whether the scores cover the answer; streaming bridges drop all but the last.

    Args:
        tokens: The scores.
        text: The answer's text.
        output_tokens: What the provider counts, without reasoning tokens.
        called: Whether the answer holds tool calls, whose tokens some providers leave out.
    """
    if not tokens:
        return False
    spelled = sum(len(token.token) for token in tokens)
    if spelled and spelled < _LEAST_SHARE * len(text.strip()):
        return False
    if output_tokens is None or (called and text.strip()):
        return True
    return len(tokens) >= _LEAST_SHARE * output_tokens


def part_of(
    tokens: tuple[TokenScore, ...], text: str, reasoning: str | None, called: bool
) -> tuple[TokenScore, ...]:
    """Mark which tokens belong to the answer, the reasoning block or a tool call.

    Providers do not say; a token stands before the answer's text when the spelled tokens end
    with that text. Scores that carry their part already are kept.
    """
    wordless_call = called and not text.strip()
    if not (wordless_call or reasoning) or any(token.part != "answer" for token in tokens):
        return tokens
    if wordless_call:
        return tuple(replace(token, part="arguments") for token in tokens)
    spelled = "".join(token.token for token in tokens)
    start = spelled.rfind(text.strip())
    if start <= 0 or not text.strip():
        return tokens
    parted, offset = [], 0
    for token in tokens:
        offset += len(token.token)
        part: Part = "reasoning" if offset <= start else "answer"
        parted.append(token if part == "answer" else replace(token, part=part))
    return tuple(parted)


def openai_shape(tokens: tuple[TokenScore, ...]) -> dict[str, Any]:
    """Return token scores as OpenAI's chat completions report them, plus part and entropy."""
    return {"content": [_item(token) for token in tokens], "refusal": None}


def _item(token: TokenScore) -> dict[str, Any]:
    item: dict[str, Any] = {
        "token": token.token,
        "logprob": token.logprob,
        "bytes": list(token.token.encode()),
        "top_logprobs": [{"token": text, "logprob": value} for text, value in token.top],
    }
    if token.entropy is not None:
        item["entropy"] = token.entropy
    if token.part != "answer":
        item["part"] = token.part
    return item
