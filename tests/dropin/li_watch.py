"""Everything that a LlamaIndex program shows while it runs, and the checks that hold for all.

`Watch` records the cascade's records, the token counter, and what a real tracer exports.
`problems` compares them; each test suite asserts that it finds none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cascadellm import Record, record_cascade
from llamaindex_cascade import CascadeLLM, tracing

__all__ = ["Seen", "Watch", "decisions", "problems", "run_everywhere", "strings"]

_WORD = re.compile(r"\w+")


@dataclass
class Seen:
    """What a program's caller sees.

    Attributes:
        text: The final answer.
        shown: Pieces of text in the order in which they were streamed; None = not streamed.
        state: Whatever stays or was passed on: memory, history, events, sources.
    """

    text: str
    shown: list[str] | None = None
    state: Any = field(default=None, repr=False)


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


def decisions(records: list[Record]) -> list[Any]:
    """Return who answered each call and why, in an order that no scheduler changes."""
    return sorted(
        (
            record.trace.answered_by or "nobody",
            tuple(
                (a.name, a.action, a.code, a.policy, None if a.score is None else round(a.score, 3))
                for a in record.trace.attempts
            ),
            record.output,
        )
        for record in records
    )


def problems(watch: Watch, seen: Seen) -> list[str]:
    """Return what is wrong with a run: drafts that leak, tokens, missing decisions."""
    return [*_leaks(watch.records, seen), *_miscounts(watch), *_untraced(watch)]


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
    results = {}
    for way, go in ways.items():
        llm = build()
        with Watch(llm) as watch:
            seen = go(llm)
        faults = [fault for one in seen for fault in problems(watch, one)]
        dumped = [text for one in seen for text in strings([one.text, one.shown, one.state])]
        faults += [f"{w!r} is in {text!r}" for w in never for text in dumped if w in text.lower()]
        assert not faults, f"{way}: {faults}"
        found = decisions(watch.records)
        # the runs of a batch decide alike, so sorting put each decision's copies side by side
        assert found == [one for one in found[:: len(seen)] for _ in seen], way
        results[way] = {one.text for one in seen}, found[:: len(seen)]
    texts, first = next(iter(results.values()))
    assert all(one == (texts, first) for one in results.values()), results
    (text,) = texts
    return text, first


# -- drafts --


def strings(value: Any) -> list[str]:
    """Return every string inside a value; the cascade's own record is left out.

    The record may quote a draft in the reason of its decision.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        items = [(k, v) for k, v in value.items() if k != "cascade"]
        return [s for k, v in items for s in (*strings(k), *strings(v))]
    if isinstance(value, (list, tuple, set)):
        return [s for item in value for s in strings(item)]
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        try:
            return strings(dump())
        except Exception:
            # events that hold live objects
            return strings(dict(value))
    if hasattr(value, "__dict__"):
        return strings({k: v for k, v in vars(value).items() if not k.startswith("_")})
    return [str(value)]


def _leaks(records: list[Record], seen: Seen) -> list[str]:
    found = []
    if seen.shown is not None and "".join(seen.shown) != seen.text:
        found.append(f"the stream shows {''.join(seen.shown)!r}, the answer is {seen.text!r}")
    kept = _words(*(text for r in records for text in (r.input, r.output)))
    dumped = strings([seen.text, seen.shown or [], seen.state])
    for record in records:
        pairs = zip(record.trace.attempts, record.drafts, strict=False)
        for attempt, draft in pairs:
            if attempt.action == "accept" or not draft:
                continue
            for word in _words(draft) - kept:
                where = [text for text in dumped if word in _words(text)]
                if where:
                    found.append(f"{word!r} of the rejected draft {draft!r} is in {where[0]!r}")
    return found


def _words(*texts: str) -> set[str]:
    return {word.lower() for text in texts for word in _WORD.findall(text) if len(word) > 2}


# -- tokens --


def _total(records: list[Record]) -> int:
    rows = [row for r in records for row in r.trace.to_dict()["tokens_by_tier"].values()]
    return sum(row["input"] + row["output"] for row in rows)


def _miscounts(watch: Watch) -> list[str]:
    found = []
    wanted, counted = _total(watch.records), watch.counter.total_llm_token_count
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
    recorded = sorted(
        (a.name, a.action == "escalate", a.code)
        for record in watch.records
        for a in record.trace.attempts
        if a.policy is not None and a.action in ("accept", "escalate")
    )
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
