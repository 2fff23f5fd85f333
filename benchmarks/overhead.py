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

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableBranch
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from llama_index.core.base.llms.types import CompletionResponse, LLMMetadata
from llama_index.core.llms import CustomLLM

from langchain_cascade import CascadeLLM, Threshold, mean_logprob
from llamaindex_cascade import CascadeLLM as IndexCascade

RESULT = Path(__file__).parent / "results" / "overhead.json"
WORDS = (10, 100, 1000, 4000)
PARTS = ["The", " answer", " is", " 42", "."]


class Instant(BaseChatModel):
    """Answers at once, with token log-probabilities in OpenAI's shape."""

    logprob: float = -0.01
    # a price list that does not know the model would print a line per call
    model_name: str = "gpt-4o-mini"

    @property
    def _llm_type(self) -> str:
        return "instant"

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        content = [{"token": part, "logprob": self.logprob, "top_logprobs": []} for part in PARTS]
        message = AIMessage(
            content="".join(PARTS),
            response_metadata={"finish_reason": "stop", "logprobs": {"content": content}},
            usage_metadata={"input_tokens": 9, "output_tokens": 5, "total_tokens": 14},
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        return self._generate(*args, **kwargs)


class InstantIndex(CustomLLM):
    """The same for LlamaIndex."""

    logprob: float = -0.01

    @property
    def metadata(self) -> LLMMetadata:
        """Nothing of note."""
        return LLMMetadata(model_name="instant")

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer."""
        content = [{"token": part, "logprob": self.logprob, "top_logprobs": []} for part in PARTS]
        raw = {"choices": [{"logprobs": {"content": content}, "finish_reason": "stop"}]}
        return CompletionResponse(text="".join(PARTS), raw=raw)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        """Answer in one piece."""
        yield self.complete(prompt)


class Deaf(BaseCallbackHandler):
    """A handler that does nothing."""

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        """Take the messages; without this, LangChain formats them as text for every run."""


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


def cascades() -> tuple[CascadeLLM, CascadeLLM]:
    """Return a cascade that accepts its draft, and one that escalates."""
    policy = Threshold(mean_logprob, -0.05)
    accepts = CascadeLLM(tiers=[Instant(name="small"), Instant(name="large")], policy=policy)
    tiers = [Instant(name="small", logprob=-1.0), Instant(name="large")]
    return accepts, CascadeLLM(tiers=tiers, policy=policy)


def peer() -> dict[str, Any]:
    """Return cascadeflow's cascade where it is installed: accepting, and escalating."""
    try:
        from cascadeflow.integrations.langchain import CascadeFlow
    except ImportError:
        return {}
    options = {"enable_pre_router": False, "cost_tracking_provider": "cascadeflow"}
    good, bad = Instant(name="small"), Instant(name="small", logprob=-5.0)
    return {
        "cascadeflow, accept": CascadeFlow(
            drafter=good, verifier=Instant(), quality_threshold=0.1, **options
        ),
        "cascadeflow, escalate": CascadeFlow(
            drafter=bad, verifier=Instant(), quality_threshold=0.999, **options
        ),
        "cascadeflow with its pre-router, accept": CascadeFlow(
            drafter=good, verifier=Instant(), quality_threshold=0.1,
            cost_tracking_provider="cascadeflow",
        ),
    }  # fmt: skip


def models() -> dict[str, tuple[Any, int]]:
    """Return the Runnables that are compared, with the number of models that each calls."""
    inner, accepts = Instant(), cascades()
    branch = RunnableBranch((lambda text: len(str(text)) < 0, Instant()), inner)
    found: dict[str, tuple[Any, int]] = {
        "inner": (inner, 1),
        "with_fallbacks": (inner.with_fallbacks([Instant()]), 1),
        "RunnableBranch": (branch, 1),
        "CascadeLLM, accept": (accepts[0], 1),
        "CascadeLLM, escalate": (accepts[1], 2),
    }
    for name, model in peer().items():
        found[name] = (model, 2 if "escalate" in name else 1)
    return found


def ways(prompt: str) -> dict[str, dict[str, Way]]:
    """Return the ways to call, by group; each group has its own inner call."""
    runnables = models()
    seen: dict[str, dict[str, Any]] = {
        "no handler": {},
        "one handler": {"callbacks": [Deaf()]},
        "one tracer": {"callbacks": [RunCollectorCallbackHandler()]},
    }
    groups: dict[str, dict[str, Way]] = {}
    for title, config in seen.items():
        groups[title] = {
            name: Way(_invoking(model, prompt, config), "inner", calls)
            for name, (model, calls) in runnables.items()
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
            for name, (model, count) in models().items()
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
    runnables = models()
    seconds = asyncio.run(timed_async(runnables, prompt, rounds, calls))
    result["ainvoke, no handler"] = over(seconds, {n: count for n, (_, count) in runnables.items()})
    _show("ainvoke, no handler", result["ainvoke, no handler"])
    result["by prompt length"] = by_length(rounds, calls)
    print(json.dumps(result["by prompt length"], indent=1))
    long = " ".join(["word"] * WORDS[-1])
    result["event loop held, ms, 4000 words"] = {
        name: asyncio.run(stall(model, long, 3 if options.quick else 9))
        for name, (model, _) in runnables.items()
    }
    print(result["event loop held, ms, 4000 words"])
    result["imports"] = imports()
    print(result["imports"])
    if not options.quick:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def _show(title: str, figures: dict[str, Any]) -> None:
    print(title)
    for name, row in figures.items():
        low, high = row["quartiles"]
        added = f"{row['over_inner_us']:+8.1f} over inner ({low:+.0f} to {high:+.0f})"
        print(f"  {name:42} {row['us']:8.1f} us {added}")


if __name__ == "__main__":
    main()
