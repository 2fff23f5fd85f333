"""What a cascade adds to a call, beside what LangChain's own wrappers add, in one run.

All calls answer at once from memory, so what is left is the wrapper's own work. Every method
is timed in turn, in many short rounds, so a busy machine slows all of them alike; what is
reported is the median of a round's mean, minus the same round's inner calls.

    python benchmarks/overhead.py [--quick] [--out FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from overhead_models import Deaf, InstantIndex, runnables

from langchain_cascade import Threshold, mean_logprob
from llamaindex_cascade import CascadeLLM as IndexCascade

RESULT = Path(__file__).parent / "results" / "overhead.json"
WORDS = (10, 100, 1000, 4000)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to call, and what its inner calls cost alone.

    Attributes:
        call: Takes a prompt.
        inner: Name of the way that calls a model alone.
        calls: How many models it calls.
    """

    call: Callable[[str], Any]
    inner: str | None = None
    calls: int = 1


def ways(prompt: str) -> dict[str, dict[str, Way]]:
    """Return the ways to call, by group; each group has its own inner call."""
    models = runnables()
    seen: dict[str, dict[str, Any]] = {
        "no handler": {},
        "one handler": {"callbacks": [Deaf()]},
        "one tracer": {"callbacks": [RunCollectorCallbackHandler()]},
    }
    groups: dict[str, dict[str, Way]] = {}
    for title, config in seen.items():
        groups[title] = {
            name: Way(_invoking(model, prompt, config), "inner", calls)
            for name, (model, calls) in models.items()
        }
    policy = Threshold(mean_logprob, -0.05)
    index, small = InstantIndex(), [InstantIndex(), InstantIndex(logprob=-1.0)]
    accepts, escalates = (IndexCascade(tiers=[one, index], policy=policy) for one in small)
    groups["LlamaIndex, no handler"] = {
        "inner": Way(lambda _: index.complete(prompt), "inner"),
        "CascadeLLM, accept": Way(lambda _: accepts.complete(prompt), "inner"),
        "CascadeLLM, escalate": Way(lambda _: escalates.complete(prompt), "inner", 2),
    }
    return groups


def _invoking(model: Any, prompt: str, config: dict[str, Any]) -> Callable[[str], Any]:
    traces = [one for one in config.get("callbacks", ()) if hasattr(one, "traced_runs")]

    def call(_: str) -> Any:
        answer = model.invoke(prompt, dict(config)) if config else model.invoke(prompt)
        for collector in traces:
            collector.traced_runs.clear()
        return answer

    return call


def timed(group: dict[str, Way], rounds: int, calls: int) -> dict[str, list[float]]:
    """Return microseconds per call, a mean for every round."""
    seconds: dict[str, list[float]] = {name: [] for name in group}
    for way in group.values():
        for _ in range(20):
            way.call("")
    for _ in range(rounds):
        gc.collect()
        gc.disable()
        for name, way in group.items():
            start = time.perf_counter()
            for _ in range(calls):
                way.call("")
            seconds[name].append((time.perf_counter() - start) / calls * 1e6)
        gc.enable()
    return seconds


async def timed_async(
    group: dict[str, tuple[Any, int]], prompt: str, rounds: int, calls: int
) -> dict[str, list[float]]:
    """Return microseconds per awaited call, a mean for every round."""
    seconds: dict[str, list[float]] = {name: [] for name in group}
    for _ in range(rounds):
        gc.collect()
        gc.disable()
        for name, (model, _) in group.items():
            ask: Callable[[str], Awaitable[Any]] = model.ainvoke
            start = time.perf_counter()
            for _ in range(calls):
                await ask(prompt)
            seconds[name].append((time.perf_counter() - start) / calls * 1e6)
        gc.enable()
    return seconds


def over(seconds: dict[str, list[float]], counts: dict[str, int]) -> dict[str, Any]:
    """Return each way's time, and its time over its inner calls, round by round."""
    report = {}
    for name, own in seconds.items():
        added = [a - counts[name] * b for a, b in zip(own, seconds["inner"], strict=True)]
        low, _, high = statistics.quantiles(added, n=4)
        report[name] = {
            "us": round(statistics.median(own), 1),
            "over_inner_us": round(statistics.median(added), 1),
            "quartiles": [round(low, 1), round(high, 1)],
        }
    return report


