"""Figures in the README and on pages are those of the committed results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CALLERS = "LocalModel, concurrent callers"


def _result(name: str) -> Any:
    return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text("utf-8"))


def _row(start: str, page: str = "README.md") -> str:
    lines = (ROOT / page).read_text("utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(f"| {start} |"))
    return line.removeprefix(f"| {start} |")


def _numbers(text: str) -> list[float]:
    return [
        float(number) for number in re.findall(r"\d+(?:\.\d+)?", text.split("|", maxsplit=1)[0])
    ]


def test_the_demo_cascade_is_the_committed_one():
    """The README's accuracies are those of the policies benchmark."""
    result = _result("policies")
    (found,) = (row for row in result["demo"] if row["policy"] == "Threshold(mean_logprob)")
    shares = [found["accuracy"], found["deferred"], found["random"]]
    shares += [result["small"], result["large"]]
    row = _row("the demo pair with a threshold on the mean logprob")
    assert _numbers(row) == [round(100 * share, 1) for share in shares]


def test_speeds_of_pairs_are_the_committed_ones():
    """The README's speed-ups are those of the speculative benchmark at temperature 0."""
    studies = _result("speculative")["studies"]
    demo, costly = (
        {row["method"]: round(row["speedup"], 2) for row in studies[f"{name} pair, T = 0"]["rows"]}
        for name in ("demo", "cost-model")
    )
    row = _row("lossless pair against the large model's `generate`")
    assert _numbers(row) == [demo["lossless"], demo["transformers assisted"]]
    row = _row("the same where a draft step costs less than a tenth of a target step")
    methods = ("lossless", "lossless, adaptive gamma", "transformers assisted")
    assert _numbers(row) == [costly[method] for method in methods]


def test_the_overhead_is_the_committed_one():
    """The README and the page on load name microseconds of the overhead benchmark."""
    result = _result("overhead")

    def over(group: str, way: str = "CascadeLLM, accept") -> int:
        return round(result[group][way]["over_inner_us"])

    plain, handled, awaited, index = (
        over(group)
        for group in ("no handler", "one handler", "ainvoke, no handler", "LlamaIndex, no handler")
    )
    fallbacks = [over(group, "with_fallbacks") for group in ("no handler", "one handler")]
    row = _row("an accepted draft over the bare LangChain call")
    assert _numbers(row) == [plain, handled, *fallbacks]
    page = (ROOT / "docs/resilience.md").read_text("utf-8")
    for figure in (plain, awaited, handled, index):
        assert re.search(rf"\b{figure}\b", page), figure


def test_throughput_is_the_committed_one():
    """The table on load and the README's row hold the ratios of the batching benchmark."""
    work = _result("batching")["work"]
    ways = (
        "LocalModel, one by one",
        "generate, padded batches, no scores",
        CALLERS,
        "LocalModel.batch",
        "ceiling: forward passes alone",
    )
    for name, skill in (("all skills", "all skills"), ("word_problem", "word problems")):
        for callers in (1, 8, 32):
            found = work[f"{name}, {callers} callers"]
            row = _row(f"{callers}, {skill}", "docs/resilience.md")
            figures = [float(cell) for cell in row.strip(" |").split("|")]
            assert figures == [found[way]["ratio_to_assisted"] for way in ways]
    eight = [work[f"{name}, 8 callers"][CALLERS] for name in ("word_problem", "all skills")]
    row = _row("eight callers of one local model")
    assert _numbers(row) == [figures["ratio_to_assisted"] for figures in eight]


def test_the_scale_of_calibration_is_the_committed_one():
    """The README's seconds and memory are those of the calibration benchmark."""
    result = _result("calibration_scale")
    row = _row("calibrating and evaluating a million records")
    assert _numbers(row) == [round(result["wall_s"], 2), round(result["peak_memory_mib"])]
