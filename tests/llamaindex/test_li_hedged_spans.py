"""A tier that is asked ahead has its call below its own attempt, whoever answers in the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cascadellm import Always, Hedge, Never
from cascadellm.testing import FakeModel
from llamaindex_cascade import CascadeLLM, tracing
from llamaindex_cascade.spans import Spans
from tests.llamaindex.li_support import asked

# the instrumentor calls pydantic's old `json`; a warning there would lose the span silently
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MODES = ("chat", "achat", "stream_chat", "astream_chat")

CASES: dict[str, tuple[Any, float, float, list[tuple[str, str]]]] = {
    # not at once, or the draft may be asked when the call is over already
    "the next tier is faster": (Never(), 0.6, 0.15, [("small", "escalate"), ("large", "accept")]),
    "the draft is deferred": (Always(), 0.05, 0.2, [("small", "escalate"), ("large", "accept")]),
    "the draft is accepted": (Never(), 0.05, 0.3, [("small", "accept"), ("large", "stopped")]),
}
"""Name -> (policy, seconds of the draft, seconds of the next tier, attempts)."""


@pytest.fixture
def exported() -> Iterator[InMemorySpanExporter]:
    """Instrument LlamaIndex; yield what is exported."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with tracing.instrument(provider):
        yield exporter
    provider.shutdown()


def hedged(case: str, mode: str, exported: InMemorySpanExporter) -> list[Any]:
    """Run a hedged call; return its spans once the slower model has ended too."""
    policy, draft_s, large_s, _ = CASES[case]
    small = FakeModel("a draft of some words", name="small", delay_s=draft_s)
    large = FakeModel("an answer of some words", name="large", delay_s=large_s)
    asked(CascadeLLM([small, large], Hedge(policy, after_s=0)), mode)
    until = time.monotonic() + 5
    while time.monotonic() < until:
        spans = list(exported.get_finished_spans())
        if sum(span.name.startswith("LocalLLM.") for span in spans) == 2:
            return spans
        time.sleep(0.01)
    return list(exported.get_finished_spans())


def parents(spans: list[Any]) -> dict[str, str]:
    """Return the name of the attempt below which each model was called."""
    by_id = {span.context.span_id: span for span in spans}
    return {
        str(span.attributes["llm.model_name"]): str(
            by_id[span.parent.span_id].attributes.get("cascade.name")
        )
        for span in spans
        if span.name.startswith("LocalLLM.")
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_each_call_hangs_under_its_own_attempt(
    case: str, mode: str, exported: InMemorySpanExporter
) -> None:
    """Attempts stand beside each other below the cascade, each with its model's call."""
    spans = hedged(case, mode, exported)
    (outer,) = [span for span in spans if span.name == f"CascadeLLM.{mode}"]
    attempts = [span for span in spans if span.name.startswith("CascadeTier.")]

    assert {"small": "small", "large": "large"} == parents(spans)
    assert {outer.context.span_id} == {span.parent.span_id for span in attempts}
    assert CASES[case][3] == [
        (span.attributes["cascade.name"], span.attributes["cascade.action"])
        for span in sorted(attempts, key=lambda span: str(span.attributes["cascade.tier"]))
    ]
    assert all(span.status.is_ok for span in spans)
    assert 1 == len({span.context.trace_id for span in spans})


@pytest.mark.parametrize("mode", MODES)
def test_a_call_below_the_wrong_attempt_is_noticed(
    mode: str, exported: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its own attempt the next tier's call hangs under the draft's (mutation)."""
    monkeypatch.setattr(Spans, "asked", lambda self, index, name: None)
    spans = hedged("the draft is deferred", mode, exported)
    assert "small" == parents(spans)["large"]


@pytest.mark.parametrize("mode", ["chat", "achat"])
def test_a_call_that_fails_leaves_no_attempt_open(
    mode: str, exported: InMemorySpanExporter
) -> None:
    """When draft and next tier both fail, every span is ended, and as a failure."""
    small = FakeModel(TimeoutError("slow"), name="small", delay_s=0.05)
    large = FakeModel(ConnectionError("gone"), name="large", delay_s=0.1)
    with pytest.raises(ConnectionError, match="gone"):
        asked(CascadeLLM([small, large], Hedge(Never(), after_s=0)), mode)
    spans = exported.get_finished_spans()
    attempts = [span for span in spans if span.name.startswith("CascadeTier.")]
    assert 2 == len(attempts)
    assert not [span.name for span in attempts if span.status.is_ok]
    assert [span for span in spans if span.name == f"CascadeLLM.{mode}"]
