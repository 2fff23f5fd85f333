"""Every replay record through the policies themselves: fakes say what the models had said."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import replay_checks as checks
import replay_data as data
import replay_splits as splits
from numpy.typing import NDArray

from cascadellm import (
    Agreement,
    Answer,
    Cascade,
    Judge,
    Policy,
    PrefixCommit,
    Price,
    Request,
    Route,
    Threshold,
    Tier,
    TokenScore,
    Valid,
    mean_logprob,
    min_logprob,
    quantile_logprob,
    sum_logprob,
)
from cascadellm.calibration import CalibrationRecords
from cascadellm.evaluation import evaluate
from cascadellm.perform import LocalPerformer, drive
from cascadellm.testing import FakeModel

Floats = NDArray[np.float64]
CALL = Price(per_second=0.0, input=0.0, output=1e6)
"""A dollar a token; each replayed call is one token, so costs count calls."""


@dataclass(frozen=True)
class Row:
    """What a policy does on one set.

    Attributes:
        place: The set.
        policy: The policy.
        n: Questions.
        norm: 0 = random deferral, 1 = oracle; None where there is no score.
        stated: What the data's own table states for the norm or the point, or "".
        deferred: Share sent on at the fixed operating point, or None.
        accuracy: Accuracy there, or None.
        calls: Small calls paid per question, the draft included.
    """

    place: str
    policy: str
    n: int
    norm: float | None
    stated: str = ""
    deferred: float | None = None
    accuracy: float | None = None
    calls: float = 1.0


def said(text: str, logprobs: Sequence[float] = ()) -> Answer:
    """Return a recorded answer."""
    from cascadellm import Usage

    tokens = tuple(TokenScore("w ", value) for value in logprobs) or None
    return Answer(text, tokens=tokens, usage=Usage(0, 1), finish_reason="stop")


def fake(answer: Answer, name: str) -> Tier:
    """Return a tier that repeats what was recorded."""
    return Tier(FakeModel(answer, name=name, logprob=None), price=CALL)


def asked(policy: Policy, draft: Answer, request: Request | None = None) -> Any:
    """Return the outcome of one question: the draft is replayed, the policy is real."""
    tiers = [fake(draft, "small"), fake(said("from large"), "large")]
    cascade = Cascade(tiers, policy)
    return drive(cascade.plan(request or Request("q", "q")), LocalPerformer())


def play(policy: Policy, draft: Answer, request: Request | None = None) -> Any:
    """Return the record of one question."""
    return asked(policy, draft, request).trace


def scores(policies: Sequence[Policy], drafts: Sequence[Answer]) -> Floats:
    """Return the score that each policy writes into the record; what it defers unscored is last."""
    found = [
        play(policy, draft).attempts[0] for policy, draft in zip(policies, drafts, strict=True)
    ]
    return np.array([-math.inf if one.score is None else one.score for one in found])


def norm(records: CalibrationRecords, score: Floats) -> float:
    """Return the norm of a score on records."""
    worst = np.where(np.isneginf(score), np.nanmin(score[np.isfinite(score)]) - 1, score)
    return float(evaluate(records, {"it": worst}, resamples=0)["it"].values["norm"])


def tokens(root: Path) -> list[Row]:
    """Token scores on phonemes: thresholds, and decisions from the first tokens alone."""
    records, logprobs = data.g2p(root)
    drafts = [said("x", lp) for lp in logprobs]
    kinds: dict[str, tuple[Policy, str]] = {
        "Threshold(sum_logprob)": (Threshold(sum_logprob, 0), ".334"),
        "Threshold(mean_logprob)": (Threshold(mean_logprob, 0), ".307"),
        "Threshold(min_logprob)": (Threshold(min_logprob, 0), ".321"),
        "Threshold(quantile_logprob(0.1))": (Threshold(quantile_logprob(0.1), 0), ".315"),
        "PrefixCommit(mean_logprob, tokens=2)": (PrefixCommit(mean_logprob, 0, tokens=2), ""),
        "PrefixCommit(mean_logprob, tokens=4)": (PrefixCommit(mean_logprob, 0, tokens=4), ""),
    }
    return [
        Row("g2p", name, len(records), norm(records, scores([policy] * len(drafts), drafts)), told)
        for name, (policy, told) in kinds.items()
    ]


def confidence(root: Path) -> list[Row]:
    """Token probability, and the confidence that the model wrote down as a judge's grade."""
    rows = []
    stated = {"boolq_valid": (".149", ".129"), "sciq_test": (".478", ".293")}
    for name, told in stated.items():
        records = data.lifeeval(root, name)
        chance = np.clip(records.columns["token"], 1e-9, 1)
        drafts = [said("x", [math.log(p)]) for p in chance]
        place, n = f"LifeEval {name.split('_')[0]}", len(records)
        score = scores([Threshold(mean_logprob, 0)] * n, drafts)
        rows.append(Row(place, "Threshold(mean_logprob)", n, norm(records, score), told[0]))
        graded = [
            Judge(fake(said(f"Score: {grade:.4f}"), "judge"), threshold=1, scale=(0, 1))
            for grade in records.columns["stated"]
        ]
        score = scores(graded, drafts)
        rows.append(
            Row(place, "Judge (the model's own stated confidence)", n, norm(records, score),
                told[1], calls=2)
        )  # fmt: skip
    return rows


