"""The main job: held-out questions through both frameworks, and what the cascade saved."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from cascadellm.answer import Answer
from cascadellm.demo import load, questions
from cascadellm.demo.tasks import Question
from cascadellm.events import JsonlSink, Record, record_cascade
from cascadellm.scores import mean_logprob
from cascadellm.tier import Price, Tier

__all__ = ["Demo", "Row", "Tuned", "run_demo"]

SEED = 2026
TUNING_SEED = 7
RAG_SKILLS = ("one_fact", "two_facts")
WAYS = ("small only", "large only", "cascade", "random deferral")


@dataclass(frozen=True, slots=True)
class Tuned:
    """A threshold chosen on questions that are not reported.

    Attributes:
        threshold: Unit: nats per token.
        n: Number of questions it was chosen on.
    """

    threshold: float
    n: int


@dataclass(frozen=True, slots=True)
class Row:
    """One question asked in three ways; `ok` and `latency_s` by way."""

    framework: str
    item: Question
    ok: dict[str, bool]
    latency_s: dict[str, float]
    record: Record
    score: float

    @property
    def deferred(self) -> bool:
        """Whether the large model was asked."""
        return self.record.trace.escalated


@dataclass(frozen=True, slots=True)
class Demo:
    """Everything that the demo found, for the table, the plot and `--json`."""

    rows: tuple[Row, ...]
    tuned: Tuned
    parameters: dict[str, int]

    def table(self) -> list[dict[str, Any]]:
        """Return accuracy, latency, share deferred and relative cost per way."""
        share = fmean(row.deferred for row in self.rows)
        cost = self._costs()
        accuracy = {way: fmean(r.ok[way] for r in self.rows) for way in WAYS[:3]}
        latency = {way: fmean(r.latency_s[way] for r in self.rows) for way in WAYS[:3]}
        # random deferral at the same rate, in expectation: every answer of the small model
        # is paid, and the large one's on a random share of the questions
        mixed = (1 - share) * accuracy["small only"] + share * accuracy["large only"]
        accuracy["random deferral"] = mixed
        latency["random deferral"] = latency["small only"] + share * latency["large only"]
        cost["random deferral"] = cost["small only"] + share * cost["large only"]
        deferred = {"small only": 0.0, "large only": 1.0}
        return [
            {
                "way": way,
                "accuracy": accuracy[way],
                "latency_s": latency[way],
                "deferred": deferred.get(way, share),
                "relative_cost": cost[way] / cost["large only"],
            }
            for way in WAYS
        ]

    def by_skill(self) -> list[dict[str, Any]]:
        """Return accuracies and the share deferred per skill and number of steps."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            steps = f", {row.item.steps} steps" if row.item.skill == "word_problem" else ""
            groups.setdefault(row.item.skill.replace("_", " ") + steps, []).append(row)
        return [
            {
                "skill": name,
                "n": len(rows),
                **{way: fmean(r.ok[way] for r in rows) for way in WAYS[:3]},
                "deferred": fmean(r.deferred for r in rows),
            }
            for name, rows in sorted(groups.items())
        ]

    def curve(self) -> list[tuple[float, float]]:
        """Return (share deferred, accuracy) for every threshold, from none to all."""
        ordered = sorted(self.rows, key=lambda row: row.score)
        right = sum(row.ok["small only"] for row in ordered)
        points = [(0.0, right / len(ordered))]
        for count, row in enumerate(ordered, 1):
            right += row.ok["large only"] - row.ok["small only"]
            points.append((count / len(ordered), right / len(ordered)))
        return points

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "questions": len(self.rows),
            "threshold": self.tuned.threshold,
            "tuned_on": self.tuned.n,
            "parameters": self.parameters,
            "table": self.table(),
            "by_skill": self.by_skill(),
        }

    def _costs(self) -> dict[str, float]:
        totals = dict.fromkeys(WAYS[:3], 0.0)
        for row in self.rows:
            totals["cascade"] += row.record.trace.cost_usd or 0.0
            for way in ("small only", "large only"):
                totals[way] += row.latency_s[f"{way} cost"]
        return totals


def tune(small: Any, large: Any, items: Sequence[Question]) -> Tuned:
    """Choose the least deferral that loses at most one point against the large model."""
    asked = [_chat(item.question) for item in items]
    drafts, finals = small.batch(asked), large.batch(asked)
    pairs = sorted(
        (mean_logprob(draft) or 0.0, item.grade(draft.text), item.grade(final.text))
        for item, draft, final in zip(items, drafts, finals, strict=True)
    )
    best = sum(right for _, _, right in pairs)
    right = sum(ok for _, ok, _ in pairs)
    allowed = best - 0.01 * len(pairs)
    for score, small_ok, large_ok in pairs:
        if right >= allowed:
            return Tuned(score, len(pairs))
        right += large_ok - small_ok
    return Tuned(pairs[-1][0] + 1e-6, len(pairs))


def _chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _priced(model: Any, parameters: int) -> Tier:
    # USD per million tokens in proportion to the parameters: an example, not an offer
    price = parameters / 1e7
    return Tier(model, price=Price(input=price, output=price))


def _langchain_ways(tiers: Sequence[Tier], policy: Any) -> dict[str, Callable[[Question], str]]:
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate

    from langchain_cascade import CascadeLLM

    prompt = ChatPromptTemplate.from_messages([("user", "{question}")])

    def chain(llm: Any) -> Callable[[Question], str]:
        runnable = prompt | llm | StrOutputParser()
        return lambda item: runnable.invoke({"question": item.question})

    return {
        "small only": chain(CascadeLLM(tiers=[tiers[0]])),
        "large only": chain(CascadeLLM(tiers=[tiers[1]])),
        "cascade": chain(CascadeLLM(tiers=list(tiers), policy=policy)),
    }


