"""Speculative cascades on the demo pair and on a cost-model pair, against every baseline.

The cost-model pair is the demo pair whose target has more layers that add nothing: the same
function at a higher, real cost. What it says about speed is measured; it says nothing new
about quality.

    python benchmarks/speculative.py [--quick] [--prompts 60] [--repeats 2] [--wall]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import spec_report as report
import spec_study as study
import torch
from cost_model import with_ratio
from spec_checkpoint import Checkpoint

from cascadellm import demo
from cascadellm.local import compare


def tasks(count: int) -> list[study.Task]:
    """Return word problems of 1 to 4 steps as user messages."""
    found = demo.questions(count, seed=11, skill="word_problem")
    return [study.Task(question.question, question.grade) for question in found]


def one_study(
    folder: Path, options: Any, title: str, *, ratio: float | None, temperature: float
) -> dict[str, Any]:
    """Run all methods on one pair at one temperature."""
    small, large = demo.load("small"), demo.load("large")
    prompts = tasks(options.prompts)
    checkpoint = Checkpoint.of(options.checkpoint, title)
    if ratio is not None:
        large, checkpoint.layers = with_ratio(
            small, large, prompts[0].prompt, ratio, folder, checkpoint.layers
        )
    pairing = study.Pairing(
        small, large, gamma=options.gamma, limit=options.limit, temperature=temperature
    )
    methods = pairing.methods(quick=options.quick)
    study.run(methods, prompts, options.repeats, wall=options.wall, checkpoint=checkpoint)
    data = study.study(methods, len(prompts))
    found = compare(small, large, [task.prompt for task in prompts[:4]], temperature=temperature)
    data |= {
        "temperature": temperature,
        "gamma": options.gamma,
        "target_layers": checkpoint.layers,
        "acceptance": found.acceptance,
        "total_variation": found.total_variation,
        "draft_over_target_step": found.draft_s / found.target_s,
        "predicted_speedup_over_our_own_loop": dict(found.speedup),
    }
    return data


def main() -> None:
    """Run the studies, print them, and write JSON and picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few prompts and methods, no files")
    parser.add_argument("--save", action="store_true", help="write files in a quick run too")
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--gamma", type=int, default=5)
    parser.add_argument("--limit", type=int, default=120)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true", help="wall time (on a quiet machine)")
    parser.add_argument("--checkpoint", type=Path, help="folder: go on there after a break")
    options = parser.parse_args()
    if options.quick:
        options.repeats = 1
    options.prompts = options.prompts or (6 if options.quick else 60)
    torch.set_num_threads(options.threads)
    studies = {
        "demo pair, T = 0": (None, 0.0),
        "cost-model pair, T = 0": (0.1, 0.0),
        "cost-model pair, T = 1": (0.1, 1.0),
    }
    if options.quick:
        studies.pop("cost-model pair, T = 1")
    data: dict[str, Any] = {"machine": study.machine(wall=options.wall), "studies": {}}
    for title, (ratio, temperature) in studies.items():
        with tempfile.TemporaryDirectory() as folder:
            found = one_study(Path(folder), options, title, ratio=ratio, temperature=temperature)
        data["studies"][title] = found
        report.show(title, data["studies"][title])
        if options.save or not options.quick:
            report.save("speculative", data)


if __name__ == "__main__":
    main()