def agreement(root: Path) -> list[Row]:
    """Several small models on ZeroEval GSM8K, all of them paid on every question."""
    rows = []
    cases = {
        (checks.LLAMA8, (checks.QWEN,), checks.GPT4O): "25.5% -> .955",
        (checks.LLAMA8, (checks.QWEN, checks.GEMMA), checks.GPT4O): "30.3% -> .962",
        (checks.LLAMA8, (checks.QWEN, checks.NEMO), data.LARGE): "33.2% -> .945",
        (checks.HAIKU, ("gpt-3.5-turbo-0125",), checks.OPUS): "21.7% -> .951",
    }
    table = data.table(root, "zeroeval_gsm8k")
    for (small, voters, large), point in cases.items():
        traces = [_voted(row, small, voters, 1.0).trace for row in table]
        correct = _correct(table, small, large)
        went = np.array([trace.escalated for trace in traces])
        score = np.array([trace.attempts[0].score for trace in traces])
        # below full agreement the best supported answer is kept, whoever wrote it
        kept = [_voted(row, small, voters, 0.0).trace.spans[0][2] for row in table]
        writer = [small if name == "small" else name for name in kept]
        best = [data.number(r[f"{m}|correct"]) for r, m in zip(table, writer, strict=True)]
        records = CalibrationRecords.of(score, np.column_stack((best, correct[:, 1])))
        paid = np.mean([t.cost_usd - t.escalated for t in traces])
        rows.append(
            Row(f"ZeroEval GSM8K, to {large.split('-2024')[0]}",
                f"Agreement of {1 + len(voters)} ({small.split('-Instruct')[0]} first)",
                len(table), norm(records, score), point, float(went.mean()),
                float(np.where(went, correct[:, 1], correct[:, 0]).mean()), float(paid))
        )  # fmt: skip
    return rows


def _correct(table: Sequence[dict[str, str]], small: str, large: str) -> Floats:
    return np.array([[data.number(r[f"{m}|correct"]) for m in (small, large)] for r in table])


def _voted(row: dict[str, str], small: str, voters: Sequence[str], least: float) -> Any:
    models = [fake(said(row[f"{voter}|answer"].replace("$", "")), voter) for voter in voters]
    draft = said(row[f"{small}|answer"].replace("$", ""))
    return asked(Agreement(models, least, key="numeric"), draft)


def useless(root: Path) -> list[Row]:
    """What says nothing on GSM8K: whether the answer was valid JSON, and how long it was."""
    rows = []
    table = data.table(root, "zeroeval_gsm8k")
    small, large = checks.LLAMA8, checks.GPT4O
    correct = _correct(table, small, large)
    request = Request("q", "q", response_schema={"type": "object"})
    drafts = [said("{}" if r[f"{small}|json_ok"] in ("1", "True") else "{") for r in table]
    kept = np.array([not play(Valid(), draft, request).escalated for draft in drafts], dtype=float)
    values = _values(kept, correct)
    rows.append(
        Row("ZeroEval GSM8K, to gpt-4o", f"Valid (JSON; AUROC {values['error_auc']:.2f})",
            len(table), values["norm"], "AUROC .50 to .51", float(1 - kept.mean()),
            float(np.where(kept > 0, correct[:, 0], correct[:, 1]).mean()))
    )  # fmt: skip
    chars = np.array([-data.number(r[f"{small}|out_chars"]) for r in table])
    values = _values(chars, correct)
    rows.append(
        Row("ZeroEval GSM8K, to gpt-4o", f"short answers (AUROC {values['error_auc']:.2f})",
            len(table), values["norm"], "AUROC .61 to .64, norm .14 to .22")
    )  # fmt: skip
    return rows


def _values(score: Floats, correct: Floats) -> Any:
    records = CalibrationRecords.of(score, correct)
    return evaluate(records, {"it": score}, resamples=0)["it"].values


def routing(root: Path, repeats: int) -> list[Row]:
    """Routers on RouteLLM's records; a fitted one is judged on rows that it has not seen."""
    rows = []
    for name, told in (("gsm8k", ".158"), ("mmlu", ".109")):
        records, groups = data.routellm(root, name)
        requests = [Request("q", "q", input_tokens=int(-s)) for s in records.scores[:, 0]]
        # below every threshold, so that the record holds the score of each request
        route = Route(_shortness, 1.0)
        length = np.array([play(route, said("x"), r).attempts[0].score for r in requests])
        place = f"RouteLLM {name.upper()}"
        rows.append(Row(place, "Route(prompt length)", len(records), norm(records, length), told))
        if name == "mmlu":
            for labels in (500, 1500, 7018):
                fit = splits.learned_router(groups)
                norms = [_held_out(records, fit, labels, seed) for seed in range(repeats)]
                rows.append(
                    Row(place, f"Route(fit_router), {labels} labels", len(records) - labels,
                        float(np.mean(norms)))
                )  # fmt: skip
    return rows


def _shortness(request: Request) -> float:
    return -float(request.input_tokens or 0)


def _held_out(
    records: CalibrationRecords, fit: Callable[..., Floats], labels: int, seed: int
) -> float:
    order = np.random.default_rng(seed).permutation(len(records))
    test = np.sort(order[labels:])
    return norm(records.take(test), fit(order[:labels], records)[test])


def all_rows(root: Path, *, quick: bool = False) -> list[Row]:
    """Return every row."""
    found = [*tokens(root), *confidence(root), *agreement(root), *useless(root)]
    return [*found, *routing(root, 1 if quick else 5)]
