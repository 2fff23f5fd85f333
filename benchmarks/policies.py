"""All policies on the demo pair and on published records: norm, cost, added latency.

    [CASCADELLM_DATA=<folder with replay/>] python benchmarks/policies.py [--quick | --replay]

Writes `benchmarks/results/policies.{json,md,png}`. Without the folder the records are left out,
which is said, and nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few questions, nothing written")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--replay", action="store_true", help="the records alone; keeps the demo pair's rows"
    )
    chosen = parser.parse_args()
    if chosen.replay:
        return _replay_alone(chosen.out)
    # its modules lie beside this file, and need torch and the extra `calibrate`
    import policies_demo
    import policies_plot
    import torch
    from local_decode import machine

    torch.set_num_threads(1)
    begun = time.perf_counter()
    pair, demo = policies_demo.all_rows(10 if chosen.quick else 60)
    replay = _replayed(quick=chosen.quick)
    small, large = pair.right(pair.test).mean(axis=0)
    results: dict[str, Any] = {
        "machine": machine(),
        "questions": len(pair.test),
        "small": float(small),
        "large": float(large),
        "demo": [asdict(row) for row in demo],
        "replay": [asdict(row) for row in replay],
        "seconds": round(time.perf_counter() - begun, 1),
    }
    print(page(results))
    if not chosen.quick and replay:
        chosen.out.mkdir(exist_ok=True)
        _write(results, chosen.out)
        policies_plot.draw(results["demo"], results["replay"], chosen.out / "policies.png")
    return 0


def _replay_alone(out: Path) -> int:
    """Replay the records, which takes no time of anybody's, beside rows measured earlier."""
    import policies_plot

    results = json.loads((out / "policies.json").read_text("utf-8"))
    replay = _replayed(quick=False)
    if not replay:
        return 1
    results["replay"] = [asdict(row) for row in replay]
    print(page(results))
    _write(results, out)
    policies_plot.draw(results["demo"], results["replay"], out / "policies.png")
    return 0


def _write(results: dict[str, Any], out: Path) -> None:
    (out / "policies.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    (out / "policies.md").write_text(page(results), "utf-8")


def _replayed(*, quick: bool) -> Sequence[Any]:
    folder = os.environ.get("CASCADELLM_DATA", "")
    root = Path(folder)
    if not folder or not (root / "replay").is_dir():
        print("records skipped: set CASCADELLM_DATA to the folder that holds replay/")
        return []
    import policies_replay
    import policies_routing

    routed = policies_routing.routed(root, 1 if quick else 3)
    return [*policies_replay.all_rows(root, quick=quick), *routed]


def page(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    machine = ", ".join(f"{k} {v}" for k, v in results["machine"].items())
    return "\n\n".join(
        [
            "# All policies",
            "![Accuracy against cost, and norms](policies.png)",
            "norm: 0 = random deferral, 1 = oracle. Definitions: `docs/calibration.md`.",
            "## On the demo pair",
            (
                f"{results['questions']} held-out questions, a quarter each of word problems, "
                "questions on one and on two facts, and questions whose context lacks the answer. "
                f"Small {results['small']:.1%}, large {results['large']:.1%}. Thresholds are "
                "chosen on as many other questions, by one rule for all: defer about as many as "
                "the small model gets wrong there. Cost is relative to always asking the large "
                "model; prices follow the parameters, 0.42 to 2.17. A cost above 1 is dearer than "
                "the large model alone. Added: milliseconds per call, drafts and larger answers "
                "apart; for `Hedge` the change of the whole call against the same policy without "
                "it, both live on two cores."
            ),
            _table(_DEMO, [_demo_cells(i, r) for i, r in enumerate(results["demo"], 1)]),
            (
                "The demo models were not trained to grade by number, so every verdict of `Judge` "
                "is unclear and defers, as does most of what the large model says when it is to "
                "solve a question on a context. `Valid`, `ContextFits` and `NeedsTools` find "
                "nothing to object to here. `Hedge` counts what is known of the cancelled calls; "
                "here both models share two cores, so running them together slows both: it pays "
                "where tiers wait on different machines."
            ),
            "## On replayed records",
            (
                "Fakes repeat what the models had said, and the policies themselves decide. "
                "Stated: the data's own table, or published. Point: escalated share and accuracy "
                "at full agreement. Below it `Agreement` keeps the best supported answer, and "
                "its norm is graded on that answer, so it is not the stated norm of the first "
                "model's answer, which `replay.md` reproduces. `fit_router` has the "
                "subject's name for a question, since the records hold no text; its labels come "
                "from the training rows alone and it is judged on the others. `CascadeRoute` is "
                "fitted on half of the records and asked about 2000 others, three times; small "
                "calls are not counted there."
            ),
            _table(_REPLAY, [_replay_cells(r) for r in results["replay"]]),
            f"Machine: {machine}; {results['seconds']} s.\n",
        ]
    )


_DEMO = ("", "policy", "norm", "deferred", "accuracy", "random there", "cost", "calls", "added ms")
_REPLAY = ("set", "policy", "questions", "norm", "stated", "escalated", "accuracy", "small calls")


def _demo_cells(number: int, row: dict[str, Any]) -> tuple[Any, ...]:
    return (
        number, f"`{row['policy']}`", f"{row['norm']:.3f}", f"{row['deferred']:.1%}",
        f"{row['accuracy']:.1%}", f"{row['random']:.1%}", f"{row['cost']:.2f}",
        f"{row['extra']:.2f}", f"{row['added_ms']:+.2f}",
    )  # fmt: skip


def _replay_cells(row: dict[str, Any]) -> tuple[Any, ...]:
    return (
        row["place"], f"`{row['policy']}`", row["n"],
        "" if row["norm"] is None else f"{row['norm']:.3f}", row["stated"],
        "" if row["deferred"] is None else f"{row['deferred']:.1%}",
        "" if row["accuracy"] is None else f"{row['accuracy']:.3f}", f"{row['calls']:g}",
    )  # fmt: skip


def _table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    cells = [[str(value).replace("|", "\\|") for value in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


if __name__ == "__main__":
    sys.exit(main())
