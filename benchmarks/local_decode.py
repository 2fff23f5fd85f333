"""Greedy decoding of `LocalModel` against `model.generate` on the demo models, in one run.

Every prompt is decoded by every method in turn, several times, so a busy machine slows all of
them alike. The tokens of all methods are compared first: a ratio only counts for equal answers.

    python benchmarks/local_decode.py [--quick] [--model FOLDER ...] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from cascadellm import demo
from cascadellm.local import LocalModel

RESULT = Path(__file__).parent / "results" / "local_decode.json"
BASELINE = "model.generate"

Method = Callable[[str], list[str]]


def methods(model: LocalModel, limit: int) -> dict[str, Method]:
    """Return the ways to decode; each takes a prompt and returns the tokens' texts."""
    eos = sorted(model.eos_ids)
    table = model.tokenizer

    def generate(prompt: str, **extra: Any) -> list[str]:
        ids = model.encode(prompt)
        with torch.inference_mode():
            out = model.module.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=limit,
                eos_token_id=eos,
                pad_token_id=eos[0],
                **extra,
            )
        sequence = out if isinstance(out, torch.Tensor) else out.sequences
        if not isinstance(out, torch.Tensor):
            law = torch.log_softmax(torch.cat(out.logits), dim=-1)
            law.topk(5, dim=-1)
            law.gather(1, sequence[0, ids.shape[1] :, None]).tolist()
        tokens: list[str] = table.convert_ids_to_tokens(sequence[0, ids.shape[1] :].tolist())
        return tokens

    def with_scores(prompt: str) -> list[str]:
        return generate(prompt, return_dict_in_generate=True, output_logits=True)

    def ours(prompt: str, **overrides: Any) -> list[str]:
        answer = model.generate(prompt, max_new_tokens=limit, **overrides)
        assert answer.usage is not None
        return [t.token for t in answer.tokens or ()] or [""] * answer.usage.output_tokens

    def streamed(prompt: str) -> list[str]:
        answer = list(model.stream(prompt, max_new_tokens=limit))[-1].answer
        return [t.token for t in answer.tokens or ()] if answer is not None else []

    return {
        BASELINE: generate,
        "model.generate with log-probabilities": with_scores,
        "LocalModel": ours,
        "LocalModel, no scores": lambda prompt: ours(prompt, logprobs=False),
        "LocalModel.stream": streamed,
    }


def same_tokens(model: LocalModel, ways: dict[str, Method], prompts: list[str]) -> None:
    """Check that all methods write the same tokens.

    Raises:
        SystemExit: They do not; there is nothing to compare then.
    """
    for prompt in prompts:
        expected = ways[BASELINE](prompt)
        texts = [model.tokenizer.convert_tokens_to_string([piece]) for piece in expected]
        for name, way in ways.items():
            found = way(prompt)
            scored = name.startswith("LocalModel") and any(found)
            if found != (texts if scored else expected) and any(found):
                raise SystemExit(f"{name} differs from {BASELINE} on {prompt!r}")
            if len(found) != len(expected):
                raise SystemExit(f"{name} stops elsewhere than {BASELINE} on {prompt!r}")


def measure(model: LocalModel, prompts: list[str], limit: int, repeats: int) -> dict[str, Any]:
    """Return medians over prompts and repeats; a ratio above 1 is faster than the baseline."""
    ways = methods(model, limit)
    same_tokens(model, ways, prompts)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for prompt in prompts:
            for name, way in ways.items():
                start = time.perf_counter()
                count = len(way(prompt))
                seconds[name].append((time.perf_counter() - start) / count)
    report = {}
    for name, times in seconds.items():
        ratios = [base / own for base, own in zip(seconds[BASELINE], times, strict=True)]
        report[name] = {
            "tokens_per_s": round(1 / statistics.median(times), 1),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_quartiles": [round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]],
        }
    return report


def cpu_name() -> str:
    """Return the processor's name where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few prompts, nothing written")
    parser.add_argument("--model", action="append", help="a folder instead of the demo models")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=128, help="most tokens of an answer")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    prompts = [question.question for question in demo.questions(3 if options.quick else 12, seed=3)]
    paths = options.model or [str(demo.path("small")), str(demo.path("large"))]
    result: dict[str, Any] = {"machine": machine(), "models": {}}
    for path in paths:
        with LocalModel(path) as model:
            report = measure(model, prompts, options.tokens, 2 if options.quick else 7)
            name = model.model_name
            parameters = model.module.num_parameters()
        result["models"][name] = {"parameters": parameters, "methods": report}
        print(f"{name} ({parameters:,} parameters)")
        for way, figures in report.items():
            print(f"  {way:40} {figures['tokens_per_s']:8} tokens/s  x{figures['ratio']}")
    if not options.quick:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
