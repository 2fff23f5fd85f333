"""Collect records: ask every tier each question, keep what scores need, resume after a kill.

One line per tier's answer is appended the moment it arrives, so nothing is asked twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cascadellm.calibration.asking import Asker, TierAnswer, asker_of
from cascadellm.calibration.collected import Collected, decode_line, encode_answer, group
from cascadellm.calibration.grading import Grade, exact_match, graded
from cascadellm.calibration.jsonl import read_lines
from cascadellm.errors import CalibrationError, ConfigurationError
from cascadellm.jsonl import LineFile, encode_line, read_jsonl
from cascadellm.scrub import error_text

__all__ = ["Collected", "Collection", "Progress", "Question", "collect_records", "read_questions"]

_NEEDS_PRICE = "max_cost_usd needs a price on every tier (Tier(..., price=Price(...)))"


@dataclass(frozen=True, slots=True)
class Question:
    """One question to collect answers for.

    Attributes:
        question: Text, or chat messages (a list of dicts with `role` and `content`).
        answer: The reference answer, or None.
        id: Its name; a digest of the question by default.
    """

    question: Any
    answer: str | None = None
    id: str = ""

    @property
    def name(self) -> str:
        """The name under which its answers are kept."""
        if self.id:
            return self.id
        text = json.dumps(self.question, sort_keys=True, ensure_ascii=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a collection stands: told after each question. Cost in USD, None when unknown."""

    done: int
    total: int
    failed: int
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class Collection:
    """How a collection ended.

    Attributes:
        records: Complete questions, in the order given.
        asked: Tier calls made in this run.
        cost_usd: Cost of this run's calls; None where a price is unknown.
        failed: Question name -> error, for questions that a tier could not answer.
        stopped: True when `max_cost_usd` ended the run early.
        left: Questions without all answers.
    """

    records: tuple[Collected, ...] = field(repr=False)
    asked: int
    cost_usd: float | None
    failed: Mapping[str, str]
    stopped: bool
    left: int


def collect_records(
    cascade: Any,
    questions: Iterable[Question],
    path: str | Path,
    *,
    grade: Grade | None = exact_match,
    concurrency: int = 4,
    max_cost_usd: float | None = None,
    reads: frozenset[str] = frozenset({"logprobs"}),
    progress: Callable[[Progress], None] | None = None,
) -> Collection:
    """Ask every tier every question and append the answers to a JSONL file.

    A file that exists is continued: answers in it are not asked again. A question at which a
    tier failed stays incomplete and is asked again by the next run.

    Args:
        cascade: A `Cascade`, a `CascadeLLM` of either framework, or an `Asker`.
        questions: What to ask.
        path: File of the answers; made when missing.
        grade: Grades an answer; None = agreement with the last tier only.
        concurrency: Questions asked at the same time, >= 1.
        max_cost_usd: No question is begun once this is spent in this run.
        reads: What the answers must carry: `logprobs`, `top_logprobs`.
        progress: Told after each question, in the caller's thread.

    Raises:
        CalibrationError: Two questions have one name, a line of the file is not of this
            kind, or a budget is given and a tier has no price.
    """
    listed = list(questions)
    asker: Asker = (
        cascade
        if isinstance(getattr(cascade, "names", None), tuple)
        else asker_of(cascade, reads=reads)
    )
    _check_names(listed)
    _check_budget(max_cost_usd, asker)
    run = _Run(asker, Path(path), grade, max_cost_usd, known=_resume(Path(path), asker))
    wanted = [q for q in listed if len(run.known.get(q.name, {})) < len(asker.names)]
    done = len(listed) - len(wanted)
    with ThreadPoolExecutor(max_workers=max(1, concurrency)) as pool:
        waiting = iter(wanted)
        # questions are handed out one by one, so that a spent budget stops the rest
        running: set[Future[None]] = set()
        while True:
            while len(running) < max(1, concurrency) and not run.spent_out:
                following = next(waiting, None)
                if following is None:
                    break
                running.add(pool.submit(run.ask, following))
            if not running:
                break
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                done += 1
                if progress is not None:
                    progress(Progress(done, len(listed), len(run.failed), run.cost_usd))
    records = group(listed, run.known, asker.names)
    return Collection(
        records,
        run.asked,
        run.cost_usd,
        dict(run.failed),
        run.spent_out and len(records) < len(listed),
        len(listed) - len(records),
    )


