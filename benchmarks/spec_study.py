"""Quality against latency for one pair of models: methods, interleaved timing, honest choices.

Every prompt is answered by every method in turn, so a busy machine slows all of them alike.
Times are processor times of the one computing thread unless `wall` is asked for: on a quiet
machine the two agree, on a shared one only the former says what a method costs.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch

import torch
import transformers
from spec_checkpoint import Checkpoint
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    LogitsProcessorList,
    MinPLogitsWarper,
)

from cascadellm.local import LocalModel, SequentialPair, SpeculativePair, rules
from cascadellm.scores import mean_logprob

BASELINE = "large alone (generate)"


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt with the grader of its answer."""

    prompt: str
    grade: Callable[[str], bool]


@dataclass(slots=True)
class Method:
    """A way to answer.

    Attributes:
        family: Curve it belongs to.
        parameter: Its place on the curve, or None.
        answer: Prompt -> (text, number of tokens, counters).
    """

    family: str
    parameter: float | None
    answer: Callable[[str], tuple[str, int, dict[str, Any]]]
    seconds: list[list[float]] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    counts: list[dict[str, Any]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Family with its parameter."""
        return self.family if self.parameter is None else f"{self.family} {self.parameter:g}"


SWEEPS: dict[str, tuple[Callable[[float], rules.Rule], tuple[float, ...]]] = {
    "Chow": (rules.Chow, (0.1, 0.3, 0.5)),
    "Diff": (rules.Diff, (-0.1, 0.1, 0.3)),
    "Opt": (rules.Opt, (-0.1, 0.0, 0.2)),
    "TokenV1": (rules.TokenV1, (-0.2, 0.1, 0.4)),
    "TokenV2": (rules.TokenV2, (0.1, 0.3, 0.6)),
    "TokenV3": (rules.TokenV3, (0.1, 0.3, 0.5, 0.8, 0.95)),
    "Lenient": (rules.Lenient, (0.7, 0.3, 0.05)),
    "Ensemble": (rules.Ensemble, (0.75, 0.5, 0.25)),
    "Mentored": (rules.Mentored, (0.3, 0.6, 0.9)),
}

ADAPTIVE: dict[str, tuple[Callable[[float], rules.Rule], tuple[float, ...]]] = {
    "Opt": (rules.Opt, (-0.1, 0.0)),
    "TokenV2": (rules.TokenV2, (0.1, 0.3)),
    "TokenV3": (rules.TokenV3, (0.1, 0.3, 0.5, 0.8)),
}
"""Rules that are measured with adaptive gamma too, where longer drafts may pay."""


class Pairing:
    """The methods that one pair of models offers.

    Args:
        small: The draft.
        large: The target.
        gamma: Drafted tokens per verify call.
        limit: Most tokens of an answer.
        temperature: 0 = greedy.
    """

    def __init__(
        self, small: LocalModel, large: LocalModel, *, gamma: int, limit: int, temperature: float
    ) -> None:
        self.small, self.large, self.gamma = small, large, gamma
        self.call: dict[str, Any] = {"max_new_tokens": limit, "logprobs": False}
        self.temperature = temperature
        if temperature:
            self.call |= {"temperature": temperature, "seed": 1}

    def transformers(self, **extra: Any) -> Callable[[str], tuple[str, int, dict[str, Any]]]:
        """Return transformers' own generate on the large model."""
        model = self.large
        eos = sorted(model.eos_ids)

        def answer(prompt: str) -> tuple[str, int, dict[str, Any]]:
            ids = model.encode(prompt)
            torch.manual_seed(1)
            if model.is_encoder_decoder:
                # generate's own cache counts the encoder's layers, not the decoder's
                empty = (DynamicCache(), DynamicCache())
                extra["past_key_values"] = EncoderDecoderCache(*empty)
            keywords: dict[str, Any] = {"do_sample": bool(self.temperature)}
            if self.temperature:
                keywords |= {"temperature": self.temperature, "top_k": 0, "top_p": 1.0}
            with torch.inference_mode():
                out = model.module.generate(
                    ids, attention_mask=torch.ones_like(ids), eos_token_id=eos,
                    max_new_tokens=self.call["max_new_tokens"], pad_token_id=eos[0],
                    **keywords, **extra,
                )  # fmt: skip
            new = out[0, 1:] if model.is_encoder_decoder else out[0, ids.shape[1] :]
            return model.tokenizer.decode(new, skip_special_tokens=True), len(new), {}

        return answer

    def assisted(self, weight: float | None = None) -> Callable[[str], Any]:
        """Return transformers' assisted generation with the same pair and gamma."""
        config = self.small.module.generation_config
        config.num_assistant_tokens = self.gamma
        config.num_assistant_tokens_schedule = "constant"
        config.assistant_confidence_threshold = 0.0
        extra: dict[str, Any] = {"assistant_model": self.small.module}
        if weight is not None:
            extra["assistant_ensemble_weight"] = weight
        return self.transformers(**extra)

    def local(self, model: Any, **extra: Any) -> Callable[[str], tuple[str, int, dict[str, Any]]]:
        """Return one of our models."""

        def answer(prompt: str) -> tuple[str, int, dict[str, Any]]:
            found = model.generate(prompt, **{**self.call, **extra})
            return found.text, found.usage.output_tokens, dict(found.speculation or {})

        return answer

    def pair(self, rule: rules.Rule, gamma: Any = None, **kwargs: Any) -> Callable[[str], Any]:
        """Return our pair under a rule."""
        pair = SpeculativePair(self.small, self.large, rule, gamma or self.gamma, **kwargs)
        return self.local(pair)

    def truncated(self, level: float) -> Callable[[str], Any]:
        """Return the large model with min-p truncation, speculated without loss."""
        answer = self.pair(rules.Lossless())

        def processors(*_: Any) -> LogitsProcessorList:
            return LogitsProcessorList([MinPLogitsWarper(level)])

        def run(prompt: str) -> Any:
            with patch.object(LocalModel, "processors", processors):
                return answer(prompt)

        return run

    def deferred(self, threshold: float) -> Callable[[str], Any]:
        """Return the answer-level cascade: the small answer, or else the large one."""

        def run(prompt: str) -> tuple[str, int, dict[str, Any]]:
            draft = self.small.generate(prompt, **{**self.call, "logprobs": True})
            if mean_logprob(draft) >= threshold:
                return draft.text, draft.usage.output_tokens if draft.usage else 0, {}
            return self.local(self.large)(prompt)

        return run

    def methods(self, *, quick: bool) -> list[Method]:
        """Return every method of the study."""
        lossless = rules.Lossless()
        found = [
            Method(BASELINE, None, self.transformers()),
            Method("transformers assisted", None, self.assisted()),
            Method("large alone (LocalModel)", None, self.local(self.large)),
            Method("small alone (LocalModel)", None, self.local(self.small)),
            Method("lossless", None, self.pair(lossless)),
            Method("lossless, adaptive gamma", None, self.pair(lossless, "adaptive")),
            Method(
                "sequential token cascade, Chow", 0.3,
                self.local(SequentialPair(self.small, self.large, rules.Chow(0.3))),
            ),
        ]  # fmt: skip
        weights = (0.5,) if quick else (0.75, 0.5, 0.25)
        found += [Method("transformers ensemble", w, self.assisted(w)) for w in weights]
        levels = (-0.05,) if quick else (-0.1, -0.03, -0.01)
        found += [Method("answer-level cascade", t, self.deferred(t)) for t in levels]
        for family, (build, values) in SWEEPS.items():
            if quick and family not in ("TokenV3", "Lenient", "Opt"):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                swept = values[1::2][:2] if quick else values
                found += [Method(family, value, self.pair(build(value))) for value in swept]
        if not quick:
            for family, (build, values) in ADAPTIVE.items():
                name = f"{family}, adaptive gamma"
                found += [Method(name, v, self.pair(build(v), "adaptive")) for v in values]
        if self.temperature:
            block = self.pair(lossless, block_verification=True)
            found.append(Method("lossless, blocks", None, block))
            cuts = (0.5,) if quick else (0.3, 0.5, 0.7, 0.9)
            found += [Method("min-p = 1 - x, lossless", x, self.truncated(1 - x)) for x in cuts]
        return found


def run(
    methods: Sequence[Method],
    tasks: Sequence[Task],
    repeats: int,
    *,
    wall: bool,
    checkpoint: Checkpoint,
) -> None:
    """Answer every task with every method in turn, except those that an earlier run finished."""
    clock = time.perf_counter if wall else time.thread_time
    for method in methods:
        method.answer(tasks[0].prompt)
    done = checkpoint.restore(methods)
    for number, task in enumerate(tasks[done:], done):
        rng = random.Random(number)
        for method in methods:
            method.seconds.append([])
        for repeat in range(repeats):
            for method in rng.sample(list(methods), len(methods)):
                begun = clock()
                text, count, spoken = method.answer(task.prompt)
                method.seconds[-1].append(clock() - begun)
                if repeat == 0:
                    method.right.append(task.grade(text))
                    method.tokens.append(count)
                    method.texts.append(text)
                    method.counts.append({k: v for k, v in spoken.items() if k != "tokens"})
        checkpoint.save(methods)
        if number % 10 == 9:
            print(f"{number + 1} of {len(tasks)} prompts", flush=True)


def summary(method: Method, baseline: Method, places: Sequence[int]) -> dict[str, Any]:
    """Return quality, latency relative to the baseline, and counters over some prompts."""

    def total(one: Method) -> float:
        return sum(statistics.median(one.seconds[place]) for place in places)

    def added(key: str) -> int:
        return sum(method.counts[place].get(key, 0) for place in places)

    seconds, tokens = total(method), sum(method.tokens[place] for place in places)
    found = {
        "method": method.name,
        "family": method.family,
        "parameter": method.parameter,
        "quality": statistics.mean(method.right[place] for place in places),
        "latency": seconds / total(baseline),
        "speedup": total(baseline) / seconds,
        "tokens_per_s": tokens / seconds,
        "tokens": tokens,
    }
    if calls := added("verify_calls"):
        found |= {
            "tokens_per_verify_call": tokens / calls,
            "verify_calls": calls,
            "draft_steps": added("draft_steps"),
            "kept_share": added("accepted") / max(1, added("drafted")),
        }
    return found


def area(points: Sequence[dict[str, Any]]) -> float:
    """Return the area under best quality against relative latency on [0, 1]."""
    total, best, place = 0.0, 0.0, 0.0
    for point in sorted(points, key=lambda p: p["latency"]):
        if point["latency"] >= 1:
            break
        total += best * (point["latency"] - place)
        place, best = point["latency"], max(best, point["quality"])
    return total + best * (1 - place)


def study(methods: Sequence[Method], count: int) -> dict[str, Any]:
    """Choose parameters on the first half of the prompts and report the second half."""
    dev, test = range(count // 2), range(count // 2, count)
    baseline = methods[0]
    rows = {m.name: (summary(m, baseline, dev), summary(m, baseline, test)) for m in methods}
    bar = rows[BASELINE][0]["quality"]
    chosen: dict[str, Any] = {}
    for family in dict.fromkeys(m.family for m in methods if m.parameter is not None):
        own = [rows[m.name] for m in methods if m.family == family]
        good = [row for row in own if row[0]["quality"] >= bar]
        fits = [row for row in own if row[0]["latency"] <= 1]
        chosen[family] = {
            "matched_quality": min(good, key=lambda r: r[0]["latency"])[1] if good else None,
            "best_within_latency": max(fits, key=lambda r: r[0]["quality"])[1] if fits else None,
            "area": area([row[1] for row in own]),
        }
    same = {
        m.name: statistics.mean(a == b for a, b in zip(m.texts, baseline.texts, strict=True))
        for m in methods
        if m.family.startswith(("lossless", "large alone", "transformers assisted"))
    }
    return {
        "dev_prompts": len(dev),
        "test_prompts": len(test),
        "rows": [row[1] for row in rows.values()],
        "chosen_on_dev": chosen,
        "equal_answers_share": same,
    }


def machine(*, wall: bool) -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "clock": "wall time" if wall else "processor time of the computing thread",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
