"""The real OpenInference instrumentor: tree, kinds, outputs, tokens counted once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cascadellm.testing import FakeModel
from llamaindex_cascade import CascadeLLM
from tests.llamaindex.li_support import CHOW, ENDPOINTS, asked, pair, user

# the instrumentor calls pydantic's old `json`; a warning there would lose the span silently
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PROMPT, MADE = "llm.token_count.prompt", "llm.token_count.completion"


@pytest.fixture
def provider() -> Iterator[TracerProvider]:
    """A tracer provider of the test's own."""
    provider = TracerProvider()
    yield provider
    provider.shutdown()


@pytest.fixture
def exported(provider: TracerProvider) -> Iterator[InMemorySpanExporter]:
    """Instrument LlamaIndex; yield what is exported."""
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = LlamaIndexInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    yield exporter
    instrumentor.uninstrument()


def _spans(exporter: InMemorySpanExporter) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for span in exporter.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    return found


def _tree(exporter: InMemorySpanExporter) -> dict[int, Any]:
    return {span.context.span_id: span for span in exporter.get_finished_spans()}


def _parent(span: Any, tree: dict[int, Any]) -> str | None:
    return None if span.parent is None else tree[span.parent.span_id].name


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("logprob", [-0.1, -2.0])
def test_t02_the_cascades_span_has_its_output(
    endpoint: str, logprob: float, exported: InMemorySpanExporter
) -> None:
    """The cascade's span ends with its own answer, also when a tier's stream ends first."""
    asked(pair(logprob)[0], endpoint)
    spans = _spans(exported)
    (outer,) = spans[f"CascadeLLM.{endpoint}"]
    expected = "Maybe five?" if logprob > -1 else "Four, I am certain."
    assert outer.attributes["output.value"].endswith(expected)
    assert outer.parent is None
    assert outer.status.is_ok


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_t05_tokens_are_counted_at_the_tiers_only(
    endpoint: str, exported: InMemorySpanExporter
) -> None:
    """Tokens over all spans are the sum over tiers; the response has the accepted tier's."""
    chunks = asked(pair()[0], endpoint)
    record = chunks[-1].additional_kwargs["cascade"]
    expected = sum(row["input"] + row["output"] for row in record["tokens_by_tier"].values())
    spans = exported.get_finished_spans()
    counted = sum(s.attributes.get(PROMPT, 0) + s.attributes.get(MADE, 0) for s in spans)
    assert counted == expected
    carriers = {s.name.split(".")[0] for s in spans if PROMPT in s.attributes}
    assert carriers == {"LocalLLM"}
    accepted = record["attempts"][-1]
    assert chunks[-1].additional_kwargs["prompt_tokens"] == accepted["input_tokens"]
    assert chunks[-1].additional_kwargs["completion_tokens"] == accepted["output_tokens"]