def read_questions(path: str | Path) -> list[Question]:
    """Read questions, one JSON object per line: `question`, and optionally `answer` and `id`.

    Raises:
        CalibrationError: A line is malformed, named by its number.
    """
    found: list[Question] = []
    for number, data in read_lines(path):
        question = data.get("question", data.get("messages"))
        if not question or not isinstance(question, (str, list)):
            raise CalibrationError(
                f"{path}, line {number}: expected a text or messages in 'question', got "
                f"{question!r}"
            )
        reference = data.get("answer")
        found.append(
            Question(
                question,
                None if reference is None else str(reference),
                str(data.get("id") or ""),
            )
        )
    if not found:
        raise CalibrationError(f"{path} holds no questions")
    return found


@dataclass(slots=True)
class _Run:
    """What the workers of one collection share."""

    asker: Asker
    path: Path
    grade: Grade | None
    max_cost_usd: float | None
    known: dict[str, dict[int, dict[str, Any]]]
    asked: int = 0
    cost_usd: float | None = 0.0
    failed: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    file: LineFile = field(init=False)

    def __post_init__(self) -> None:
        self.file = LineFile(self.path)

    @property
    def spent_out(self) -> bool:
        """Whether the budget is spent."""
        if self.max_cost_usd is None:
            return False
        if self.cost_usd is None:
            raise CalibrationError(f"{_NEEDS_PRICE}; the cost of a call is unknown")
        return self.cost_usd >= self.max_cost_usd

    def ask(self, question: Question) -> None:
        """Ask the tiers that have not answered this question yet."""
        with self.lock:
            have = frozenset(self.known.get(question.name, {}))

        fatal: list[Exception] = []

        def tell(said: TierAnswer) -> None:
            try:
                self._keep(question, said)
            except Exception as error:
                fatal.append(error)
                raise

        try:
            self.asker(question.question, have, tell)
        except Exception as error:
            # a tier's error concerns its question; one of our own concerns the whole run
            if fatal or isinstance(error, (CalibrationError, ConfigurationError)):
                raise
            with self.lock:
                self.failed[question.name] = error_text(error, 500)

    def _keep(self, question: Question, said: TierAnswer) -> None:
        value = None
        if self.grade is not None:
            value = graded(self.grade, question.question, question.answer, said.answer)
        line = encode_answer(question.name, question.question, question.answer, said, value)
        with self.lock:
            have = self.known.setdefault(question.name, {})
            # a tier that fails again escalates to one that has answered already
            if said.tier not in have:
                self.file.append(encode_line(line))
                have[said.tier] = line
            self.asked += 1
            if self.cost_usd is not None and said.cost_usd is not None:
                self.cost_usd = math.fsum((self.cost_usd, said.cost_usd))
            else:
                self.cost_usd = None


def _check_budget(max_cost_usd: float | None, asker: Asker) -> None:
    if max_cost_usd is None:
        return
    if not max_cost_usd >= 0:
        raise CalibrationError(f"max_cost_usd must be a number >= 0, got {max_cost_usd!r}")
    # before anything is asked, where the tiers are known
    tiers = getattr(asker, "tiers", ())
    if unpriced := [tier.label for tier in tiers if tier.price is None]:
        raise CalibrationError(f"{_NEEDS_PRICE}; {', '.join(unpriced)}: none, nothing was asked")


def _check_names(questions: Sequence[Question]) -> None:
    seen: set[str] = set()
    for number, question in enumerate(questions, start=1):
        if question.name in seen:
            raise CalibrationError(
                f"question {number} repeats the name {question.name!r} of an earlier one; records "
                "must be independent, so keep one of each or give different ids"
            )
        seen.add(question.name)


def _resume(path: Path, asker: Asker) -> dict[str, dict[int, dict[str, Any]]]:
    known: dict[str, dict[int, dict[str, Any]]] = {}
    if not path.exists():
        return known
    rows, bad = read_jsonl(path)
    # the last line may be torn by a kill; anything else is another kind of file
    if bad and (len(bad) > 1 or bad[0].number <= len(rows)):
        raise CalibrationError(f"{bad[0]}; refusing to append to a file of another kind")
    for number, row in enumerate(rows, start=1):
        fault = decode_line(row, asker.names)
        if fault is not None:
            raise CalibrationError(f"{path}, line {number}: {fault}")
        known.setdefault(str(row["id"]), {})[int(row["tier"])] = row
    return known
