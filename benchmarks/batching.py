"""Throughput of one loaded model under concurrent callers, on the large demo model, greedy.

Each caller is a thread that takes the next question whenever it is free; `LocalModel` lets callers
share forward passes, joining and leaving between steps. Compared in the same run, round by round:
the same questions one by one, transformers' `generate` on padded batches of as many questions as
there are callers, and its assisted generation with the small demo model, which takes one request
at a time. Tokens count up to each answer's end. The ceiling is what the model's own forward passes
cost for as many tokens: one over each prompt, then steps over as many sequences as there are
callers, without padding, choosing tokens or scores.

    python benchmarks/batching.py [--quick] [--rounds 5] [--out FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from local_decode import machine

from cascadellm import demo
from cascadellm.answer import Answer
from cascadellm.local import LocalModel

RESULT = Path(__file__).parent / "results" / "batching.json"
LIMIT = 96
QUESTIONS = {1: 16, 8: 96, 32: 128}
ASSISTED = "assisted generation, one at a time"
ALONE = "LocalModel, one by one"
CEILING = "ceiling: forward passes alone"

Way = Callable[[list[str]], int]


def tokens_of(answers: list[Answer]) -> int:
    """Return how many tokens were written."""
    return sum(answer.usage.output_tokens for answer in answers if answer.usage is not None)


def at_once(model: LocalModel, prompts: list[str], callers: int) -> list[Answer]:
    """Let as many threads take the next question whenever they are free."""
    answers: list[Answer] = []
    left = list(prompts)

    def ask() -> None:
        while left:
            # taking from a list is atomic, but another thread may have taken the last one
            with contextlib.suppress(IndexError):
                answers.append(model.generate(left.pop()))

    threads = [threading.Thread(target=ask) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def ways(model: LocalModel, small: LocalModel, callers: int) -> dict[str, Way]:
    """Return the ways to answer many questions; each returns the number of tokens written."""
    eos = sorted(model.eos_ids)
    options: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": LIMIT,
        "eos_token_id": eos,
        "pad_token_id": model.tokenizer.pad_token_id,
    }

    def written(rows: torch.Tensor) -> int:
        ends = torch.isin(rows, torch.tensor(eos)).int()
        past = ends.cumsum(dim=1) - ends
        return int((past == 0).sum())

    def padded(prompts: list[str]) -> int:
        groups = [prompts[start : start + callers] for start in range(0, len(prompts), callers)]
        return sum(map(one_batch, groups))

    def one_batch(prompts: list[str]) -> int:
        ids = [model.encode(prompt) for prompt in prompts]
        width = max(row.shape[1] for row in ids)
        pad = torch.nn.functional.pad
        batch = torch.cat([pad(row, (width - row.shape[1], 0)) for row in ids])
        mask = torch.cat([pad(torch.ones_like(row), (width - row.shape[1], 0)) for row in ids])
        with torch.inference_mode():
            out = model.module.generate(batch, attention_mask=mask, **options)
        return written(out[:, width:])

    def assisted(prompts: list[str]) -> int:
        count = 0
        for prompt in prompts:
            ids = model.encode(prompt)
            with torch.inference_mode():
                out = model.module.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    assistant_model=small.module,
                    **options,
                )
            count += written(out[:, ids.shape[1] :])
        return count

    return {
        ASSISTED: assisted,
        "generate, padded batches, no scores": padded,
        ALONE: lambda ps: tokens_of([model.generate(p) for p in ps]),
        "LocalModel, concurrent callers": lambda ps: tokens_of(at_once(model, ps, callers)),
        "LocalModel.batch": lambda ps: tokens_of(model.batch(ps)),
    }


def forward_passes(model: LocalModel, prompts: list[str], callers: int, tokens: int) -> float:
    """Return the seconds of the forward passes that so many tokens need at least."""
    ids = [model.encode(prompt) for prompt in prompts]
    middle = sorted(row.shape[1] for row in ids)[len(ids) // 2]
    answer = max(tokens // len(prompts), 1)
    token = ids[0][:, :1].expand(callers, 1)
    with torch.inference_mode():
        cache = model.module(token.expand(callers, middle), use_cache=True).past_key_values
        start = time.perf_counter()
        for row in ids:
            model.module(row, use_cache=True)
        # each prompt's own pass gives the first token
        for step in range((tokens - len(prompts)) // callers):
            if step and step % answer == 0:
                cache.crop(-answer)
            model.module(token, past_key_values=cache, use_cache=True)
        return time.perf_counter() - start


def measure(
    model: LocalModel, found: dict[str, Way], callers: int, rounds: int, skill: str | None
) -> dict[str, Any]:
    """Return medians over rounds; a ratio is throughput over assisted generation's."""
    speeds: dict[str, list[float]] = {name: [] for name in (*found, CEILING)}
    for number in range(-1, rounds):
        prompts = [q.question for q in demo.questions(QUESTIONS[callers], 100 + number, skill)]
        counts = {}
        for name, way in found.items():
            if number < 0:
                way(prompts[:2])
                continue
            start = time.perf_counter()
            counts[name] = way(prompts)
            speeds[name].append(counts[name] / (time.perf_counter() - start))
        if counts:
            seconds = forward_passes(model, prompts, callers, counts[ALONE])
            speeds[CEILING].append(counts[ALONE] / seconds)
    report = {}
    for name, own in speeds.items():
        ratios = [mine / base for mine, base in zip(own, speeds[ASSISTED], strict=True)]
        report[name] = {
            "tokens_per_s": round(statistics.median(own), 1),
            "ratio_to_assisted": round(statistics.median(ratios), 2),
        }
    return report


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing written")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {
        "machine": machine(), "questions": QUESTIONS, "rounds": options.rounds, "work": {}
    }  # fmt: skip
    shared = {"max_new_tokens": LIMIT, "batch_size": 32}
    with demo.load("large", **shared) as model, demo.load("small", **shared) as small:
        counts = (1, 8) if options.quick else (1, 8, 32)
        for skill, callers in itertools.product((None, "word_problem"), counts):
            found = ways(model, small, callers)
            report = measure(model, found, callers, 2 if options.quick else options.rounds, skill)
            work = f"{skill or 'all skills'}, {callers} callers"
            result["work"][work] = report
            print(work)
            for name, figures in report.items():
                speed, ratio = figures["tokens_per_s"], figures["ratio_to_assisted"]
                print(f"  {name:36} {speed:8} tokens/s  x{ratio}")
    if not options.quick:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
