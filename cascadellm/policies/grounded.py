"""RAG deferral: is the answer supported by the passages it was given?"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cascadellm.answer import Decision, Request
from cascadellm.effects import Compute, Judge, Plan
from cascadellm.errors import ConfigurationError
from cascadellm.policies.asking import not_asked, refused
from cascadellm.policies.base import Moment, Policy
from cascadellm.tier import Tier

__all__ = ["NO_ANSWER", "Grounded", "overlap"]

NO_ANSWER = (
    "does not contain",
    "doesn't contain",
    "does not hold",
    "does not mention",
    "doesn't mention",
    "does not provide",
    "does not say",
    "not in the context",
    "no information",
    "not mentioned",
    "cannot find",
    "can't find",
    "cannot answer",
    "don't know",
    "do not know",
)
"""What small models say when they find no answer; compared in lower case."""

_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:['-][^\W\d_]+)*")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
# words that carry no claim; matching them would call anything supported
_EMPTY = frozenset(
    "a an the and or but of in on at to for from by with as is are was were be been it its this "
    "that these those there he she they his her their i you we not no yes so than then which who "
    "what when where how why do does did has have had can could will would should may might "
    "answer context question according based".split()
)


@dataclass(frozen=True, slots=True)
class Grounded(Policy):
    """Defers an answer that its context does not support, or that says it found none.

    The context is `Request.documents` where the caller handed them over (see
    `cascadellm.call_context`), else the prompt itself. Tool calls are accepted: they state
    nothing yet.

    Args:
        threshold: Least share of support, in [0, 1].
        embed: Your embedding model, for a measure by meaning: a function from a list of texts
            to vectors, or an object with `embed_documents` (LangChain) or
            `get_text_embedding_batch` (LlamaIndex). The score of an answer is then the least
            cosine to their nearest passage of those sentences that claim something new.
        judge: A model that says whether the answer is supported, instead of a measure.
        no_answer: Phrases that mean "the context has no answer"; () switches this off.

    Raises:
        ConfigurationError: The threshold is out of range, or both measures are given.
    """

    threshold: float = 0.6
    embed: Any = field(default=None, kw_only=True)
    judge: Any = field(default=None, kw_only=True)
    no_answer: tuple[str, ...] = field(default=NO_ANSWER, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.threshold, bool) or not 0 <= self.threshold <= 1:
            raise ConfigurationError(
                f"Grounded(threshold) expects a share in [0, 1], got {self.threshold!r}"
            )
        if self.embed is not None and self.judge is not None:
            raise ConfigurationError("Grounded takes embed= or judge=, not both")
        object.__setattr__(self, "no_answer", tuple(self.no_answer))
        if self.judge is not None and not isinstance(self.judge, Tier):
            object.__setattr__(self, "judge", Tier(self.judge))

    def after(self, moment: Moment) -> Plan[Decision]:
        answer, request = moment.draft, moment.request
        if not answer.text.strip() and answer.tool_calls:
            return Decision(False, self.name, code="tool_call", reason="a tool call states nothing")
        said = answer.text.lower()
        phrase = next((words for words in self.no_answer if words in said), None)
        if phrase is not None:
            reason = f"the tier found no answer in the context ({phrase!r})"
            return Decision(True, self.name, code="no_answer", reason=reason)
        if self.judge is not None:
            return (yield from self._judged(moment))
        measure = self._measure(answer.text, request)
        score = yield Compute(measure)
        what = "overlap" if self.embed is None else "nearest-passage cosine"
        if score is None:
            reason = "nothing in the answer can be checked"
            return Decision(False, self.name, score_name="support", code="no_claim", reason=reason)
        return Decision(
            score < self.threshold,
            self.name,
            score_name="support",
            score=score,
            threshold=self.threshold,
            reason=f"support by {what} {score:.3g} "
            f"{'<' if score < self.threshold else '>='} {self.threshold:g}",
        )

    def _measure(self, text: str, request: Request) -> Callable[[], float | None]:
        if self.embed is None:
            return lambda: overlap(text, _context(request))
        return lambda: nearest(text, request.documents or (request.text,), self.embed)

    def _judged(self, moment: Moment) -> Plan[Decision]:
        prompt = (
            f"Context:\n{_context(moment.request)}\n\nAnswer:\n{moment.draft.text}\n\n"
            "Is every statement of the answer supported by the context? Answer True or False."
        )
        try:
            said = yield Judge(self.judge, prompt, purpose="grounded")
        except Exception as error:
            return not_asked(self.name, moment, error, "judge")
        if refused(said):
            reason = "the judge refused: deferred"
            return Decision(True, self.name, code="judge_refused", reason=reason)
        verdict = said.text.strip().lower()
        supported = re.match(r"\W*(true|yes|supported)\b", verdict) is not None
        clear = supported or re.match(r"\W*(false|no|not|unsupported)\b", verdict) is not None
        reason = f"the judge says {verdict[:60]!r}" if clear else f"no verdict in {verdict[:60]!r}"
        code = "judge" if clear else "judge_unclear"
        return Decision(not supported, self.name, code=code, reason=reason)


def _context(request: Request) -> str:
    return "\n".join(request.documents) if request.documents else request.text


def _claims(text: str) -> list[str]:
    words = (word.lower() for word in _WORD.findall(text))
    return [word for word in words if word not in _EMPTY and (len(word) > 2 or word.isdigit())]


def overlap(answer: str, context: str) -> float | None:
    """Return the share of an answer's content words and numbers that stand in the context.

    Returns: In [0, 1]; None when the answer has no content word.
    """
    claims = _claims(answer)
    if not claims:
        return None
    known = {word.lower() for word in _WORD.findall(context)}
    return sum(word in known for word in claims) / len(claims)


def _new_sentences(answer: str) -> list[str]:
    """Return the sentences that claim what no earlier one did: a repetition needs no support."""
    said: set[str] = set()
    kept = []
    for sentence in _SENTENCE.split(answer):
        claims = set(_claims(sentence))
        if claims - said:
            kept.append(sentence)
        said |= claims
    return kept


def nearest(answer: str, passages: Sequence[str], embed: Any) -> float | None:
    """Return the least cosine, over claiming sentences, to the nearest passage."""
    sentences = _new_sentences(answer)
    if not sentences:
        return None
    vectors = [list(map(float, v)) for v in nearest_embedder(embed)([*sentences, *passages])]
    said, given = vectors[: len(sentences)], vectors[len(sentences) :]
    return min(max(_cosine(one, other) for other in given) for one in said)


def nearest_embedder(embed: Any) -> Callable[[list[str]], Any]:
    """Return the function from texts to vectors of an embedding model of either framework."""
    for name in ("embed_documents", "get_text_embedding_batch"):
        method = getattr(embed, name, None)
        if callable(method):
            return method  # type: ignore[no-any-return]
    if callable(embed):
        return embed  # type: ignore[no-any-return]
    raise ConfigurationError(
        "embed= expects a function from texts to vectors, or an embedding model with "
        f"embed_documents or get_text_embedding_batch, got {type(embed).__name__}"
    )


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    product = math.fsum(a * b for a, b in zip(one, other, strict=True))
    norm = math.sqrt(math.fsum(a * a for a in one) * math.fsum(b * b for b in other))
    return product / norm if norm else 0.0
