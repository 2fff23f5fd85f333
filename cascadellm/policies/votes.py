"""When two answers count as the same: keys, embeddings, a judge; and what a vote says."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from cascadellm.answer import Answer
from cascadellm.effects import Compute, Judge, Plan
from cascadellm.errors import ConfigurationError
from cascadellm.policies.asking import first_word_verdict, rendered, without_reasoning
from cascadellm.policies.grounded import nearest_embedder
from cascadellm.tier import Tier

__all__ = ["KEYS", "cluster", "exact", "normalised", "numeric", "semantic_entropy"]

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?")
# a sign, a decimal point and a percent sign change what a number says
_PUNCTUATION = re.compile(r"(?!(?<!\w)-(?=\d))(?!(?<=\d)[.,](?=\d))(?!%)[^\w\s]|_")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_SAME = (
    "Question:\n{question}\n\nAnswer one:\n{one}\n\nAnswer two:\n{two}\n\n"
    "Do both answers say the same? Answer Yes or No."
)

Key = Callable[[Answer], Any]


def exact(answer: Answer) -> Any:
    """Return the answer's text without outer space, and its tool calls."""
    return _calls(answer) or without_reasoning(answer.text) or None


def normalised(answer: Answer) -> Any:
    """Return the text without case, punctuation, articles and extra space."""
    if answer.tool_calls:
        return _calls(answer)
    text = unicodedata.normalize("NFKC", without_reasoning(answer.text)).casefold()
    return " ".join(_ARTICLES.sub(" ", _PUNCTUATION.sub(" ", text)).split()) or None


def numeric(answer: Answer) -> Any:
    """Return the last number in the text, None when there is none."""
    if answer.tool_calls:
        return _calls(answer)
    found = _NUMBER.findall(without_reasoning(answer.text))
    if not found:
        return None
    try:
        return Decimal(found[-1].replace(",", "")).normalize()
    except InvalidOperation:
        return None


KEYS: dict[str, Key] = {"exact": exact, "normalised": normalised, "numeric": numeric}
"""Equivalences that need no model."""


def _calls(answer: Answer) -> str | None:
    if not answer.tool_calls:
        return None
    calls = [[call.name, call.arguments] for call in answer.tool_calls]
    return json.dumps(calls, sort_keys=True, default=str)


def check_key(owner: str, key: Any, embed: Any, judge: Any) -> None:
    """Refuse an equivalence that does not exist or lacks its model.

    Raises:
        ConfigurationError: See above.
    """
    known = (*KEYS, "embedding", "judge")
    if not callable(key) and key not in known:
        raise ConfigurationError(
            f"{owner}(key=) must be a function of an Answer or one of {', '.join(known)}, "
            f"got {key!r}"
        )
    if (key == "embedding") != (embed is not None):
        raise ConfigurationError(f"{owner} needs key='embedding' and embed= together")
    if (key == "judge") != (judge is not None):
        raise ConfigurationError(f"{owner} needs key='judge' and judge= together")


def cluster(
    answers: Sequence[Answer],
    *,
    question: Callable[[], str],
    key: str | Key,
    embed: Any = None,
    judge: Tier | None = None,
    similarity: float = 0.9,
) -> Plan[list[int]]:
    """Return the cluster of each answer, numbered by first appearance.

    An answer without a key (no number, nothing said) agrees with no other.

    Args:
        answers: The answers, in order.
        question: Makes the question's text, for a judge.
        key: An equivalence of `KEYS`, `embedding`, `judge`, or a function to a hashable key.
        embed: Embedding model, for `embedding`.
        judge: Model that compares two answers, for `judge`.
        similarity: Least cosine of answers that are the same, for `embedding`.
    """
    if key == "judge" and judge is not None:
        return (yield from _by_judge(answers, question, judge))
    if key == "embedding":
        places: list[int] = yield Compute(lambda: _by_meaning(answers, embed, similarity))
        return places
    function = key if callable(key) else KEYS[str(key)]
    # a user's key may be slow, and runs off the event loop
    keys = yield Compute(lambda: [function(answer) for answer in answers])
    return _greedy(keys, lambda one, other: one is not None and one == other)


def _greedy(items: Sequence[Any], same: Callable[[Any, Any], bool]) -> list[int]:
    """Put each item into the first cluster whose first member is the same."""
    heads: list[Any] = []
    places = []
    for item in items:
        place = next((i for i, head in enumerate(heads) if same(head, item)), len(heads))
        if place == len(heads):
            heads.append(item)
        places.append(place)
    return places


def _by_meaning(answers: Sequence[Answer], embed: Any, similarity: float) -> list[int]:
    texts = [rendered(answer) for answer in answers]
    vectors = [[float(x) for x in vector] for vector in nearest_embedder(embed)(texts)]
    return _greedy(vectors, lambda one, other: _cosine(one, other) >= similarity)


def _by_judge(
    answers: Sequence[Answer], question: Callable[[], str], judge: Tier
) -> Plan[list[int]]:
    """Compare each answer with the first member of each cluster, textually equal ones free."""
    heads: list[Answer] = []
    places = []
    for answer in answers:
        place = next((i for i, h in enumerate(heads) if exact(h) == exact(answer)), None)
        for i, head in enumerate(heads):
            if place is not None:
                break
            prompt = _SAME.format(question=question(), one=rendered(head), two=rendered(answer))
            verdict = yield Judge(judge, prompt, purpose="same_answer")
            if first_word_verdict(verdict.text):
                place = i
        if place is None:
            place = len(heads)
            heads.append(answer)
        places.append(place)
    return places


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    product = math.fsum(a * b for a, b in zip(one, other, strict=True))
    norm = math.sqrt(math.fsum(a * a for a in one) * math.fsum(b * b for b in other))
    return product / norm if norm else 0.0


def semantic_entropy(places: Sequence[int]) -> float:
    """Return the entropy of the clusters' shares. Unit: nats.

    Source: arXiv 2302.09664, with the shares of the samples for the clusters' probabilities.
    """
    shares = [places.count(place) / len(places) for place in set(places)]
    return -math.fsum(share * math.log(share) for share in shares) + 0.0
