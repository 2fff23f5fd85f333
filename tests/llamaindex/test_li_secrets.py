"""Nothing that leaves the process through OpenTelemetry holds a credential of a tier."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openinference.instrumentation import TraceConfig
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cascadellm import record_cascade
from cascadellm.report import write_report
from cascadellm.testing import FakeModel
from llamaindex_cascade import CascadeLLM, Tier, masking, tracing
from tests.llamaindex.li_support import CHOW, ENDPOINTS, asked, openai, pair, text_of
from tests.servers.openai_server import OpenAIServer, Said
from tests.servers.otlp_server import OtlpServer

# the instrumentor calls pydantic's old `json`; a warning there would lose the span silently
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PLANTED = "sk-planted-77aa"
HEADERS = {"extra_headers": {"x-secret": PLANTED}}


@pytest.fixture
def receiver() -> Iterator[OtlpServer]:
    """A local OTLP receiver."""
    with OtlpServer() as server:
        yield server


def _sent(receiver: OtlpServer) -> bytes:
    return b"\n".join(body for _, _, body in receiver.requests)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("where", ["tier", "call"])
def test_headers_of_a_tier_or_call_are_hidden(
    where: str, endpoint: str, receiver: OtlpServer
) -> None:
    """Headers given to a tier or call reach the provider and no span, on every endpoint."""
    with OpenAIServer(Said.text("It is four.")) as server:
        small = FakeModel("hm", name="small", logprob=-2.0)
        kwargs = HEADERS if where == "tier" else {}
        llm = CascadeLLM([small, Tier(openai(server), name="large", kwargs=kwargs)], CHOW)
        with tracing.to_otlp(receiver.url):
            said = asked(llm, endpoint, **({} if where == "tier" else HEADERS))
        assert text_of(said[-1]) == "It is four."
        assert PLANTED in str(server.headers)
    shown = [str(span.attributes.get("input.value")) for span in receiver.spans]
    assert "**hidden**" in "".join(shown)
    assert all("What is 2 + 2?" in text for text in shown if "extra_headers" in text)
    assert PLANTED.encode() not in _sent(receiver)


def test_headers_are_hidden_for_a_provider_of_ones_own() -> None:
    """`instrument` hides them too, whatever processors the provider has."""
    memory, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    with tracing.instrument(provider):
        asked(pair()[0], "chat", **HEADERS)
    provider.shutdown()
    attributes = str([dict(span.attributes or {}) for span in memory.get_finished_spans()])
    assert "**hidden**" in attributes
    assert PLANTED not in attributes


def _broken(place: str, server: OpenAIServer) -> CascadeLLM:
    """Return a cascade with a tier whose key ends in a newline, which no header can hold."""
    broken = Tier(openai(server, api_key=f"{PLANTED}\n"), name="remote")
    if place == "first":
        return CascadeLLM([broken, FakeModel("ok", name="large")], CHOW)
    return CascadeLLM([FakeModel("hm", name="small", logprob=-2.0), broken], CHOW)


@pytest.mark.parametrize("endpoint", ["chat", "achat", "stream_chat", "astream_chat"])
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_key_that_an_error_quotes_stays_here(
    place: str, endpoint: str, receiver: OtlpServer, tmp_path: Path
) -> None:
    """The HTTP client quotes the key in the error's stack; spans, records and pages do not."""
    file = tmp_path / "traces.jsonl"
    with (
        OpenAIServer(Said.text("never")) as server,
        tracing.to_otlp(receiver.url),
        record_cascade(file),
    ):
        if place == "first":
            assert text_of(asked(_broken(place, server), endpoint)[-1]) == "ok"
        else:
            with pytest.raises(Exception, match="Connection error"):
                asked(_broken(place, server), endpoint)
    write_report(file, tmp_path / "page.html")
    stacks = [
        str(attributes.get("exception.stacktrace"))
        for span in receiver.spans
        for name, attributes in span.events
        if name == "exception"
    ]
    assert any("Illegal header value **hidden**" in stack for stack in stacks)
    assert PLANTED.encode() not in _sent(receiver)
    assert PLANTED not in file.read_text() + (tmp_path / "page.html").read_text()


def test_mutation_arguments_shown_as_they_are_are_noticed(
    receiver: OtlpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With OpenInference's own settings the header is found in what was sent."""
    monkeypatch.setattr(masking.Masked, "mask", TraceConfig.mask)
    with tracing.to_otlp(receiver.url):
        asked(pair()[0], "chat", **HEADERS)
    assert PLANTED.encode() in _sent(receiver)


def test_mutation_exceptions_shown_as_they_are_are_noticed(
    receiver: OtlpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the processor of ours the quoted key is found in what was sent."""
    monkeypatch.setattr(masking, "_told", lambda span: span)
    with OpenAIServer(Said.text("never")) as server, tracing.to_otlp(receiver.url):
        asked(_broken("first", server), "chat")
    assert PLANTED.encode() in _sent(receiver)


def test_arguments_that_are_no_json_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A text that only looks like JSON passes, and so does everything that is no argument."""
    caplog.set_level(logging.WARNING)
    config: Any = masking.Masked()
    assert "{not json" == config.mask("input.value", "{not json")
    assert '{"headers": 1}' == config.mask("output.value", '{"headers": 1}')
    assert '{"a": {"api_key": "**hidden**"}}' == config.mask(
        "input.value", '{"a": {"api_key": "x"}}'
    )
    assert not caplog.records
