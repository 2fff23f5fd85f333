"""What stays after a killed process, and what does not after many calls."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from llama_index.core.base.llms.types import ChatMessage

import langchain_cascade
import llamaindex_cascade
from cascadellm.jsonl import LineFile, encode_line
from cascadellm.testing import FakeModel
from langchain_cascade import Threshold, mean_logprob
from tests.chaos.chaos_support import size

pytestmark = pytest.mark.chaos
MOST_KEPT = 512
"""Bytes per call; a record alone is several thousand.

LlamaIndex's own callback manager keeps the identifiers of a call's events, 200 to 340 bytes.
"""
ROOT = Path(__file__).resolve().parents[2]
POLICY = Threshold(mean_logprob, -0.5)

WRITER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from cascadellm.events import record_cascade
from cascadellm.testing import FakeModel
from {package} import CascadeLLM, Threshold, mean_logprob

tiers = [FakeModel("small says so", logprob=-2.0), FakeModel("x" * 3000)]
llm = CascadeLLM(tiers=tiers, policy=Threshold(mean_logprob, -0.5))

def ask(number):
    llm.{method}(f"question {{number}}")
    sys.stdout.write(f"{{number}}\\n")
    sys.stdout.flush()

with record_cascade(sys.argv[1]), ThreadPoolExecutor(20) as pool:
    for number in range(10**6):
        pool.submit(copy_context().run, ask, number)
"""


@pytest.mark.parametrize(
    ("package", "method"), [("langchain_cascade", "invoke"), ("llamaindex_cascade", "complete")]
)
def test_killed_under_load(package: str, method: str, tmp_path: Path) -> None:
    """After kill -9 every call that had returned stands in the file, and every line is whole."""
    path, said = tmp_path / "traces.jsonl", tmp_path / "said"
    code = textwrap.dedent(WRITER.format(package=package, method=method))
    with said.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdout=out, cwd=ROOT, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while said.stat().st_size < 400 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(random.Random(5).random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    # a line that was being written belongs to a call that had not returned; the next run mends it
    LineFile(path).append(encode_line({"input": "question -1"}))
    records = [json.loads(line) for line in path.read_text().splitlines()]
    written = {int(record["input"].split()[-1]) for record in records}
    returned = {
        int(line) for line in said.read_text().splitlines(keepends=True) if line[-1] == "\n"
    }
    assert len(records) == len(written)
    assert len(returned) > 50
    assert returned <= written, f"lost: {sorted(returned - written)[:5]}"


class Deaf(BaseCallbackHandler):
    """A handler that does nothing."""


def _forgotten(tiers: list[FakeModel], answer: Any) -> Any:
    """Drop the calls that the fakes themselves note."""
    for tier in tiers:
        tier.calls.clear()
    return answer


def _langchain(policy: Any) -> Callable[[int], Any]:
    tiers = [FakeModel("small says so", logprob=-2.0), FakeModel("large says so")]
    llm = langchain_cascade.CascadeLLM(tiers=tiers, policy=policy)
    ways: list[Callable[[str], Any]] = [
        llm.invoke,
        lambda q: llm.invoke(q, {"callbacks": [Deaf()]}),
        lambda q: list(llm.stream(q)),
        lambda q: next(llm.stream(q)),
        lambda q: llm.batch([q, q]),
    ]
    return lambda number: _forgotten(tiers, ways[number % len(ways)](f"question {number}"))


def _llamaindex(policy: Any) -> Callable[[int], Any]:
    tiers = [FakeModel("small says so", logprob=-2.0), FakeModel("large says so")]
    llm = llamaindex_cascade.CascadeLLM(tiers=tiers, policy=policy)

    async def last(question: str) -> Any:
        return [chunk async for chunk in await llm.astream_complete(question)]

    ways: list[Callable[[str], Any]] = [
        llm.complete,
        lambda q: llm.chat([ChatMessage(content=q)]),
        lambda q: list(llm.stream_complete(q)),
        lambda q: next(iter(llm.stream_complete(q))),
        lambda q: asyncio.run(last(q)),
    ]
    return lambda number: _forgotten(tiers, ways[number % len(ways)](f"question {number}"))


def kept_per_call(ask: Callable[[int], Any], count: int) -> float:
    """Return how much of what many calls allocate stays, per call. Unit: bytes."""
    for number in range(count // 10):
        ask(number)
    gc.collect()
    tracemalloc.start()
    for number in range(count):
        ask(number)
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return kept / count


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("build", [_langchain, _llamaindex])
def test_memory_stays_flat(build: Callable[[Any], Callable[[int], Any]]) -> None:
    """Many calls of every kind, abandoned streams and escalations among them, keep no memory."""
    assert kept_per_call(build(POLICY), size(20_000, 1_000)) < MOST_KEPT


def test_mutation_a_kept_record_is_noticed() -> None:
    """The measure fails for a cascade whose every answer is kept by somebody."""
    kept: list[Any] = []
    ask = _langchain(POLICY)
    assert kept_per_call(lambda number: kept.append(ask(number)), 500) > MOST_KEPT
