"""Everything that a LlamaIndex program shows while it runs, and the checks that hold for all.

`Watch` records the cascade's records, the token counter, and what a real tracer exports.
`problems` compares them; each test suite asserts that it finds none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cascadellm import Record, record_cascade
from llamaindex_cascade import CascadeLLM, tracing
from tests.dropin.watching import Seen, decisions, leaks, run_ways, strings, told, total

__all__ = ["Seen", "Watch", "decisions", "problems", "run_everywhere", "strings"]


class Watch:
    """Use it around one run of a program with `llm`."""

    def __init__(self, llm: CascadeLLM) -> None:
        self._llm = llm
        self._stack = ExitStack()
        self.counter = TokenCountingHandler(tokenizer=str.split)
        self.exporter = InMemorySpanExporter()
        self.records: list[Record] = []

    def __enter__(self) -> Self:
        self._llm.callback_manager = CallbackManager([self.counter])
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self._stack.callback(provider.shutdown)
        self._stack.enter_context(tracing.instrument(provider))
        self.records = self._stack.enter_context(record_cascade()).records
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def spans(self) -> list[Any]:
        """The exported spans."""
        return list(self.exporter.get_finished_spans())


def problems(watch: Watch, seen: Seen) -> list[str]:
    """Return what is wrong with a run: drafts that leak, tokens, missing decisions."""
    return [*leaks(watch.records, seen), *_miscounts(watch), *_untraced(watch)]


def run_everywhere(
    ways: Mapping[str, Callable[[CascadeLLM], list[Seen]]],
    build: Callable[[], CascadeLLM],
    never: tuple[str, ...] = (),
) -> tuple[str, list[Any]]:
    """Run a program in each of its ways and assert that all are faultless and agree.

    Args:
        ways: Each runs the program once or, as a batch, several times at once.
        build: Makes a fresh cascade.
        never: Words that nothing may show, e.g. those of a rejected tool call.

    Returns: The final answer, and the decisions of one run.
    """
    return run_ways(ways, build, Watch, problems, never)


# -- tokens --


def _miscounts(watch: Watch) -> list[str]:
    found = []
    wanted, counted = total(watch.records), watch.counter.total_llm_token_count
    if wanted != counted:
        found.append(f"the token counter says {counted}, the records say {wanted}")
    sides = ("llm.token_count.prompt", "llm.token_count.completion")
    traced = sum(span.attributes.get(side, 0) for span in watch.spans for side in sides)
    if wanted != traced:
        found.append(f"the spans say {traced} tokens, the records say {wanted}")
    return found


# -- traces --


def _untraced(watch: Watch) -> list[str]:
    found = []
    recorded = told(watch.records)
    shown = []
    for span in watch.spans:
        if span.name.startswith("DeferralPolicy."):
            output = json.loads(span.attributes["output.value"])
            shown.append((output["name"], output["defer"], output["code"]))
    if recorded != sorted(shown):
        found.append(f"the spans show the decisions {sorted(shown)}, the records hold {recorded}")
    answered = sorted(r.trace.answered_by or "" for r in watch.records)
    on_spans = [s.attributes.get("cascade.answered_by") for s in watch.spans]
    if answered != sorted(name for name in on_spans if name):
        found.append(f"the cascades' spans are answered by {on_spans}, the records by {answered}")
    known = {span.context.span_id for span in watch.spans}
    lost = [s.name for s in watch.spans if s.parent is not None and s.parent.span_id not in known]
    if lost:
        found.append(f"spans without their parent: {lost}")
    return found
