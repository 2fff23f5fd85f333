"""Our policies on the replay tables, fitted on one split and reported on another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import replay_checks as checks
import replay_data as data
from numpy.typing import NDArray

from cascadellm.calibration import CalibrationRecords, calibrate_threshold
from cascadellm.calibration.features import token_features
from cascadellm.calibration.fit import apply_to, fit_learned_score
from cascadellm.calibration.router_fit import fit_router
from cascadellm.demo import embed
from cascadellm.errors import CalibrationError
from cascadellm.evaluation import evaluate

Floats = NDArray[np.float64]
Table = Mapping[str, Floats]


@dataclass(frozen=True, slots=True)
class Learned:
    """A learned score against a raw one on records that it has not seen: mean norm."""

    place: str
    splits: int
    learned: float
    raw: float
    raw_name: str
    wins: int


def token_table(records: CalibrationRecords, logprobs: Sequence[Sequence[float]]) -> Table:
    """Return the token features of every answer as columns."""
    length = records.prompt_length
    rows = [
        token_features(lp, prompt_length=None if length is None else float(length[i]))
        for i, lp in enumerate(logprobs)
    ]
    return {k: np.array([r.get(k, np.nan) for r in rows]) for k in rows[0]}


def confidence_table(records: CalibrationRecords) -> Table:
    """Return token and stated confidence as features."""
    token = np.clip(records.columns["token"], 1e-6, 1 - 1e-6)
    logit = np.log(token / (1 - token))
    stated = records.columns["stated"]
    return {"logit": logit, "stated": stated, "both": logit * stated}


def _pick(table: Table, rows: NDArray[np.intp]) -> Table:
    return {k: v[rows] for k, v in table.items()}


def _halves(n: int, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def _norms(
    train: CalibrationRecords,
    train_table: Table,
    test: CalibrationRecords,
    test_table: Table,
    raw: str,
) -> tuple[float, float]:
    assert train.correct is not None
    made = fit_learned_score(train_table, train.correct, ids=train.ids).score
    scored = apply_to(made, test, test_table)
    scores = {"learned": scored.scores[:, 0], "raw": test.columns[raw]}
    found = evaluate(scored, scores, resamples=0)
    return found["learned"].values["norm"], found["raw"].values["norm"]


def learned(root: Path, splits: int) -> list[Learned]:
    """Fit learned scores on half of a table (MLQE: on train) and judge them on the rest."""
    results = []
    tables: list[tuple[str, CalibrationRecords, Table, str]] = []
    for name in ("boolq_valid", "sciq_test"):
        records = data.lifeeval(root, name, unparsed_wrong=True)
        tables.append((f"LifeEval {name}", records, confidence_table(records), "token"))
    records, logprobs = data.g2p(root)
    tables.append(("g2p", records, token_table(records, logprobs), "mean"))
    tables.append(("g2p", records, token_table(records, logprobs), "sum"))
    for place, records, table, raw in tables:
        pairs = []
        for seed in range(splits):
            first, second = _halves(len(records), seed)
            pairs.append(
                _norms(
                    records.take(first), _pick(table, first),
                    records.take(second), _pick(table, second), raw,
                )
            )  # fmt: skip
        results.append(_result(place, pairs, raw))
    for pair in ("en-de", "et-en", "ro-en"):
        (train, train_lp), (dev, dev_lp) = (data.mlqe(root, pair, s) for s in ("train", "dev"))
        found = _norms(train, token_table(train, train_lp), dev, token_table(dev, dev_lp), "mean")
        results.append(_result(f"MLQE {pair}, train to dev", [found], "mean"))
    return results


def _result(place: str, pairs: Sequence[tuple[float, float]], raw: str) -> Learned:
    ours, theirs = np.array(pairs).T
    wins = int((ours > theirs).sum())
    return Learned(place, len(pairs), float(ours.mean()), float(theirs.mean()), raw, wins)


@dataclass(frozen=True, slots=True)
class Routed:
    """A router on RouteLLM records that it was not fitted on: means over splits."""

    place: str
    router: str
    labels: int
    apgr: float
    norm: float
    cpt50: float
    cpt80: float


def routers(root: Path, splits: int) -> list[Routed]:
    """Fit routers on part of the RouteLLM records and judge them on the rest."""
    results = []
    gsm, _ = data.routellm(root, "gsm8k")
    for labels in (653,):
        table = {
            "log_prompt": np.log(-gsm.scores[:, 0]),
            "log_answer": np.log(np.maximum(1.0, -gsm.columns["short answer"])),
        }
        results.append(_routed("GSM8K", "learned on both lengths", gsm, labels, splits,
                               lambda tr, rec, t=table: _length_router(t, tr, rec)))  # fmt: skip
    mmlu, groups = data.routellm(root, "mmlu")
    names = np.unique(groups, return_inverse=True)[1]
    for labels in (500, 1500, 7018):
        results.append(_routed("MMLU", "mean gain of the subject", mmlu, labels, splits,
                               lambda tr, rec: _subject_router(names, tr, rec)))  # fmt: skip
        results.append(_routed("MMLU", "subject and prompt length", mmlu, labels, splits,
                               lambda tr, rec: _subject_and_length(names, tr, rec)))  # fmt: skip
    return results


def _routed(
    place: str,
    router: str,
    records: CalibrationRecords,
    labels: int,
    splits: int,
    fit: Callable[[NDArray[np.intp], CalibrationRecords], Floats],
) -> Routed:
    rows = []
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(len(records))
        score = fit(order[:labels], records)
        test = np.sort(order[labels:])
        found = evaluate(records.take(test), {"router": score[test]}, resamples=0)["router"]
        rows.append([found.values[k] for k in ("apgr", "norm", "cpt50", "cpt80")])
    return Routed(place, router, labels, *(float(v) for v in np.mean(rows, axis=0)))


def _subject_router(
    names: NDArray[np.intp], train: NDArray[np.intp], records: CalibrationRecords
) -> Floats:
    assert records.correct is not None
    gain = (records.correct[:, 1] - records.correct[:, 0])[train]
    count = np.bincount(names[train], minlength=names.max() + 1)
    total = np.bincount(names[train], gain, names.max() + 1)
    # shrunk towards the overall gain with the weight of ten questions
    score: Floats = -((total + 10 * gain.mean()) / (count + 10))[names]
    return score


def learned_router(
    groups: Sequence[str],
) -> Callable[[NDArray[np.intp], CalibrationRecords], Floats]:
    """Return a fit of `fit_router` on a word-count embedding of the subject's name.

    The records hold no question text, so the name of its subject stands for a question.
    """
    texts = [group.replace("_", " ") for group in groups]
    vectors = {text: np.array(embed(text, 128)) for text in set(texts)}

    def fit(train: NDArray[np.intp], records: CalibrationRecords) -> Floats:
        assert records.correct is not None
        router = fit_router(
            [texts[i] for i in train],
            records.correct[train],
            embed=lambda asked: [vectors[text] for text in asked],
            lengths=-records.scores[train, 0],
        ).router
        chars = -records.scores[:, 0]
        return np.array([router.of(vectors[t], c) for t, c in zip(texts, chars, strict=True)])

    return fit


def _length_router(table: Table, train: NDArray[np.intp], records: CalibrationRecords) -> Floats:
    assert records.correct is not None
    made = fit_learned_score(_pick(table, train), records.correct[train]).score
    return apply_to(made, records, table).scores[:, 0]


def _subject_and_length(
    names: NDArray[np.intp], train: NDArray[np.intp], records: CalibrationRecords
) -> Floats:
    # half of the labels make the subject feature, the others weigh it against length
    first, second = train[: len(train) // 2], train[len(train) // 2 :]
    table = {
        "subject": _subject_router(names, first, records),
        "log_prompt": np.log(-records.scores[:, 0]),
    }
    assert records.correct is not None
    made = fit_learned_score(_pick(table, second), records.correct[second], target="gain").score
    table["subject"] = _subject_router(names, train, records)
    return apply_to(made, records, table).scores[:, 0]


@dataclass(frozen=True, slots=True)
class Certified:
    """A threshold certified on one half of the records and measured on the other."""

    place: str
    target: float
    labels: int
    result: str
    kept: float | None = None
    gap: float | None = None
    gap_interval: tuple[float, float] | None = None
    one_sided: float | None = None


def certified(root: Path) -> list[Certified]:
    """Calibrate at 95% confidence on half of each table and report the other half."""
    tables = {
        "RouteLLM GSM8K, prompt length": data.routellm(root, "gsm8k")[0],
        "LifeEval BoolQ, token": data.lifeeval(root, "boolq_valid", unparsed_wrong=True),
        "LifeEval SciQ, token": data.lifeeval(root, "sciq_test", unparsed_wrong=True),
        "FrugalML RAFDB, CNN to Microsoft": data.frugal(root, "rafdb", "CNN", "Microsoft"),
        "FrugalML IMDB, Vader to Google": data.frugal(root, "imdb", "Vader", "Google"),
        "FrugalML WAIMAI, Bixin to Baidu": data.frugal(root, "waimai", "Bixin", "Baidu"),
        "FrugalML DIGIT, DeepSpeech to Microsoft": data.frugal(
            root, "digit", "DeepSpeech", "Microsoft"
        ),
        "g2p, sum of log-probabilities": _with_score(data.g2p(root)[0], "sum"),
        "ZeroEval GSM8K, two voters to GPT-4o": data.zeroeval(
            root, checks.LLAMA8, (checks.QWEN, checks.GEMMA), checks.GPT4O
        ),
    }
    return [_certify(place, r, t) for place, r in tables.items() for t in (0.02, 0.05)]


def _with_score(records: CalibrationRecords, name: str) -> CalibrationRecords:
    return CalibrationRecords.of(records.columns[name], records.correct, ids=records.ids)


def _certify(place: str, records: CalibrationRecords, target: float) -> Certified:
    first, second = _halves(len(records), 0)
    try:
        made = calibrate_threshold(records.take(first), target_risk=target)
    except CalibrationError as error:
        return Certified(place, target, len(first), f"refused: {str(error).split(';')[0]}")
    test = records.take(second)
    point = evaluate(test, thresholds={"ours": made}, resamples=0).points[0]
    assert test.correct is not None
    loss = (test.correct[:, 1] > test.correct[:, 0]) & (test.scores[:, 0] >= made.threshold)
    return Certified(
        place, target, made.n, "certified", 1 - point.deferral_rate, point.gap,
        point.gap_interval, float(loss.mean()),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Coverage:
    """How often the promise broke when all records are the population."""

    place: str
    target: float
    labels: int
    sets: int
    violations: float
    kept: float


def coverage(root: Path, sets: int, labels: int = 500) -> list[Coverage]:
    """Draw sets with replacement, calibrate at 90%, and measure the risk on all records."""
    tables = {
        "LifeEval BoolQ, token": data.lifeeval(root, "boolq_valid", unparsed_wrong=True),
        "FrugalML RAFDB, CNN to Microsoft": data.frugal(root, "rafdb", "CNN", "Microsoft"),
        "g2p, sum of log-probabilities": _with_score(data.g2p(root)[0], "sum"),
    }
    return [
        _covered(place, r, t, sets, labels) for place, r in tables.items() for t in (0.02, 0.05)
    ]


def _covered(
    place: str, records: CalibrationRecords, target: float, sets: int, labels: int
) -> Coverage:
    assert records.correct is not None
    loss = (records.correct[:, 1] > records.correct[:, 0]).astype(float)
    score = records.scores[:, 0]
    # fixed for every set, and placed without labels
    grid = np.unique(np.nanquantile(score, np.linspace(0, 1, 81), method="lower"))
    rng = np.random.default_rng(0)
    risks, kept = [], []
    for _ in range(sets):
        rows = rng.integers(0, len(records), labels)
        drawn = CalibrationRecords.of(score[rows], records.correct[rows])
        try:
            made = calibrate_threshold(
                drawn, target_risk=target, confidence=0.9, grid=grid, require_signal=False
            ).threshold
        except CalibrationError:
            made = np.inf
        accepted = score >= made
        risks.append(float((accepted * loss).mean()))
        kept.append(float(accepted.mean()))
    broken = float(np.mean(np.array(risks) > target))
    return Coverage(place, target, labels, sets, broken, float(np.mean(kept)))


def unanimous(root: Path) -> tuple[float, float, float]:
    """Escalate unless three small models agree: (share escalated, quality, GPT-4o's own)."""
    voters = (checks.QWEN, checks.GEMMA)
    records = data.zeroeval(root, checks.LLAMA8, voters, checks.GPT4O)
    point = evaluate(records, thresholds={"all": [1.0]}, resamples=0).points[0]
    assert records.correct is not None
    return point.deferral_rate, point.quality, float(records.correct[:, 1].mean())
