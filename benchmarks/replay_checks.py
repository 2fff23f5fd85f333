"""What is stated about the replay tables, to the digits in which it is stated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import replay_data as data

from cascadellm.calibration import CalibrationRecords
from cascadellm.evaluation import Evaluation, evaluate

HAIKU, OPUS = "claude-3-haiku-20240307", "claude-3-opus-20240229"
LLAMA8, GPT4O = "Meta-Llama-3.1-8B-Instruct", "gpt-4o-2024-08-06"
QWEN, GEMMA, NEMO = "Qwen2-7B-Instruct", "gemma-2-9b-it", "Mistral-Nemo-Instruct-2407"

Stated = Mapping[str, str]

# (set, small, large): stated metrics of the small tier's raw confidence
FRUGAL: Mapping[tuple[str, str, str], Stated] = {
    ("rafdb", "CNN", "Microsoft"): {
        "small": ".6000", "large": ".7169", "union": ".8194", "error_auc": ".786",
        "apgr": ".805", "norm": ".271", "cpt50": "20.1", "cpt80": "35.9", "peak": ".7260",
    },
    ("rafdb", "CNN", "Google"): {
        "large": ".6564", "union": ".8014", "apgr": "1.214", "norm": ".283", "cpt50": "9.8",
        "cpt80": "17.4", "peak": ".6972",
    },
    ("imdb", "Vader", "Google"): {
        "small": ".6931", "large": ".8645", "union": ".9047", "error_auc": ".629",
        "apgr": ".611", "norm": ".185", "cpt50": "36.0", "cpt80": "63.6", "peak": ".8646",
    },
    ("imdb", "Vader", "Amazon"): {
        "large": ".7911", "union": ".8840", "apgr": ".613", "norm": ".093", "cpt50": "36.4",
        "cpt80": "62.2", "peak": ".7911",
    },
    ("waimai", "Bixin", "Baidu"): {
        "small": ".6433", "large": ".8895", "union": ".9282", "error_auc": ".770",
        "apgr": ".727", "norm": ".464", "cpt50": "20.9", "cpt80": "39.1", "peak": ".8895",
    },
    ("waimai", "Bixin", "Google"): {
        "large": ".8192", "union": ".8880", "apgr": ".798", "norm": ".421", "cpt50": "17.4",
        "cpt80": "27.8", "peak": ".8192",
    },
    ("digit", "DeepSpeech", "Microsoft"): {
        "small": ".5970", "large": ".8265", "union": ".8670", "error_auc": ".905",
        "apgr": ".744", "norm": ".474", "cpt50": "26.0", "cpt80": "42.9", "peak": ".8385",
    },
    ("digit", "DeepSpeech", "IBM"): {
        "large": ".7465", "union": ".8090", "apgr": ".791", "norm": ".385", "cpt50": "24.5",
        "cpt80": "39.7", "peak": ".7675",
    },
}  # fmt: skip

G2P = {
    "sum": ("error_auc .840", "apgr .679", "norm .334"),
    "mean": ("error_auc .823", "apgr .665", "norm .307"),
    "min": ("error_auc .806", "apgr .673", "norm .321"),
    "10% quantile": ("error_auc .820", "apgr .669", "norm .315"),
    "25% quantile": ("error_auc .788", "apgr .632", "norm .245"),
    "first token": ("error_auc .523", "apgr .529", "norm .053"),
    "minus length": ("error_auc .672", "apgr .598", "norm .182"),
    "min margin": ("error_auc .785", "apgr .669", "norm .315"),
}

MLQE_NAMES = ("mean", "sum", "min", "10% quantile", "25% quantile", "minus length")
MLQE = {
    ("en-de", "train"): ".124 .117 .109 .110 .100 .048",
    ("en-de", "dev"): ".269 .277 .271 .215 .219 .103",
    ("et-en", "train"): ".404 .393 .363 .398 .345 .185",
    ("et-en", "dev"): ".491 .440 .390 .463 .419 .181",
    ("ro-en", "train"): ".538 .546 .506 .519 .457 .225",
    ("ro-en", "dev"): ".604 .608 .572 .566 .509 .258",
}

ZEROEVAL = {
    (LLAMA8, (QWEN,), GPT4O): "small .840|large .962|error_auc .853|apgr .844|norm .676",
    (LLAMA8, (QWEN, GEMMA), GPT4O): "error_auc .928|apgr .913|norm .812",
    (LLAMA8, (QWEN, NEMO), "Meta-Llama-3.1-70B-Instruct"): "error_auc .921|apgr .929|norm .686",
    (HAIKU, ("gpt-3.5-turbo-0125",), OPUS): "error_auc .812|apgr .858|norm .535",
}

Row = tuple[str, str, str, str]


def _compare(place: str, found: Evaluation, policy: str, stated: Stated) -> Iterator[Row]:
    """Yield (place, metric, computed, stated), percentages where the statement is one."""
    values = dict(found[policy].values)
    values.update(small=found.small, large=found.large, union=found.union)
    for metric, text in stated.items():
        name = metric.split(":")[-1]
        source = found[metric.split(":")[0]].values if ":" in metric else values
        percent = name in ("cpt50", "cpt80") or float(text) > 2
        yield place, metric, data.rounded(source[name] * (100 if percent else 1), text), text


def _judge(place: str, records: CalibrationRecords, policy: str, stated: Stated) -> Iterator[Row]:
    yield from _compare(place, evaluate(records, resamples=0), policy, stated)


def routellm(root: Path) -> Iterator[Row]:
    """RouteLLM: reference points and the two length baselines."""
    gsm, _ = data.routellm(root, "gsm8k")
    stated = {
        "small": "63.73", "large": "85.77", "union": "92.96", "random:area": ".7475",
        "oracle:apgr": "1.121", "oracle:cpt50": "11.0", "oracle:cpt80": "17.6",
        "knows:apgr": ".982", "knows:norm": ".776", "knows:peak": "92.96",
        "knows:peak_share": "36.3", "prompt length:apgr": ".598", "prompt length:norm": ".158",
        "prompt length:cpt50": "36.6", "prompt length:cpt80": "66.7", "short answer:apgr": ".532",
        "short answer:norm": ".051", "short answer:cpt50": "41.6", "short answer:cpt80": "82.8",
    }  # fmt: skip
    assert gsm.correct is not None
    policies = {"knows": gsm.correct[:, 0], "short answer": gsm.columns["short answer"]}
    yield from _compare("RouteLLM GSM8K", evaluate(gsm, policies, resamples=0), "knows", stated)
    mmlu, _ = data.routellm(root, "mmlu")
    stated = {
        "small": "68.09", "large": "80.59", "union": "85.87", "random:area": ".7434",
        "oracle:apgr": "1.285", "oracle:cpt50": "6.25", "oracle:cpt80": "10.0",
        "knows:apgr": "1.052", "knows:norm": ".703", "knows:peak": "85.87",
        "knows:peak_share": "31.9", "prompt length:apgr": ".586", "prompt length:norm": ".109",
        "prompt length:cpt50": "35.9", "prompt length:cpt80": "69.1",
    }  # fmt: skip
    assert mmlu.correct is not None
    found = evaluate(mmlu, {"knows": mmlu.correct[:, 0]}, resamples=0)
    yield from _compare("RouteLLM MMLU", found, "knows", stated)


def lifeeval(root: Path) -> Iterator[Row]:
    """LifeEval: token and stated confidence, parsed rows and all rows."""
    boolq = data.lifeeval(root, "boolq_valid")
    stated = {
        "small": ".668", "large": ".761", "union": ".844", "oracle:apgr": "1.680",
        "error_auc": ".643", "apgr": ".676", "norm": ".149", "cpt50": "33.0", "cpt80": "56.2",
        "stated:error_auc": ".624", "stated:apgr": ".652", "stated:norm": ".129",
        "stated:cpt50": "32.0", "stated:cpt80": "54.8",
    }  # fmt: skip
    yield from _judge("LifeEval BoolQ", boolq, "token", stated)
    stated = {
        "small": ".653", "large": ".754", "union": ".838", "oracle:apgr": "1.624",
        "error_auc": ".665", "apgr": ".705", "norm": ".182", "cpt50": "28.9", "cpt80": "53.8",
    }  # fmt: skip
    whole = data.lifeeval(root, "boolq_valid", unparsed_wrong=True)
    yield from _judge("LifeEval BoolQ, unparsed wrong", whole, "token", stated)
    stated = {
        "small": ".911", "large": ".954", "union": ".967", "oracle:apgr": "1.264",
        "error_auc": ".837", "apgr": ".865", "norm": ".478", "cpt50": "9.9", "cpt80": "18.6",
        "stated:error_auc": ".688", "stated:apgr": ".724", "stated:norm": ".293",
        "stated:cpt50": "16.3", "stated:cpt80": "50.7",
    }  # fmt: skip
    yield from _judge("LifeEval SciQ", data.lifeeval(root, "sciq_test"), "token", stated)


def others(root: Path) -> Iterator[Row]:
    """FrugalML, ZeroEval agreement, g2p and MLQE token scores."""
    for (name, small, large), stated in FRUGAL.items():
        records = data.frugal(root, name, small, large)
        yield from _judge(f"FrugalML {name} {small}, {large}", records, "score", stated)
    for (small, voters, large), text in ZEROEVAL.items():
        stated = dict(part.split() for part in text.split("|"))
        records = data.zeroeval(root, small, voters, large)
        yield from _judge(f"ZeroEval {small} + {len(voters)} -> {large}", records, "score", stated)
    records, _ = data.g2p(root)
    found = evaluate(records, resamples=0)
    head = {"small": ".4674", "large": ".6825", "union": ".7245", "oracle:apgr": "1.038"}
    yield from _compare("g2p", found, "mean", head)
    for name, parts in G2P.items():
        yield from _compare(f"g2p {name}", found, name, dict(p.split() for p in parts))
    for (pair, split), text in MLQE.items():
        records, _ = data.mlqe(root, pair, split)
        found = evaluate(records, resamples=0)
        for name, value in zip(MLQE_NAMES, text.split(), strict=True):
            yield from _compare(f"MLQE {pair} {split} {name}", found, name, {"norm": value})


def all_checks(root: Path) -> list[Row]:
    """Return (place, metric, computed, stated) for every stated value."""
    return [*routellm(root), *lifeeval(root), *others(root)]
