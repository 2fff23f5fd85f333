"""Grading: is an answer right, and do two answers say the same?"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any, TypeAlias

from cascadellm.answer import Answer
from cascadellm.errors import ConfigurationError
from cascadellm.scrub import error_text

__all__ = ["Grade", "Same", "exact_match", "graded", "judged_by", "normalised", "same_text"]

Grade: TypeAlias = Callable[[Any, str | None, Answer], float | bool | None]
"""(question, reference, answer) -> quality in [0, 1], or None when it cannot be judged."""

Same: TypeAlias = Callable[[Answer, Answer], bool]
"""Whether two answers say the same."""

_PROMPT = (
    "Question:\n{question}\n\nReference answer:\n{reference}\n\nAnswer to grade:\n{answer}\n\n"
    "Is the answer to grade correct? Reply with one word: yes or no."
)
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")


def normalised(text: str) -> str:
    """Return a text without case, outer punctuation, articles and extra spaces."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    words = re.sub(r"[\"'`*_.,;:!?()\[\]{}]+(?=\s|$)|(?<!\S)[\"'`*_.,;:!?()\[\]{}]+", " ", plain)
    return " ".join(w for w in words.split() if w not in ("a", "an", "the"))


def exact_match(_question: Any, reference: str | None, answer: Answer) -> float | None:
    """Grade by the normalised text; where the reference is a number, by the last number."""
    if reference is None:
        return None
    wanted = reference.strip()
    if _NUMBER.fullmatch(wanted):
        found = _NUMBER.findall(answer.text)
        return float(bool(found) and _value(found[-1]) == _value(wanted))
    return float(normalised(answer.text) == normalised(wanted))


def same_text(first: Answer, second: Answer) -> bool:
    """Compare normalised texts and tool calls."""
    calls = [[(c.name, c.arguments) for c in a.tool_calls] for a in (first, second)]
    return calls[0] == calls[1] and normalised(first.text) == normalised(second.text)


def judged_by(ask: Callable[[str], Answer | str]) -> Grade:
    """Return a grade that asks a model; an unclear reply grades nothing.

    Args:
        ask: Sends a prompt to the judge and returns its reply.
    """

    def grade(question: Any, reference: str | None, answer: Answer) -> float | None:
        prompt = _PROMPT.format(
            question=question, reference=reference or "(none given)", answer=answer.text
        )
        reply = ask(prompt)
        text = reply if isinstance(reply, str) else reply.text
        words = re.findall(r"[a-z]+", text.casefold())
        # a judge that says both, or neither, has not judged
        verdicts = {w for w in words if w in ("yes", "no")}
        return None if len(verdicts) != 1 else float(verdicts == {"yes"})

    return grade


def graded(grade: Grade, question: Any, reference: str | None, answer: Answer) -> float | None:
    """Grade and check the result.

    Raises:
        ConfigurationError: Grading fails, or the grade is no number in [0, 1], bool or None.
    """
    try:
        value = grade(question, reference, answer)
    except Exception as error:
        raise ConfigurationError(
            f"the grading function failed on {str(question)[:80]!r}: {error_text(error, 300)}"
        ) from error
    if value is None:
        return None
    if not isinstance(value, (bool, int, float)) or not 0 <= value <= 1:
        raise ConfigurationError(
            f"a grade must be a number in [0, 1], a bool or None, got {value!r}"
        )
    return float(value)


def _value(text: str) -> float:
    return float(text.replace(",", ""))
