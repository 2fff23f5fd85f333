"""The main job: held-out questions through both frameworks, and what the cascade saved."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from cascadellm.answer import Answer
from cascadellm.demo import load, questions
from cascadellm.demo.question import Question
from cascadellm.events import JsonlSink, Record, record_cascade
from cascadellm.policies import Threshold
from cascadellm.scores import mean_logprob
from cascadellm.tier import Price, Tier

Ask: TypeAlias = Callable[[Question], str]
Ways: TypeAlias = Callable[[Sequence[Tier], Any], dict[str, Ask]]

__all__ = ["Demo", "Row", "Tuned", "run_demo"]

SEED = 2026
TUNING_SEED = 7
RAG_SKILL = "one_fact"
WAYS = ("small only", "large only", "cascade", "random deferral")


@dataclass(frozen=True, slots=True)
class Tuned:
    """A framework's threshold, chosen on questions that are not reported.

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

    @property
    def deferred(self) -> bool:
        """Whether the large model was asked."""
        return self.record.trace.escalated


@dataclass(frozen=True, slots=True)
class Demo:
    """Everything that the demo found, for the table, the plot and `--json`."""

    rows: tuple[Row, ...]
    tuned: dict[str, Tuned]
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
            plural = "" if row.item.steps == 1 else "s"
            steps = f", {row.item.steps} step{plural}" if row.item.skill == "word_problem" else ""
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
        """Return (share deferred, accuracy) as each framework's threshold moves together."""
        # scores of two prompts differ in scale, so questions are ordered within their own
        ranked: list[tuple[float, Row]] = []
        for framework in self.tuned:
            rows = sorted((r for r in self.rows if r.framework == framework), key=_score)
            ranked += ((place / len(rows), row) for place, row in enumerate(rows))
        right = sum(row.ok["small only"] for row in self.rows)
        points = [(0.0, right / len(ranked))]
        for count, (_, row) in enumerate(sorted(ranked, key=lambda pair: pair[0]), 1):
            right += row.ok["large only"] - row.ok["small only"]
            points.append((count / len(ranked), right / len(ranked)))
        return points

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "questions": len(self.rows),
            "thresholds": {name: tuned.threshold for name, tuned in self.tuned.items()},
            "tuned_on": {name: tuned.n for name, tuned in self.tuned.items()},
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


def tune(tiers: Sequence[Tier], ways: Ways, items: Sequence[Question]) -> Tuned:
    """Choose the least deferral that keeps 95% of what the large model gains.

    Args:
        tiers: The two tiers.
        ways: Builds the framework's ways to ask.
        items: Questions that are not reported.
    """
    answer = ways(tiers, Threshold(mean_logprob, math.inf))["cascade"]
    pairs = []
    for item in items:
        with record_cascade() as recorder:
            final = answer(item)
        record = recorder.records[-1]
        pairs.append((_scored(record), item.grade(record.drafts[0] or ""), item.grade(final)))
    pairs.sort()
    right = sum(ok for _, ok, _ in pairs)
    wanted = right + 0.95 * (sum(ok for *_, ok in pairs) - right)
    for score, small_ok, large_ok in pairs:
        if right >= wanted:
            return Tuned(score, len(pairs))
        right += large_ok - small_ok
    return Tuned(pairs[-1][0] + 1e-6, len(pairs))


def _priced(model: Any, parameters: int) -> Tier:
    # USD per million tokens in proportion to the parameters: an example, not an offer
    price = parameters / 1e7
    return Tier(model, price=Price(input=price, output=price))


def _langchain_ways(tiers: Sequence[Tier], policy: Any) -> dict[str, Ask]:
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate

    from langchain_cascade import CascadeLLM

    prompt = ChatPromptTemplate.from_messages([("user", "{question}")])

    def chain(llm: Any) -> Ask:
        runnable = prompt | llm | StrOutputParser()
        return lambda item: runnable.invoke({"question": item.question})

    return {
        "small only": chain(CascadeLLM(tiers=[tiers[0]])),
        "large only": chain(CascadeLLM(tiers=[tiers[1]])),
        "cascade": chain(CascadeLLM(tiers=list(tiers), policy=policy)),
    }


def _llamaindex_ways(items: Sequence[Question]) -> Ways:
    """Index the facts behind some questions; return the ways to ask for them."""
    from llama_index.core import Document, VectorStoreIndex

    from cascadellm.demo.llamaindex import WordCountEmbedding
    from llamaindex_cascade import CascadeLLM

    facts = sorted({fact for item in items for fact in item.facts})
    documents = [Document(text=fact) for fact in facts]
    index = VectorStoreIndex.from_documents(documents, embed_model=WordCountEmbedding())

    def engine(llm: Any) -> Ask:
        query_engine = index.as_query_engine(llm=llm, similarity_top_k=6)
        return lambda item: str(query_engine.query(item.query))

    def ways(tiers: Sequence[Tier], policy: Any) -> dict[str, Ask]:
        return {
            "small only": engine(CascadeLLM(tiers=[tiers[0]])),
            "large only": engine(CascadeLLM(tiers=[tiers[1]])),
            "cascade": engine(CascadeLLM(tiers=list(tiers), policy=policy)),
        }

    return ways


def _ask(framework: str, ways: dict[str, Ask], items: Iterable[Question]) -> Iterator[Row]:
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
        yield Row(framework, item, ok, latency, last)


def _score(row: Row) -> float:
    return _scored(row.record)


def _scored(record: Record) -> float:
    score = record.trace.attempts[0].score
    return -math.inf if score is None else score


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
        n: Questions; word problems and two-fact questions go through a LangChain chain,
            one-fact questions through a LlamaIndex query engine.
        seed: The same seed asks the same questions.
        progress: Called with a label and a total; returns the function that advances it.
    """
    step = progress("load the two models", 2)
    small, large = load("small"), load("large")
    step(), step()
    counts = {"small": _parameters(small), "large": _parameters(large)}
    tiers = [_priced(small, counts["small"]), _priced(large, counts["large"])]
    asked, other = _mixture(n, seed), _mixture(n, TUNING_SEED)
    plans: list[tuple[str, Callable[[Sequence[Question]], Ways], bool]] = [
        ("LangChain chain", lambda _: _langchain_ways, False),
        ("LlamaIndex query engine", _llamaindex_ways, True),
    ]
    rows: list[Row] = []
    tuned: dict[str, Tuned] = {}
    for framework, build, indexed in plans:
        items = [item for item in asked if (item.skill == RAG_SKILL) == indexed]
        tuning = [item for item in other if (item.skill == RAG_SKILL) == indexed]
        step = progress(f"choose the threshold for a {framework}", 1)
        tuned[framework] = tune(tiers, build(tuning), tuning)
        step()
        policy = Threshold(mean_logprob, tuned[framework].threshold)
        step = progress(f"ask through a {framework}", len(items))
        for row in _ask(framework, build(items)(tiers, policy), items):
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
        *questions(third - third // 4, seed, "one_fact"),
        *questions(third // 4, seed, "two_facts"),
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
