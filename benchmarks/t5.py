"""Speculative cascades on a T5 pair that translates numbers and dates, English to German.

The pair is trained by `t5_pair.py` if the folder does not hold one. A second study makes the
target costlier without changing its function (see `cost_model.py`).

    python benchmarks/t5.py [--quick] [--models FOLDER] [--minutes 4] [--prompts 80] [--wall]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import spec_report as report
import spec_study as study
import t5_pair
import torch
from cost_model import with_ratio
from spec_checkpoint import Checkpoint

from cascadellm.local import LocalModel, compare


def tasks(count: int) -> list[study.Task]:
    """Return phrases that were not trained on, graded by exact match."""

    def exactly(german: str) -> Any:
        return lambda text: text.strip() == german

    return [study.Task(one.english, exactly(one.german)) for one in t5_pair.held_out(count)]


def one_study(
    folder: Path, options: Any, title: str, *, ratio: float | None, temperature: float
) -> Any:
    """Run all methods on one pair at one temperature."""
    small, large = (LocalModel(str(folder / role)) for role in ("draft", "target"))
    prompts = tasks(options.prompts)
    checkpoint = Checkpoint.of(options.checkpoint, title)
    if ratio is not None:
        place = folder / "deepened"
        large, checkpoint.layers = with_ratio(
            small, large, prompts[0].prompt, ratio, place, checkpoint.layers
        )
    pairing = study.Pairing(
        small, large, gamma=options.gamma, limit=options.limit, temperature=temperature
    )
    methods = pairing.methods(quick=options.quick)
    study.run(methods, prompts, options.repeats, wall=options.wall, checkpoint=checkpoint)
    found = compare(small, large, [task.prompt for task in prompts[:6]], temperature=temperature)
    return study.study(methods, len(prompts)) | {
        "temperature": temperature,
        "gamma": options.gamma,
        "target_layers": checkpoint.layers,
        "acceptance": found.acceptance,
        "draft_over_target_step": found.draft_s / found.target_s,
        "predicted_speedup_over_our_own_loop": dict(found.speedup),
    }


def main() -> None:
    """Train if needed, run the studies, print them, and write JSON and picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few prompts and methods, no files")
    parser.add_argument("--save", action="store_true", help="write files in a quick run too")
    parser.add_argument("--models", type=Path, help="folder of the pair; trained if missing")
    parser.add_argument("--minutes", type=float, default=4.0, help="processor time of training")
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--gamma", type=int, default=5)
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true", help="wall time (on a quiet machine)")
    parser.add_argument("--checkpoint", type=Path, help="folder: go on there after a break")
    options = parser.parse_args()
    if options.quick:
        options.minutes = min(options.minutes, 0.5)
    options.prompts = options.prompts or (8 if options.quick else 80)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.models or Path(scratch)
        if not (folder / "target").is_dir():
            t5_pair.train(folder, options.minutes)
        run_studies(folder, options)


def run_studies(folder: Path, options: Any) -> None:
    """Run each study on the pair in the folder."""
    studies = {"T5, T = 0": (None, 0.0), "T5, cost model, T = 1": (0.1, 1.0)}
    if options.quick:
        studies.pop("T5, cost model, T = 1")
    data: dict[str, Any] = {"machine": study.machine(wall=options.wall), "studies": {}}
    data["training_processor_minutes"] = options.minutes
    for title, (ratio, temperature) in studies.items():
        found = one_study(folder, options, title, ratio=ratio, temperature=temperature)
        data["studies"][title] = found
        report.show(title, found)
        if options.save or not options.quick:
            report.save("t5", data)


if __name__ == "__main__":
    main()