def _llamaindex_ways(
    tiers: Sequence[Tier], policy: Any, items: Sequence[Question]
) -> dict[str, Callable[[Question], str]]:
    from llama_index.core import Document, VectorStoreIndex

    from cascadellm.demo.llamaindex import WordCountEmbedding
    from llamaindex_cascade import CascadeLLM

    facts = sorted({fact for item in items for fact in item.facts})
    documents = [Document(text=fact) for fact in facts]
    index = VectorStoreIndex.from_documents(documents, embed_model=WordCountEmbedding())

    def engine(llm: Any) -> Callable[[Question], str]:
        query_engine = index.as_query_engine(llm=llm, similarity_top_k=6)
        return lambda item: str(query_engine.query(item.query))

    return {
        "small only": engine(CascadeLLM(tiers=[tiers[0]])),
        "large only": engine(CascadeLLM(tiers=[tiers[1]])),
        "cascade": engine(CascadeLLM(tiers=list(tiers), policy=policy)),
    }


def _ask(
    framework: str, ways: dict[str, Callable[[Question], str]], items: Iterable[Question]
) -> Iterator[Row]:
    for item in items:
        ok: dict[str, bool] = {}
        latency: dict[str, float] = {}
        last: Record | None = None
        for way, answer in ways.items():
            begun = time.perf_counter()
            with record_cascade() as recorder:
                text = answer(item)
            latency[way] = time.perf_counter() - begun
            ok[way] = item.grade(text)
            last = recorder.records[-1]
            latency[f"{way} cost"] = last.trace.cost_usd or 0.0
        assert last is not None
        yield Row(framework, item, ok, latency, last, _draft_score(last))


def _draft_score(record: Record) -> float:
    score = record.trace.attempts[0].score
    return float("-inf") if score is None else score


def run_demo(
    out: Path,
    *,
    n: int = 120,
    seed: int = SEED,
    progress: Callable[[str, int], Callable[[], None]],
) -> Demo:
    """Ask held-out questions in both frameworks and write the traces.

    Args:
        out: Folder for `traces.jsonl`; made when missing, its old traces are replaced.
        n: Questions, two thirds through a LangChain chain, the rest through a LlamaIndex
            query engine.
        seed: The same seed asks the same questions.
        progress: Called with a label and a total; returns the function that advances it.
    """
    from cascadellm.policies import Threshold

    step = progress("load the two models", 2)
    small, large = load("small"), load("large")
    step(), step()
    counts = {"small": _parameters(small), "large": _parameters(large)}
    step = progress("choose the threshold on other questions", 1)
    tuned = tune(small, large, _mixture(n, TUNING_SEED))
    step()
    tiers = [_priced(small, counts["small"]), _priced(large, counts["large"])]
    policy = Threshold(mean_logprob, tuned.threshold)
    items = _mixture(n, seed)
    problems = [item for item in items if item.skill not in RAG_SKILLS]
    lookups = [item for item in items if item.skill in RAG_SKILLS]
    rows: list[Row] = []
    plans = [
        ("LangChain chain", _langchain_ways(tiers, policy), problems),
        ("LlamaIndex query engine", _llamaindex_ways(tiers, policy, lookups), lookups),
    ]
    for framework, ways, asked in plans:
        step = progress(f"ask through a {framework}", len(asked))
        for row in _ask(framework, ways, asked):
            rows.append(row)
            step()
    out.mkdir(parents=True, exist_ok=True)
    (out / "traces.jsonl").unlink(missing_ok=True)
    sink = JsonlSink(out / "traces.jsonl")
    for row in rows:
        sink.write(row.record)
    return Demo(tuple(rows), tuned, counts)


def _mixture(n: int, seed: int) -> list[Question]:
    third = n // 3
    return [
        *questions(n - third, seed, "word_problem"),
        *questions(third - third // 3, seed, "one_fact"),
        *questions(third // 3, seed, "two_facts"),
    ]


def _parameters(model: Any) -> int:
    return sum(weights.numel() for weights in model.module.parameters())


def explain(row: Row) -> str:
    """Say in one sentence who answered and why."""
    trace = row.record.trace
    decided = trace.decided
    why = decided.reason if decided is not None else "no decision"
    return f"{trace.answered_by} answered: {why}"


def examples(rows: Sequence[Row]) -> list[Row]:
    """Pick three answers: one kept, one escalated and mended, one from the index."""
    wanted: list[Callable[[Row], bool]] = [
        lambda r: not r.deferred and r.ok["cascade"] and r.item.skill == "word_problem",
        lambda r: r.deferred and r.ok["cascade"] and not r.ok["small only"],
        lambda r: r.framework.startswith("LlamaIndex"),
    ]
    chosen: list[Row] = []
    for test in wanted:
        found = next((r for r in rows if test(r) and r not in chosen), None)
        chosen.append(found if found is not None else rows[len(chosen)])
    return chosen


def final_answer(answer: Answer | str) -> str:
    """Return the last line of an answer."""
    text = answer if isinstance(answer, str) else answer.text
    return text.strip().splitlines()[-1] if text.strip() else ""


def dumps(demo: Demo) -> str:
    """Return the demo's findings as JSON."""
    return json.dumps(demo.to_dict(), indent=2)
