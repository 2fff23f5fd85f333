"""Traces that leave the process, read back from a local OTLP receiver."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import Document, VectorStoreIndex
from openinference.instrumentation import using_metadata
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor, _handler
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cascadellm import ConfigurationError, MissingDependencyError
from cascadellm.demo.llamaindex import WordCountEmbedding
from cascadellm.testing import FakeModel
from llamaindex_cascade import CascadeLLM, Tier, tracing
from tests.llamaindex.li_support import CHOW, ENDPOINTS, asked, openai, pair, text_of
from tests.servers.openai_server import OpenAIServer, Said
from tests.servers.otlp_server import OtlpServer

# the instrumentor calls pydantic's old `json`; a warning there would lose the span silently
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

KEY = "sk-planted-77aa"


@pytest.fixture
def receiver() -> Iterator[OtlpServer]:
    """A local OTLP receiver."""
    with OtlpServer() as server:
        yield server


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Leave OpenInference's event registry as it was."""
    yield
    dispatch = _handler._Span.__dict__["_process_event"].dispatcher
    for kind in list(dispatch.registry):
        if kind.__module__.startswith("llamaindex_cascade"):
            dispatch.register(kind, dispatch.registry[object])


def _destination(kind: str, server: OtlpServer, **options: Any) -> tracing.Tracing:
    if kind == "otlp":
        return tracing.to_otlp(server.url, headers={"x-team": "a"}, **options)
    if kind == "phoenix":
        return tracing.to_phoenix(server.base, project="shop", api_key="p-key", **options)
    return tracing.to_langsmith("shop", api_key="ls-key", endpoint=server.base, **options)


@pytest.mark.parametrize("kind", ["otlp", "phoenix", "langsmith"])
def test_the_tree_arrives(kind: str, receiver: OtlpServer) -> None:
    """One root, one trace id, tiers under attempts, tokens at tiers, decision and record there."""
    with _destination(kind, receiver):
        response = asked(pair()[0], "astream_chat")[-1]
    spans = receiver.spans
    assert len({span.trace_id for span in spans}) == 1
    assert [span.name for span in spans if not span.parent_id] == ["CascadeLLM.astream_chat"]
    by_id = {span.span_id: span for span in spans}
    tiers = [span for span in spans if span.name.startswith("LocalLLM")]
    assert {by_id[span.parent_id].name for span in tiers} == {"CascadeTier.aattempt"}
    counted = sum(
        span.attributes.get(f"llm.token_count.{side}", 0)
        for span in spans
        for side in ("prompt", "completion")
    )
    rows = response.additional_kwargs["cascade"]["tokens_by_tier"].values()
    assert counted == sum(row["input"] + row["output"] for row in rows)
    (outer,) = receiver.named("CascadeLLM.astream_chat")
    assert outer.attributes["langsmith.metadata.cascade_answered_by"] == "large"
    assert outer.attributes["cascade.escalated"] is True
    metadata = json.loads(outer.attributes["metadata"])
    assert metadata["cascade_answered_by"] == "large"
    assert metadata["cascade"] == response.additional_kwargs["cascade"]
    assert "cascade_decision" in [name for name, _ in outer.events]


def test_destinations_send_what_they_must(receiver: OtlpServer) -> None:
    """Paths, keys, projects and headers are those that each destination reads."""
    expected = {
        "otlp": ("/v1/traces", "X-Team", "a"),
        "phoenix": ("/v1/traces", "Authorization", "Bearer p-key"),
        "langsmith": ("/otel/v1/traces", "X-Api-Key", "ls-key"),
    }
    for kind, (path, header, value) in expected.items():
        receiver.requests.clear()
        receiver.spans.clear()
        with _destination(kind, receiver):
            asked(pair()[0], "chat")
        sent_path, headers, _ = receiver.requests[0]
        lowered = {name.lower(): v for name, v in headers.items()}
        assert (sent_path, lowered[header.lower()]) == (path, value)
        if kind == "phoenix":
            assert receiver.spans[0].resource["openinference.project.name"] == "shop"
        if kind == "langsmith":
            assert lowered["langsmith-project"] == "shop"


def test_a_rag_query_is_one_trace(receiver: OtlpServer) -> None:
    """Query engine, retriever, synthesizer and cascade share one trace, streamed too."""
    index = VectorStoreIndex.from_documents(
        [Document(text="Paris is the capital of France.")], embed_model=WordCountEmbedding()
    )
    with tracing.to_otlp(receiver.url):
        response = index.as_query_engine(llm=pair()[0], streaming=True).query("Capital?")
        assert "".join(response.response_gen) == "Four, I am certain."
    assert len({span.trace_id for span in receiver.spans}) == 1
    assert [span.name for span in receiver.spans if not span.parent_id] == [
        "RetrieverQueryEngine.query"
    ]
    tokens = [s.name for s in receiver.spans if "llm.token_count.total" in s.attributes]
    assert {name.split(".")[0] for name in tokens} == {"LocalLLM"}
    assert len(tokens) == 2
    (outer,) = receiver.named("CascadeLLM.stream_chat")
    assert outer.attributes["output.value"] == "assistant: Four, I am certain."


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_t07_registered_events_log_no_warning(
    endpoint: str, receiver: OtlpServer, caplog: pytest.LogCaptureFixture
) -> None:
    """With the registration no warning is logged, and events are span events."""
    caplog.set_level(logging.WARNING)
    with tracing.to_otlp(receiver.url):
        asked(pair()[0], endpoint)
    assert not [record for record in caplog.records if "Unhandled" in record.getMessage()]
    (outer,) = receiver.named(f"CascadeLLM.{endpoint}")
    (decision,) = [a for name, a in outer.events if name == "cascade_decision"]
    assert decision["cascade.name"] == "small"
    assert decision["cascade.defer"] is True
    assert decision["cascade.score"] == -2.0