def by_length(rounds: int, calls: int) -> dict[str, dict[str, float]]:
    """Return what an accepted draft adds at several prompt lengths, sync, in microseconds."""
    report: dict[str, dict[str, float]] = {}
    for words in WORDS:
        prompt = " ".join(["word"] * words)
        chosen = {
            name: Way(_invoking(model, prompt, {}), "inner", count)
            for name, (model, count) in runnables().items()
            if name == "inner" or "accept" in name
        }
        slow = words >= 1000 and any("pre-router" in name for name in chosen)
        seconds = timed(chosen, max(rounds // 3, 3), max(calls // 20, 3) if slow else calls)
        figures = over(seconds, {name: way.calls for name, way in chosen.items()})
        report[f"{words} words"] = {name: row["over_inner_us"] for name, row in figures.items()}
    return report


async def stall(model: Any, prompt: str, repeats: int) -> float:
    """Return the longest time, in ms, that a call held the event loop; the least of several."""
    longest = []
    for _ in range(repeats):
        gaps, running = [0.0], True

        async def watch(gaps: list[float] = gaps) -> None:
            last = time.perf_counter()
            while running:  # noqa: B023 - ends with its own call
                await asyncio.sleep(0)
                now = time.perf_counter()
                gaps.append(now - last)
                last = now

        watcher = asyncio.create_task(watch())
        await asyncio.sleep(0)
        await model.ainvoke(prompt)
        running = False
        await watcher
        longest.append(max(gaps) * 1e3)
    return round(min(longest), 3)


def imports() -> dict[str, dict[str, float]]:
    """Return seconds and MiB that importing takes, each in a fresh process."""
    code = (
        "import time; start = time.perf_counter()\n{}\n"
        "spent = time.perf_counter() - start; import psutil\n"
        "print(spent, psutil.Process().memory_info().rss)"
    )
    report = {}
    for name, line in {
        "langchain_core": "from langchain_core.language_models.chat_models import BaseChatModel",
        "langchain_cascade": "from langchain_cascade import CascadeLLM",
        "llama_index.core": "from llama_index.core.llms import CustomLLM",
        "llamaindex_cascade": "from llamaindex_cascade import CascadeLLM",
    }.items():
        runs = []
        for _ in range(3):
            out = subprocess.run(
                [sys.executable, "-c", code.format(line)],
                capture_output=True,
                text=True,
                check=True,
            )
            runs.append([float(one) for one in out.stdout.split()])
        seconds, size = (min(column) for column in zip(*runs, strict=True))
        report[name] = {"s": round(seconds, 3), "MiB": round(size / 2**20, 1)}
    return report


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    versions = {}
    for name in ("langchain-core", "llama-index-core", "cascadeflow"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **versions,
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing written")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rounds, calls = (5, 30) if options.quick else (60, 100)
    prompt = "What is six times seven, and why is it so?"
    result: dict[str, Any] = {"machine": machine(), "unit": "microseconds per call"}
    for title, group in ways(prompt).items():
        seconds = timed(group, rounds, calls)
        result[title] = over(seconds, {name: way.calls for name, way in group.items()})
        _show(title, result[title])
    models = runnables()
    seconds = asyncio.run(timed_async(models, prompt, rounds, calls))
    result["ainvoke, no handler"] = over(seconds, {n: count for n, (_, count) in models.items()})
    _show("ainvoke, no handler", result["ainvoke, no handler"])
    result["by prompt length"] = by_length(rounds, calls)
    print(json.dumps(result["by prompt length"], indent=1))
    long = " ".join(["word"] * WORDS[-1])
    result["event loop held, ms, 4000 words"] = {
        name: asyncio.run(stall(model, long, 3 if options.quick else 9))
        for name, (model, _) in models.items()
    }
    print(result["event loop held, ms, 4000 words"])
    result["imports"] = imports()
    print(result["imports"])
    if not options.quick:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(page(result))


def page(result: dict[str, Any]) -> str:
    """Return the result as a page of tables."""
    lines = [
        "# What a call costs beside the model",
        "",
        "Microseconds over the inner model's own call, median of 60 rounds (quartiles), models",
        "that answer at once from memory. `python benchmarks/overhead.py` writes this page.",
        "",
    ]
    told = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    lines += [f"Machine: {told}.", ""]
    for title, group in result.items():
        if not isinstance(group, dict) or not isinstance(group.get("inner"), dict):
            continue
        lines += [f"## {title}", "", "| call | over inner, us | quartiles |", "|---|---|---|"]
        for name, row in group.items():
            low, high = row["quartiles"]
            lines.append(f"| {name} | {row['over_inner_us']:+.0f} | {low:+.0f} to {high:+.0f} |")
        lines.append("")
    lengths = result["by prompt length"]
    names = [name for name in next(iter(lengths.values())) if name != "inner"]
    lines += ["## Accepted draft, by prompt length (us)", "", f"| call | {' | '.join(lengths)} |"]
    lines.append("|---" * (len(lengths) + 1) + "|")
    for name in names:
        lines.append(f"| {name} | {' | '.join(f'{row[name]:+.0f}' for row in lengths.values())} |")
    stalls = result["event loop held, ms, 4000 words"]
    lines += ["", "## Event loop held by one call with 4,000 words (ms)", "", "| call | ms |"]
    lines += ["|---|---|", *(f"| {name} | {ms:.2f} |" for name, ms in stalls.items())]
    lines += ["", "## Imports, a fresh process each", "", "| module | s | MiB |", "|---|---|---|"]
    lines += [
        f"| {n} | {row['s']:.2f} | {row['MiB']:.0f} |" for n, row in result["imports"].items()
    ]
    return "\n".join(lines) + "\n"


def _show(title: str, figures: dict[str, Any]) -> None:
    print(title)
    for name, row in figures.items():
        low, high = row["quartiles"]
        added = f"{row['over_inner_us']:+8.1f} over inner ({low:+.0f} to {high:+.0f})"
        print(f"  {name:42} {row['us']:8.1f} us {added}")


if __name__ == "__main__":
    main()
