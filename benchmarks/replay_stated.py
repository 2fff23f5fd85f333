"""More of what is stated about the replay tables: reference points, read-off curves, traps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import replay_checks as checks
import replay_data as data

from cascadellm.evaluation import evaluate

Row = tuple[str, str, str, str]

# share of large calls with which the oracle matches the large model, APGR of the oracle that
# may stop, and the same from RouteLLM's 11 points
ORACLE = {"gsm8k": ("22.0", "1.133", "1.131"), "mmlu": ("12.5", "1.297", "1.290")}
# share of the gap recovered at x = 0, .1, ... 1, read off a published figure, and its area
CURVES = {
    "MF A+J": ("0 .145 .251 .370 .515 .583 .676 .770 .880 .947 1", ".564"),
    "BERT A+J": ("0 .125 .239 nan .436 .568 .653 .702 .809 .939 1", ".531"),
    "causal LLM A+J": ("0 .183 .322 .453 .578 .690 .765 .868 .899 .956 1", ".621"),
}
UNANIMOUS = ("25.5 .955", "30.3 .962", "33.2 .945", "21.7 .951")
# with a worse large tier, the best that raw confidence allows, and at which share
WORSE = {
    ("digit", "DeepSpeech", "Google"): (".6035", "14"),
    ("imdb", "Vader", "Baidu"): (".6933", "0.2"),
}
PARSED = {"Meta-Llama-3.1-8B-Instruct": ".693168", "Meta-Llama-3.1-70B-Instruct": ".785857",
          "gpt-4o": ".852976"}  # fmt: skip
HUMAN = {"en-de": ("86.0", "80.6"), "et-en": ("67.0", "60.3"), "ro-en": ("68.9", "67.6")}


def all_checks(root: Path) -> list[Row]:
    """Return (place, metric, computed, stated) for every value."""
    return [*_oracles(root), *_read_off(), *_agreement(root), *_traps(root), *_parsed(root),
            *_human(root)]  # fmt: skip


def _oracles(root: Path) -> Iterator[Row]:
    for name, (matching, free, eleven) in ORACLE.items():
        # a small tier that costs nothing makes cost the share of large calls
        records, _ = data.routellm(root, name)
        found = evaluate(records, resamples=0, margin=0, tier_costs=(1e-12, 1.0))
        place = f"RouteLLM {name} oracle"
        curve, gap = found["oracle"].curve, found.large - found.small
        share = 100 * found["oracle"].values["qnc"]
        yield place, "share that matches", data.rounded(share, matching), matching
        best = np.maximum.accumulate(curve.quality)
        area = float(np.trapezoid(best, curve.share))
        yield place, "free APGR", data.rounded((area - found.small) / gap, free), free
        points = np.linspace(0, 1, 11)
        part = float(np.trapezoid(np.interp(points, curve.share, best), points))
        yield place, "11-point APGR", data.rounded((part - found.small) / gap, eleven), eleven


def _read_off() -> Iterator[Row]:
    for name, (text, stated) in CURVES.items():
        values = np.array([float(v) for v in text.split()])
        known = ~np.isnan(values)
        area = float(np.trapezoid(values[known], np.linspace(0, 1, 11)[known]))
        yield f"RouteLLM GSM8K {name}", "area of the figure", data.rounded(area, stated), stated


def _agreement(root: Path) -> Iterator[Row]:
    for (small, voters, large), text in zip(checks.ZEROEVAL, UNANIMOUS, strict=True):
        records = data.zeroeval(root, small, voters, large)
        point = evaluate(records, thresholds={"all": [1.0]}, resamples=0).points[0]
        place, (share, quality) = f"ZeroEval {small} + {len(voters)} -> {large}", text.split()
        yield place, "escalated", data.rounded(100 * point.deferral_rate, share), share
        yield place, "accuracy", data.rounded(point.quality, quality), quality


def _traps(root: Path) -> Iterator[Row]:
    for (name, small, large), (peak, share) in WORSE.items():
        found = evaluate(data.frugal(root, name, small, large), resamples=0)
        values, place = found["score"].values, f"FrugalML {name} {small}, {large}"
        yield place, "peak", data.rounded(values["peak"], peak), peak
        yield place, "at share", data.rounded(100 * values["peak_share"], share), share
        yield place, "advice", str("use the smaller tier alone" in found.sentence), "True"


def _parsed(root: Path) -> Iterator[Row]:
    rows = data.table(root, "lifeeval_boolq_valid")
    names = [k for k in rows[0] if k.endswith("|correct")]
    whole = [r for r in rows if all(r[k] for k in names)]
    yield "LifeEval BoolQ", "rows that all models parse", str(len(whole)), "2503"
    for model, stated in PARSED.items():
        value = float(np.mean([float(r[f"{model}|correct"]) for r in whole]))
        yield f"LifeEval BoolQ {model}", "accuracy", data.rounded(value, stated), stated


def _human(root: Path) -> Iterator[Row]:
    for pair, values in HUMAN.items():
        for split, stated in zip(("train", "dev"), values, strict=True):
            records, _ = data.mlqe(root, pair, split)
            assert records.correct is not None
            mean = 100 * float(records.correct[:, 0].mean())
            yield f"MLQE {pair} {split}", "mean human score", data.rounded(mean, stated), stated