def test_t07_the_registration_is_guarded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When OpenInference's private registry is gone, one warning is logged and calls work."""
    monkeypatch.delattr(_handler._Span, "_process_event")
    caplog.set_level(logging.WARNING)
    assert tracing.instrument_openinference() is False
    assert "does not take the cascade's events" in caplog.text
    assert text_of(asked(pair()[0], "chat")[0]) == "Four, I am certain."


def test_a_broken_private_part_does_not_break_an_answer(
    receiver: OtlpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event handler of ours that fails inside OpenInference leaves span and answer intact."""
    from llamaindex_cascade import openinference

    def fail(trace: Any) -> Any:
        raise RuntimeError("moved")

    monkeypatch.setattr(openinference, "_record", fail)
    with tracing.to_otlp(receiver.url):
        assert text_of(asked(pair()[0], "chat")[0]) == "Four, I am certain."
    (outer,) = receiver.named("CascadeLLM.chat")
    assert outer.attributes["cascade.answered_by"] == "large"


def test_the_users_own_metadata_is_kept(receiver: OtlpServer) -> None:
    """Metadata from OpenInference's context managers and the record share the span."""
    with tracing.to_otlp(receiver.url), using_metadata({"user": "u1"}):
        asked(pair()[0], "chat")
    (outer,) = receiver.named("CascadeLLM.chat")
    metadata = json.loads(outer.attributes["metadata"])
    assert (metadata["user"], metadata["cascade_answered_by"]) == ("u1", "large")


def test_a_second_destination_joins_a_provider(receiver: OtlpServer) -> None:
    """A destination can be added to a running one, and closing it leaves the first alone."""
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    instrumentor = LlamaIndexInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        with pytest.raises(ConfigurationError, match="instrumented already"):
            tracing.to_otlp(receiver.url)
        with tracing.to_otlp(receiver.url, provider=provider):
            asked(pair()[0], "chat")
        assert len(receiver.spans) == len(memory.get_finished_spans()) == 6
        assert instrumentor.is_instrumented_by_opentelemetry
    finally:
        instrumentor.uninstrument()
        provider.shutdown()


def test_a_provider_of_ones_own_can_be_instrumented() -> None:
    """`instrument` takes a provider with its own destinations and leaves it running."""
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    with tracing.instrument(provider):
        asked(pair()[0], "chat")
    assert len(memory.get_finished_spans()) == 6
    with provider.get_tracer("user").start_as_current_span("still running"):
        pass
    assert memory.get_finished_spans()[-1].name == "still running"
    provider.shutdown()


def test_content_can_be_hidden(receiver: OtlpServer) -> None:
    """With `hide_content` no question and no answer leaves; decisions and tokens do."""
    with tracing.to_otlp(receiver.url, hide_content=True):
        asked(pair()[0], "chat", "a private question")
    everything = repr(receiver.spans)
    assert "private question" not in everything
    assert "certain" not in everything
    (outer,) = receiver.named("CascadeLLM.chat")
    assert outer.attributes["cascade.answered_by"] == "large"


def test_no_planted_key_leaves_the_process(receiver: OtlpServer) -> None:
    """A tier's key and header occur nowhere in the bytes that are exported."""
    with OpenAIServer(Said.text("It is four.")) as server:
        hosted = openai(server, api_key=KEY, default_headers={"x-secret": KEY})
        tiers = [FakeModel("hm", name="small", logprob=-2.0), Tier(hosted, name="large")]
        with tracing.to_otlp(receiver.url):
            for endpoint in ENDPOINTS:
                assert text_of(asked(CascadeLLM(tiers, CHOW), endpoint)[-1]) == "It is four."
        assert any(KEY in str(headers) for headers in server.headers)
    own = [s for s in receiver.spans if s.name.startswith(("Cascade", "Deferral"))]
    assert len(own) == 8 * 4
    assert KEY not in repr(receiver.spans)
    assert not [1 for _, _, body in receiver.requests if KEY.encode() in body]


def test_a_receiver_that_refuses_does_not_delay_an_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A dead or refusing destination costs an answer nothing."""
    caplog.set_level(logging.CRITICAL)
    with OtlpServer(status=400) as broken:
        traced = tracing.to_otlp(broken.url)
        begun = time.perf_counter()
        assert text_of(asked(pair()[0], "chat")[0]) == "Four, I am certain."
        assert time.perf_counter() - begun < 5
        traced.close()


@pytest.mark.parametrize(
    ("missing", "call", "extra"),
    [
        ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "to_otlp", "trace"),
        ("openinference.instrumentation.llama_index", "to_otlp", "trace"),
        ("langsmith.integrations.otel.processor", "to_langsmith", "trace"),
        ("openinference.instrumentation.llama_index", "instrument_openinference", "trace"),
    ],
)
def test_a_missing_extra_is_named(
    missing: str, call: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the extra the error says which one to install."""
    monkeypatch.setitem(sys.modules, missing, None)
    arguments = {"to_otlp": ("http://127.0.0.1:9",), "to_langsmith": ("x",)}.get(call, ())
    with pytest.raises(MissingDependencyError, match=rf"cascadellm\[{extra}\]"):
        getattr(tracing, call)(*arguments)


def test_langsmith_without_a_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing API key is a ConfigurationError."""
    monkeypatch.delenv("LANGSMITH_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="API key"):
        tracing.to_langsmith("shop")
