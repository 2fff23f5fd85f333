"""Read the replay tables: which tier was right, and what it was sure of."""

from __future__ import annotations

import csv
import gzip
import json
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cascadellm.calibration import CalibrationRecords

SMALL, LARGE = "Meta-Llama-3.1-8B-Instruct", "Meta-Llama-3.1-70B-Instruct"


def table(root: Path, name: str) -> list[dict[str, str]]:
    """Read one gzipped CSV of the `replay` folder."""
    with gzip.open(root / "replay" / f"{name}.csv.gz", "rt", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def number(text: str | None) -> float:
    """Return a number, NaN for a blank."""
    return float(text) if text else float("nan")


def routellm(root: Path, name: str) -> tuple[CalibrationRecords, list[str]]:
    """Return the uncontaminated questions of `gsm8k` or `mmlu`, and their groups."""
    rows = [r for r in table(root, f"routellm_{name}") if r["contaminated"] == "0"]
    correct = [[number(r["weak_correct"]), number(r["strong_correct"])] for r in rows]
    columns = {"short answer": [-number(r["weak_answer_chars"]) for r in rows]}
    length = [number(r["prompt_chars"]) for r in rows]
    ids = [f"{name}-{r['i']}" for r in rows]
    records = CalibrationRecords.of(
        [-v for v in length], correct, prompt_length=length, columns=columns, ids=ids
    )
    return records, [r["group"] for r in rows]


def lifeeval(root: Path, name: str, *, unparsed_wrong: bool = False) -> CalibrationRecords:
    """Return Llama-3.1 8B and 70B on BoolQ or SciQ, with token and stated confidence."""
    rows = table(root, f"lifeeval_{name}")
    correct = np.array([[number(r[f"{m}|correct"]) for m in (SMALL, LARGE)] for r in rows])
    columns = {
        kind: np.array([number(r[f"{SMALL}|{kind}"]) for r in rows])
        for kind in ("token", "token_max", "stated")
    }
    ids = np.array([f"{name}-{r['id']}" for r in rows])
    if unparsed_wrong:
        columns = {k: np.where(np.isnan(correct[:, 0]), np.nan, v) for k, v in columns.items()}
        correct = np.nan_to_num(correct)
    parsed = ~np.isnan(correct).any(axis=1)
    return CalibrationRecords.of(
        columns["token"][parsed],
        correct[parsed],
        columns={k: v[parsed] for k, v in columns.items()},
        ids=ids[parsed].tolist(),
        score_names=("token",),
    )


def frugal(root: Path, name: str, small: str, large: str) -> CalibrationRecords:
    """Return two APIs of a FrugalML set, with the first one's confidence as score."""
    rows = table(root, f"frugalml_{name}")
    names = {key.split("|")[0] for key in rows[0]}
    first = next(n for n in names if small in n)
    correct = [[number(r[f"{m}|reward"]) for m in (first, large)] for r in rows]
    score = [number(r[f"{first}|confidence"]) for r in rows]
    return CalibrationRecords.of(score, correct, ids=[f"{name}-{i}" for i in range(len(rows))])


def zeroeval(root: Path, small: str, voters: tuple[str, ...], large: str) -> CalibrationRecords:
    """Return GSM8K answers with the share of voters that agree with the first model."""
    rows = table(root, "zeroeval_gsm8k")
    score = [
        sum(_same(r[f"{small}|answer"], r[f"{v}|answer"]) for v in voters) / len(voters)
        for r in rows
    ]
    correct = [[number(r[f"{m}|correct"]) for m in (small, large)] for r in rows]
    chars = [-number(r[f"{small}|out_chars"]) for r in rows]
    return CalibrationRecords.of(
        score, correct, columns={"short answer": chars}, ids=[r["id"] for r in rows]
    )


def _same(first: str, second: str) -> bool:
    a, b = _plain_number(first), _plain_number(second)
    return a is not None and a == b


def _plain_number(text: str) -> float | None:
    found = re.search(r"-?\d[\d,]*\.?\d*", text.replace("$", ""))
    return None if found is None else float(found[0].replace(",", "").rstrip("."))


def sequence_scores(logprobs: list[float]) -> dict[str, float]:
    """Return the usual scores of one answer's token log-probabilities (nats)."""
    values = np.array(logprobs)
    return {
        "sum": float(values.sum()),
        "mean": float(values.mean()),
        "min": float(values.min()),
        "10% quantile": float(np.quantile(values, 0.1)),
        "25% quantile": float(np.quantile(values, 0.25)),
        "first token": float(values[0]),
        "minus length": -float(len(values)),
    }


def g2p(root: Path) -> tuple[CalibrationRecords, list[list[float]]]:
    """Return the small and large phoneme models, and the small one's log-probabilities."""
    with gzip.open(root / "replay" / "g2p_calib.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    logprobs = [r["small"]["lp"] for r in rows]
    scores = [sequence_scores(lp) for lp in logprobs]
    columns: dict[str, list[float]] = {k: [s[k] for s in scores] for k in scores[0]}
    columns["min margin"] = [min(r["small"]["margin"]) for r in rows]
    correct = [[r["small"]["ok"], r["large"]["ok"]] for r in rows]
    records = CalibrationRecords.of(
        columns["mean"],
        correct,
        columns=columns,
        ids=[r["word"] for r in rows],
        prompt_length=[len(r["word"]) for r in rows],
        score_names=("mean",),
    )
    return records, logprobs


def mlqe(root: Path, pair: str, split: str) -> tuple[CalibrationRecords, list[list[float]]]:
    """Return translations graded by people (small) against a perfect translator (large)."""
    with tarfile.open(root / "mlqe_pe" / f"da_{pair}-{split}.tar.gz") as archive:
        files = {Path(m.name).name: m for m in archive.getmembers() if m.isfile()}
        tsv = next(n for n in files if n.endswith(".tsv"))
        probabilities = next(n for n in files if n.startswith("word_probas"))
        lines = _text(archive, files[tsv]).split("\n")
        logprobs = [
            [float(v) for v in line.split()]
            for line in _text(archive, files[probabilities]).split("\n")
            if line.strip()
        ]
    head = lines[0].split("\t")
    rows = [dict(zip(head, line.split("\t"), strict=False)) for line in lines[1:] if line.strip()]
    quality = np.array([float(r["mean"]) for r in rows]) / 100
    scores = [sequence_scores(lp) for lp in logprobs]
    columns = {k: [s[k] for s in scores] for k in scores[0]}
    records = CalibrationRecords.of(
        columns["mean"],
        np.column_stack([quality, np.ones(len(quality))]),
        columns=columns,
        prompt_length=[len(r["original"]) for r in rows],
        score_names=("mean",),
        ids=[f"{pair}-{split}-{i}" for i in range(len(rows))],
    )
    return records, logprobs


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    handle = archive.extractfile(member)
    return handle.read().decode("utf-8") if handle else ""


def stated(values: Mapping[str, float], expected: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return (metric, computed to the stated digits, stated) for every stated value."""
    return [(k, rounded(values[k], text), text) for k, text in expected.items()]


def rounded(value: float, text: str) -> str:
    """Print a value in the form of a stated one."""
    digits = len(text.split(".")[1]) if "." in text else 0
    shown = f"{value:.{digits}f}"
    return shown.replace("0.", ".", 1) if text.lstrip("-").startswith(".") else shown
