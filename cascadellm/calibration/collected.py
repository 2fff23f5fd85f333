"""Collected answers on disk, and the records and scores that come from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cascadellm.answer import Answer, TokenScore, ToolCall, Usage
from cascadellm.calibration.asking import TierAnswer
from cascadellm.calibration.features import answer_features
from cascadellm.calibration.grading import Same, same_text
from cascadellm.calibration.jsonl import read_lines
from cascadellm.calibration.records import CalibrationRecord, CalibrationRecords
from cascadellm.errors import CalibrationError, ScoreUnavailableError

__all__ = [
    "Collected",
    "answer_table",
    "decode_line",
    "encode_answer",
    "group",
    "read_collected",
    "to_records",
]

_SCHEMA = "cascadellm.collected/1"


class _Named(Protocol):
    @property
    def name(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Collected:
    """One question with every tier's answer.

    Attributes:
        id: Name of the question.
        question: Text or messages.
        reference: The reference answer, or None.
        names: Names of the tiers.
        answers: Answer per tier, with token scores where the tier gave them.
        correct: Quality per tier, None = not graded.
        cost_usd: Cost per tier, None = unknown.
        latency_s: Seconds per tier.
    """

    id: str
    question: Any
    reference: str | None
    names: tuple[str, ...]
    answers: tuple[Answer, ...]
    correct: tuple[float | None, ...]
    cost_usd: tuple[float | None, ...]
    latency_s: tuple[float, ...]

    @property
    def prompt_length(self) -> int:
        """Length of the question in characters."""
        if isinstance(self.question, str):
            return len(self.question)
        return sum(len(str(message.get("content", ""))) for message in self.question)


Score = Callable[[Answer], float | None]


def to_records(
    collected: Sequence[Collected],
    scores: Score | Sequence[Score],
    *,
    columns: Mapping[str, Score] | None = None,
    same: Same = same_text,
) -> CalibrationRecords:
    """Score collected answers.

    Args:
        collected: Questions with every tier's answer.
        scores: The score of every boundary, or one per boundary.
        columns: Other scores of the first tier's answer, for comparison.
        same: Whether two answers say the same.

    Raises:
        CalibrationError: There is nothing, or the number of scores does not fit.
    """
    if not collected:
        raise CalibrationError("there are no collected questions with every tier's answer")
    boundaries = len(collected[0].answers) - 1
    listed = [scores] * boundaries if callable(scores) else list(scores)
    if len(listed) != boundaries:
        raise CalibrationError(f"expected 1 or {boundaries} scores, got {len(listed)}")
    rows = [
        CalibrationRecord(
            score=[_value(s, a) for s, a in zip(listed, item.answers, strict=False)],
            correct=None if all(c is None for c in item.correct) else item.correct,
            agree=[same(a, item.answers[-1]) for a in item.answers[:-1]],
            cost=item.cost_usd,
            prompt_length=item.prompt_length,
            columns={k: _value(s, item.answers[0]) for k, s in (columns or {}).items()},
            id=item.id,
        )
        for item in collected
    ]
    names = [score_name(score) for score in listed]
    return CalibrationRecords.from_records(rows, score_names=names).described(listed)


def answer_table(collected: Sequence[Collected], *, tier: int = 0) -> dict[str, list[float]]:
    """Return the token features of one tier's answers as columns, for `fit_learned_score`.

    They are what a `LearnedScore` reads of an answer when the cascade runs.

    Args:
        collected: Questions with every tier's answer.
        tier: Index of the tier.

    Returns:
        Name -> one value per question, NaN = missing.

    Raises:
        CalibrationError: No answer of that tier has token log-probabilities.
    """
    rows = [answer_features(item.answers[tier]) for item in collected]
    if not any(rows):
        raise CalibrationError(
            f"none of the {len(rows)} answers of tier {tier} has token log-probabilities; collect "
            "them from a tier that gives them"
        )
    names = sorted({name for row in rows for name in row})
    return {name: [row.get(name, math.nan) for row in rows] for name in names}


def score_name(score: Any) -> str:
    """Return the name under which a score stands in records."""
    named = getattr(score, "name", None) or getattr(score, "__name__", None)
    return str(named or type(score).__name__)


def encode_answer(
    name: str, question: Any, reference: str | None, said: TierAnswer, correct: float | None
) -> dict[str, Any]:
    """Return the JSON line of one tier's answer."""
    answer = said.answer
    return {
        "schema": _SCHEMA,
        "id": name,
        "tier": said.tier,
        "name": said.name,
        "question": question,
        "reference": reference,
        "text": answer.text,
        "correct": correct,
        "tokens": None if answer.tokens is None else [_token(t) for t in answer.tokens],
        "tool_calls": [[c.name, c.arguments, c.id, c.raw] for c in answer.tool_calls],
        "finish_reason": answer.finish_reason,
        "refusal": answer.refusal,
        "input_tokens": None if answer.usage is None else answer.usage.input_tokens,
        "output_tokens": None if answer.usage is None else answer.usage.output_tokens,
        "cost_usd": said.cost_usd,
        "latency_s": said.latency_s,
    }


