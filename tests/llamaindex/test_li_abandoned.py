"""A stream that is left half way: record, typed event, closed spans, no failure."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import Iterator
from typing import Any

import pytest
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cascadellm import Always, EarlyAbort, Price, Tier, mean_logprob, record_cascade
from cascadellm.testing import FakeModel
from llamaindex_cascade import CascadeLLM, tracing
from tests.dropin.watching import was_asked
from tests.llamaindex.li_support import Events, Spans, asked, openai, run, user
from tests.servers.openai_server import OpenAIServer, Said

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ANSWER = "one two three four five"
STREAMS = ["stream_chat", "astream_chat", "stream_complete", "astream_complete"]
PRICE = Price(1.0, 1.0)


def build() -> tuple[CascadeLLM, FakeModel]:
    """Return a cascade that escalates to a tier that counts its tokens while it writes."""
    large = FakeModel(ANSWER, name="large", logprob=-0.1)
    small = FakeModel("draft", name="small", logprob=-2.0)
    return CascadeLLM([Tier(small, price=PRICE), Tier(large, price=PRICE)], Always()), large


def leave(llm: CascadeLLM, endpoint: str, after: int = 2, *, how: str = "close") -> None:
    """Read some chunks of a stream, then leave it."""
    asked: Any = "x" if "complete" in endpoint else user()

    async def go() -> None:
        stream = getattr(llm, endpoint)(asked)
        if not endpoint.startswith("a"):
            for _ in range(after):
                next(stream)
            if how == "close":
                stream.close()
            return
        stream = await stream
        for _ in range(after):
            await anext(stream)
        if how == "close":
            await stream.aclose()

    run(go())
    gc.collect()


@pytest.fixture
def exported() -> Iterator[InMemorySpanExporter]:
    """Instrument LlamaIndex; yield what is exported."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with tracing.instrument(provider):
        yield exporter
    provider.shutdown()


@pytest.mark.parametrize("how", ["close", "drop"])
@pytest.mark.parametrize("endpoint", STREAMS)
def test_a_stream_left_half_way_is_recorded_and_told(
    endpoint: str, how: str, events: Events, spans: Spans
) -> None:
    """The record counts the usage so far; one typed event says so; no span stays open."""
    llm, large = build()
    with record_cascade() as recorder:
        leave(llm, endpoint, how=how)
    (record,) = recorder.records
    last = record.trace.attempts[-1]

    assert ("large", True, None) == (record.trace.answered_by, record.trace.abandoned, record.error)
    assert ("stopped", "abandoned", 2) == (last.action, last.code, last.output_tokens)
    assert record.trace.cost_usd == pytest.approx(
        sum(t["input"] + t["output"] for t in record.trace.tokens_by_tier.values()) / 1e6
    )
    (told,) = events.of("CascadeAbandonedEvent")
    assert told.trace["attempts"][-1]["code"] == "abandoned"
    assert not events.of("CascadeEndEvent", "CascadeFailedEvent", "CascadeTierFailedEvent")
    assert not spans.open_spans
    assert not [s for s in spans.dropped_spans if s.id_.startswith("Cascade")]
    assert 1 == large.closed


@pytest.mark.parametrize("endpoint", STREAMS)
def test_a_stream_that_is_never_read_is_recorded(endpoint: str) -> None:
    """A stream that is thrown away unread leaves a record too: its tiers were paid."""
    llm, _ = build()
    with record_cascade() as recorder:
        leave(llm, endpoint, after=0, how="drop")
    (record,) = recorder.records
    assert (None, True) == (record.trace.answered_by, record.trace.abandoned)


