"""Send a LlamaIndex program's traces to LangSmith, Phoenix, or any OTLP endpoint.

    from llamaindex_cascade import tracing

    with tracing.to_phoenix("http://localhost:6006"):
        query_engine.query("...")

Each of the three instruments LlamaIndex with OpenInference, so that query engines, agents,
tiers and decisions come out as one tree. Needs the extra `trace`; nothing here is imported
by `llamaindex_cascade` itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from cascadellm.errors import ConfigurationError, MissingDependencyError
from llamaindex_cascade.openinference import instrument_openinference

__all__ = [
    "Tracing",
    "instrument",
    "instrument_openinference",
    "to_langsmith",
    "to_otlp",
    "to_phoenix",
]

_EXTRA = "trace"


class Tracing:
    """Running instrumentation; close it, or use it as a context manager.

    Attributes:
        provider: The OpenTelemetry tracer provider, for further span processors.
    """

    def __init__(self, provider: Any, *, owned: bool, instrumentor: Any) -> None:
        self.provider = provider
        self._owned = owned
        self._instrumentor = instrumentor

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Send what is waiting; return whether all of it went out in time."""
        return bool(self.provider.force_flush(int(timeout_s * 1000)))

    def close(self) -> None:
        """Send what is waiting and stop; a provider of the caller's own is left running."""
        if self._instrumentor is not None:
            self._instrumentor.uninstrument()
            self._instrumentor = None
        if self._owned:
            self.provider.shutdown()
            self._owned = False
        else:
            self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def instrument(provider: Any, *, hide_content: bool = False) -> Tracing:
    """Instrument LlamaIndex for a tracer provider of your own, with its own destinations.

    Args:
        provider: An OpenTelemetry `TracerProvider`.
        hide_content: Whether questions and answers stay out of the traces.

    Raises:
        MissingDependencyError: The extra `trace` is not installed.
    """
    return _start(None, {}, provider, hide_content=hide_content)


def to_otlp(
    endpoint: str,
    *,
    headers: Mapping[str, str] | None = None,
    resource: Mapping[str, str] | None = None,
    provider: Any = None,
    hide_content: bool = False,
    timeout_s: float = 30.0,
) -> Tracing:
    """Send traces to an OTLP endpoint over HTTP (Langfuse, Arize, a collector, ...).

    Args:
        endpoint: Full URL, e.g. `http://localhost:4318/v1/traces`.
        headers: Sent with every export, e.g. an authorisation.
        resource: Attributes of the program, e.g. `{"service.name": "shop"}`.
        provider: A tracer provider of your own to add this destination to.
        hide_content: Whether questions and answers stay out of the traces.
        timeout_s: Most seconds for one export, in the background.

    Raises:
        MissingDependencyError: The extra `trace` is not installed.
        ConfigurationError: LlamaIndex is instrumented already and no provider is given.
    """
    exporter, batch = _otlp()
    sender = exporter(endpoint=endpoint, headers=dict(headers or {}), timeout=timeout_s)
    processor = batch(sender, export_timeout_millis=timeout_s * 1000)
    return _start(processor, resource or {}, provider, hide_content=hide_content)


def to_phoenix(
    endpoint: str = "http://localhost:6006",
    *,
    project: str = "default",
    api_key: str | None = None,
    provider: Any = None,
    hide_content: bool = False,
) -> Tracing:
    """Send traces to Phoenix.

    Args:
        endpoint: Where Phoenix runs.
        project: Phoenix project.
        api_key: Needed where Phoenix asks for one.
        provider: A tracer provider of your own to add this destination to.
        hide_content: Whether questions and answers stay out of the traces.

    Raises:
        MissingDependencyError: The extra `trace` is not installed.
        ConfigurationError: LlamaIndex is instrumented already and no provider is given.
    """
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    return to_otlp(
        f"{endpoint.rstrip('/')}/v1/traces",
        headers=headers,
        resource={"openinference.project.name": project},
        provider=provider,
        hide_content=hide_content,
    )


def to_langsmith(
    project: str | None = None,
    *,
    api_key: str | None = None,
    endpoint: str | None = None,
    provider: Any = None,
    hide_content: bool = False,
) -> Tracing:
    """Send traces to LangSmith, under the names that the LangChain adapter uses.

    A filter such as `cascade_escalated = true` finds calls of both frameworks.

    Args:
        project: LangSmith project; else `LANGSMITH_PROJECT`.
        api_key: Else `LANGSMITH_API_KEY`.
        endpoint: Else `LANGSMITH_ENDPOINT`.
        provider: A tracer provider of your own to add this destination to.
        hide_content: Whether questions and answers stay out of the traces.

    Raises:
        MissingDependencyError: The extra `trace` is not installed.
        ConfigurationError: There is no API key, or LlamaIndex is instrumented already and no
            provider is given.
    """
    try:
        from langsmith.integrations.otel.processor import OtelSpanProcessor
    except ImportError as error:
        raise MissingDependencyError.for_extra("langsmith[otel]", _EXTRA) from error
    try:
        processor = OtelSpanProcessor(api_key=api_key, project=project, url=endpoint)
    except ValueError as error:
        raise ConfigurationError(
            "to_langsmith expects an API key, from api_key= or LANGSMITH_API_KEY, and got none"
        ) from error
    return _start(processor, {}, provider, hide_content=hide_content)


def _otlp() -> tuple[Any, Any]:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        package = "opentelemetry-exporter-otlp-proto-http"
        raise MissingDependencyError.for_extra(package, _EXTRA) from error
    return OTLPSpanExporter, BatchSpanProcessor


def _start(
    processor: Any, resource: Mapping[str, str], provider: Any, *, hide_content: bool
) -> Tracing:
    try:
        from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        from llamaindex_cascade.masking import Masked, Scrubbing
    except ImportError as error:
        package = "openinference-instrumentation-llama-index"
        raise MissingDependencyError.for_extra(package, _EXTRA) from error
    instrumentor = LlamaIndexInstrumentor()
    running = instrumentor.is_instrumented_by_opentelemetry
    if running and provider is None:
        processor.shutdown()
        raise ConfigurationError(
            "LlamaIndex is instrumented already; pass that instrumentation's tracer provider as "
            "provider= to add this destination, or close the other one first (in a notebook "
            "cell that ran before: LlamaIndexInstrumentor().uninstrument())"
        )
    owned = provider is None
    if owned:
        provider = TracerProvider(resource=Resource.create(dict(resource)))
    if processor is not None:
        provider.add_span_processor(Scrubbing(processor))
    if not running:
        config = Masked(hide_inputs=True, hide_outputs=True) if hide_content else Masked()
        instrumentor.instrument(tracer_provider=provider, config=config)
    instrument_openinference()
    return Tracing(provider, owned=owned, instrumentor=None if running else instrumentor)