def decode_line(row: Mapping[str, Any], names: Sequence[str] | None) -> str | None:
    """Return what is wrong with a collected line, None if nothing is."""
    if row.get("schema") != _SCHEMA:
        return f"expected a collected answer ({_SCHEMA!r}), got schema {row.get('schema')!r}"
    missing = [k for k in ("id", "tier", "name", "text") if k not in row]
    if missing:
        return f"the field(s) {missing} are missing"
    tier = row["tier"]
    if not isinstance(tier, int) or tier < 0:
        return f"'tier' must be an index, got {tier!r}"
    if names is not None and (tier >= len(names) or names[tier] != row["name"]):
        expected = names[tier] if tier < len(names) else "no such tier"
        return (
            f"tier {tier} is {row['name']!r} here and {expected!r} in the cascade; collect "
            "another cascade into another file"
        )
    return _unreadable(row)


def _unreadable(row: Mapping[str, Any]) -> str | None:
    for name in ("correct", "cost_usd", "latency_s", "input_tokens", "output_tokens"):
        value = row.get(name)
        number = isinstance(value, (int, float)) and 0 <= value < math.inf
        if value is not None and not number:
            return f"{name!r} must be a finite number >= 0 or null, got {value!r}"
    if (row.get("correct") or 0) > 1:
        return f"'correct' must lie in [0, 1], got {row['correct']!r}"
    asked = row.get("question", "")
    messages = isinstance(asked, list) and all(isinstance(m, dict) for m in asked)
    if not isinstance(row["text"], str) or not (isinstance(asked, str) or messages):
        return "'text' must be a text, and 'question' a text or messages"
    try:
        answer = _answer(row)
        for token in answer.tokens or ():
            float(token.logprob)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        return f"the answer is malformed ({type(error).__name__}: {error})"
    return None


def group(
    questions: Sequence[_Named],
    known: Mapping[str, Mapping[int, Mapping[str, Any]]],
    names: Sequence[str],
) -> tuple[Collected, ...]:
    """Return the questions that every tier answered, in order."""
    found = []
    for question in questions:
        rows = known.get(question.name, {})
        if len(rows) == len(names):
            found.append(_collected([rows[i] for i in range(len(names))]))
    return tuple(found)


def read_collected(path: str | Path) -> tuple[tuple[Collected, ...], int]:
    """Read collected answers; return complete questions and the number of incomplete ones.

    Raises:
        CalibrationError: A line is malformed (named by number), or nothing is complete.
    """
    rows: dict[str, dict[int, Mapping[str, Any]]] = {}
    names: dict[int, str] = {}
    for number, data in read_lines(path):
        fault = decode_line(data, None)
        if fault is not None:
            raise CalibrationError(f"{path}, line {number}: {fault}")
        tier = int(data["tier"])
        if names.setdefault(tier, data["name"]) != data["name"]:
            raise CalibrationError(
                f"{path}, line {number}: tier {tier} is {data['name']!r} here and "
                f"{names[tier]!r} on an earlier line"
            )
        if tier in rows.setdefault(str(data["id"]), {}):
            raise CalibrationError(
                f"{path}, line {number}: tier {tier} answered {data['id']!r} on an earlier line"
            )
        rows[str(data["id"])][tier] = data
    count = max(names, default=-1) + 1
    complete = [r for r in rows.values() if len(r) == count]
    if count < 2 or not complete:
        raise CalibrationError(
            f"{path} holds no question with the answers of all tiers ({len(rows)} questions, "
            f"{count} tiers); finish collecting first"
        )
    found = tuple(_collected([r[i] for i in range(count)]) for r in complete)
    return found, len(rows) - len(found)


def _collected(rows: Sequence[Mapping[str, Any]]) -> Collected:
    return Collected(
        id=str(rows[0]["id"]),
        question=rows[0].get("question"),
        reference=rows[0].get("reference"),
        names=tuple(r["name"] for r in rows),
        answers=tuple(_answer(r) for r in rows),
        correct=tuple(r.get("correct") for r in rows),
        cost_usd=tuple(r.get("cost_usd") for r in rows),
        latency_s=tuple(float(r.get("latency_s") or 0.0) for r in rows),
    )


def _token(token: TokenScore) -> list[Any]:
    return [token.token, token.logprob, token.entropy, token.part, [list(t) for t in token.top]]


def _answer(row: Mapping[str, Any]) -> Answer:
    tokens = row.get("tokens")
    counts = row.get("input_tokens"), row.get("output_tokens")
    return Answer(
        text=row["text"],
        tokens=None
        if tokens is None
        else tuple(
            TokenScore(t[0], t[1], tuple((a, b) for a, b in t[4]), t[2], t[3]) for t in tokens
        ),
        tool_calls=tuple(ToolCall(*call) for call in row.get("tool_calls") or ()),
        usage=None if None in counts else Usage(int(counts[0] or 0), int(counts[1] or 0)),
        finish_reason=row.get("finish_reason"),
        refusal=row.get("refusal"),
    )


def _value(score: Score, answer: Answer) -> float | None:
    try:
        return score(answer.over("answer"))
    except ScoreUnavailableError:
        return None