@pytest.mark.parametrize("endpoint", STREAMS)
def test_openinference_shows_a_left_stream_closed_and_marked(
    endpoint: str, exported: InMemorySpanExporter
) -> None:
    """Every span has ended without an error; the cascade's says who was writing."""
    leave(build()[0], endpoint)
    found = exported.get_finished_spans()
    outer = next(span for span in found if span.name == f"CascadeLLM.{endpoint}")
    assert "large" == outer.attributes["cascade.answered_by"]
    assert "cascade:abandoned" in outer.attributes["langsmith.span.tags"]
    assert "large" == json.loads(outer.attributes["metadata"])["cascade_answered_by"]
    assert "cascade_abandoned" in [event.name for event in outer.events]
    assert not [span.name for span in found if not span.status.is_ok]
    record = json.loads(outer.attributes["metadata"])["cascade"]
    counted = sum(
        span.attributes.get(f"llm.token_count.{kind}", 0)
        for span in found
        for kind in ("prompt", "completion")
    )
    assert counted == sum(t["input"] + t["output"] for t in record["tokens_by_tier"].values())


@pytest.mark.parametrize("endpoint", ["chat", "achat", *STREAMS])
def test_openinference_shows_a_stopped_draft_as_no_failure(
    endpoint: str, exported: InMemorySpanExporter
) -> None:
    """A hopeless draft that is stopped early ends its span well, with the tokens so far."""
    hopeless = FakeModel(" ".join(["hm"] * 30), name="small", logprob=-3.0)
    large = FakeModel("Four.", name="large", logprob=-0.1)
    policy = EarlyAbort(mean_logprob, -1, after_tokens=3)
    chunks = asked(CascadeLLM([hopeless, large], policy), endpoint)
    record = chunks[-1].additional_kwargs["cascade"]
    assert [a["action"] for a in record["attempts"]] == ["stopped", "accept"]
    found = exported.get_finished_spans()
    assert not [span.name for span in found if not span.status.is_ok]
    counted = sum(
        span.attributes.get(f"llm.token_count.{kind}", 0)
        for span in found
        for kind in ("prompt", "completion")
    )
    assert counted == sum(t["input"] + t["output"] for t in record["tokens_by_tier"].values())


@pytest.mark.parametrize("endpoint", ["stream_chat", "astream_chat"])
def test_openinference_shows_a_left_hosted_stream_as_no_failure(
    endpoint: str, exported: InMemorySpanExporter
) -> None:
    """The stream of a provider that is left half way ends its span without an error, too."""
    with OpenAIServer(Said.text("one two three four five", delay_s=0.02)) as server:
        small = FakeModel("draft", name="small", logprob=-2.0)
        llm = CascadeLLM([small, Tier(openai(server), name="large", price=PRICE)], Always())
        with record_cascade() as recorder:
            leave(llm, endpoint)
    assert recorder.traces[0].abandoned
    # what a provider charges for half a stream is not known, and unknown is not zero
    assert recorder.traces[0].cost_usd is None
    assert not [s.name for s in exported.get_finished_spans() if not s.status.is_ok]


def test_a_cancelled_call_is_recorded(spans: Spans) -> None:
    """A cancelled task leaves a record of what was paid, and no open span."""
    slow = FakeModel("late", name="large", delay_s=30)
    llm = CascadeLLM([FakeModel("draft", name="small"), slow], Always())

    async def cancelled() -> None:
        task = asyncio.create_task(llm.achat(user()))
        await was_asked(slow)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with record_cascade() as recorder:
        asyncio.run(cancelled())
    (record,) = recorder.records
    assert ["escalate", "stopped"] == [a.action for a in record.trace.attempts]
    assert not spans.open_spans


def test_the_record_is_missed_when_leaving_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the signal to the plan there is no record, so the checks have power (mutation)."""
    from llamaindex_cascade import session

    monkeypatch.setattr(session, "abandon", lambda *_: None)
    with record_cascade() as recorder:
        leave(build()[0], "stream_chat")
    assert not recorder.records


def test_the_instrumentor_is_left_as_it_was() -> None:
    """The fixture of these tests leaves LlamaIndex uninstrumented."""
    assert not LlamaIndexInstrumentor().is_instrumented_by_opentelemetry