def test_t05_would_notice_a_response_passed_to_events(
    exported: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token sum doubles when events carry the full response, so the check has power."""
    from llamaindex_cascade import observe

    monkeypatch.setattr(observe, "event_copy", lambda response: response)
    asked(pair()[0], "chat")
    spans = exported.get_finished_spans()
    assert {s.name.split(".")[0] for s in spans if PROMPT in s.attributes} > {"LocalLLM"}


@pytest.mark.parametrize("endpoint", ["chat", "astream_chat"])
def test_t06_kinds_come_from_the_right_classes(
    endpoint: str, exported: InMemorySpanExporter
) -> None:
    """LLM for the cascade and its tiers, CHAIN for attempts and decisions."""
    asked(pair()[0], endpoint)
    kinds = {
        span.name.split(".")[0]: span.attributes["openinference.span.kind"]
        for span in exported.get_finished_spans()
    }
    assert kinds == {
        "CascadeLLM": "LLM",
        "CascadeTier": "CHAIN",
        "LocalLLM": "LLM",
        "DeferralPolicy": "CHAIN",
    }


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_tree_is_one_trace_with_the_right_parents(
    endpoint: str, exported: InMemorySpanExporter
) -> None:
    """One trace id, one root, attempts under the cascade, tiers and decisions under attempts."""
    asked(pair()[0], endpoint)
    tree = _tree(exported)
    assert len({span.context.trace_id for span in tree.values()}) == 1
    a = "a" if endpoint.startswith("a") else ""
    wanted = {
        "CascadeLLM": None,
        "CascadeTier": f"CascadeLLM.{endpoint}",
        "LocalLLM": f"CascadeTier.{a}attempt",
        "DeferralPolicy": f"CascadeTier.{a}attempt",
    }
    for span in tree.values():
        assert _parent(span, tree) == wanted[span.name.split(".")[0]]
    assert len(tree) == 6


def test_t07_the_decision_is_readable_from_spans_alone(exported: InMemorySpanExporter) -> None:
    """Without any registration the decision's span says everything about it."""
    asked(pair()[0], "chat")
    (decide,) = _spans(exported)["DeferralPolicy.decide"]
    output = json.loads(decide.attributes["output.value"])
    output.pop("latency_s")
    assert output == {
        "tier": 0,
        "name": "small",
        "defer": True,
        "policy": "Threshold",
        "score_name": "mean_logprob",
        "score": -2.0,
        "threshold": -0.35,
        "code": "score",
        "reason": "mean_logprob -2 < -0.35",
    }
    assert json.loads(decide.attributes["input.value"])["draft"] == "Maybe five?"


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_t08_attributes_name_the_decision(endpoint: str, exported: InMemorySpanExporter) -> None:
    """The cascade's span carries the record under both neutral and LangSmith names."""
    asked(pair()[0], endpoint)
    spans = _spans(exported)
    (outer,) = spans[f"CascadeLLM.{endpoint}"]
    wanted = {
        "answered_by": "large",
        "tier": 1,
        "escalated": True,
        "score": -2.0,
        "threshold": -0.35,
        "policy": "Threshold",
        "reason": "mean_logprob -2 < -0.35",
    }
    for name, value in wanted.items():
        assert outer.attributes[f"cascade.{name}"] == value
        assert outer.attributes[f"langsmith.metadata.cascade_{name}"] == value
    tags = outer.attributes["langsmith.span.tags"].split(",")
    assert tags == ["cascade:answered_by:large", "cascade:escalated"]
    a = "a" if endpoint.startswith("a") else ""
    actions = [s.attributes["cascade.action"] for s in spans[f"CascadeTier.{a}attempt"]]
    assert actions == ["escalate", "accept"]
    tiers = [s.attributes["langsmith.span.tags"] for s in spans[f"CascadeTier.{a}attempt"]]
    assert tiers == ["cascade:tier:0", "cascade:tier:1"]


@pytest.mark.parametrize("endpoint", ["chat", "stream_chat", "acomplete"])
def test_t08_a_users_span_gets_no_attribute(endpoint: str, provider: TracerProvider) -> None:
    """Without a LlamaIndex instrumentor the current span is the user's and stays untouched."""
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("user").start_as_current_span("mine"):
        asked(pair()[0], endpoint)
    (span,) = exporter.get_finished_spans()
    assert not dict(span.attributes)


def test_t08_a_users_span_around_an_instrumented_call_stays_its_parent(
    exported: InMemorySpanExporter, provider: TracerProvider
) -> None:
    """The user's span is the parent of the cascade's and gets none of its attributes."""
    with provider.get_tracer("user").start_as_current_span("mine"):
        asked(pair()[0], "stream_chat")
    tree = _tree(exported)
    mine = next(span for span in tree.values() if span.name == "mine")
    assert not dict(mine.attributes)
    (outer,) = _spans(exported)["CascadeLLM.stream_chat"]
    assert outer.parent.span_id == mine.context.span_id


def test_an_early_close_ends_the_cascades_span(exported: InMemorySpanExporter) -> None:
    """A stream closed after one chunk ends the span, and not as a failure."""
    llm, _, large = pair()
    stream = llm.stream_chat(user())
    next(stream)
    stream.close()
    (outer,) = _spans(exported)["CascadeLLM.stream_chat"]
    assert outer.status.is_ok
    assert large.closed == 1


def test_a_failing_cascade_marks_its_span(exported: InMemorySpanExporter) -> None:
    """When every tier fails the cascade's span is an error, the attempts' too."""
    tiers = [FakeModel(OSError("gone"), name=name) for name in ("small", "large")]
    with pytest.raises(OSError, match="gone"):
        asked(CascadeLLM(tiers, CHOW), "chat")
    for span in exported.get_finished_spans():
        assert not span.status.is_ok


_UNREGISTERED = """
import logging
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from tests.llamaindex.li_support import pair, user
logging.basicConfig()
LlamaIndexInstrumentor().instrument(tracer_provider=TracerProvider())
print(pair()[0].chat(user()).message.content)
"""


def test_t07_unregistered_events_only_warn() -> None:
    """Upstream logs a warning per unknown event; registration exists to silence that."""
    # registration lasts for a whole process, so this needs one of its own
    done = subprocess.run(
        [sys.executable, "-c", _UNREGISTERED],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert "Four, I am certain." in done.stdout
    assert "Unhandled event of type CascadeDecisionEvent" in done.stderr
