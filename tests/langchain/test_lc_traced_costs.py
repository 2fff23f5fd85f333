"""What local models cost is sent to LangSmith, call by call, and adds up to the record's cost."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.tracers.langchain import LangChainTracer
from langsmith import tracing_context

from cascadellm import record_cascade
from cascadellm.calibration import FeedbackLoop
from cascadellm.testing import FakeModel
from langchain_cascade import (
    CascadeLLM,
    Judge,
    Price,
    SelfConsistency,
    Tier,
    guard,
)
from tests.langchain.lc_openai import OpenAIFake, chat_openai
from tests.langchain.lc_tools import CHOW, PATHS, cascade, fakes
from tests.langchain.test_lc_langsmith import traced

__all__ = ["traced"]


def priced(kind: str, price: Price) -> Any:
    """Return a cascade of priced local models that asks more than its tiers."""
    tiers = [Tier(model, price=price) for model in fakes()]
    if kind == "judge":
        judge = Tier(FakeModel("Score: 2", name="judge"), price=price)
        return CascadeLLM(tiers, Judge(judge, threshold=7))
    return CascadeLLM(tiers, SelfConsistency(3) if kind == "resamples" else CHOW)


def costs(root: Any) -> list[float]:
    """Return the cost that each model's run was sent with."""
    used = [node.metadata.get("usage_metadata") or {} for node in root.all() if node.kind == "llm"]
    return [one["total_cost"] for one in used if "total_cost" in one]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("kind", "calls"), [("threshold", 2), ("judge", 3), ("resamples", 3)])
def test_the_costs_of_local_calls_add_up(traced, kind, calls, path):
    """Tiers, judges and resamples send their cost; the sum is the cost on the cascade's run."""
    with record_cascade() as recorder:
        PATHS[path](priced(kind, Price(1.0, 2.0)), "hi", traced.config)
    root = traced.root()
    assert calls == len(costs(root))
    (trace,) = recorder.traces
    assert trace.cost_usd == pytest.approx(sum(costs(root)))
    assert trace.cost_usd == pytest.approx(root.metadata["cascade_cost_usd"])


@pytest.mark.parametrize("kind", ["threshold", "judge", "resamples"])
def test_seconds_of_a_gpu_are_a_cost_too(traced, kind):
    """A price per second is charged for the time of each call."""
    priced(kind, Price(per_second=3.0)).invoke("hi", traced.config)
    root = traced.root()
    assert all(cost > 0 for cost in costs(root))
    assert root.metadata["cascade_cost_usd"] > 0
    assert sum(costs(root)) < 3.0


def test_an_unpriced_or_hosted_call_sends_no_cost(traced):
    """Unknown is no number, and a provider's model is priced by LangSmith."""
    judge = Tier(chat_openai(OpenAIFake("Score: 2")), name="hosted", price=Price(1.0, 1.0))
    CascadeLLM(list(fakes()), Judge(judge, threshold=7)).invoke("hi", traced.config)
    root = traced.root()
    assert root.named("hosted")
    assert not costs(root)
    assert "cascade_cost_usd" not in root.metadata


def test_a_side_call_without_its_cost_is_noticed(traced, monkeypatch):
    """The sum falls short where the tracer's copies forget the side calls (mutation)."""
    forgets = LangChainTracer.copy_with_metadata_defaults
    monkeypatch.setattr(guard.TierTracer, "copy_with_metadata_defaults", forgets)
    priced("judge", Price(1.0, 2.0)).invoke("hi", traced.config)
    root = traced.root()
    assert sum(costs(root)) < root.metadata["cascade_cost_usd"]


@pytest.mark.parametrize(("outer", "inner"), [(False, True), (True, False), (False, False)])
def test_logprobs_that_one_of_two_leaves_out_stay_out(traced, outer, inner):
    """Of two nested cascades either one's `trace_logprobs=False` holds for its own tiers."""
    below = Tier(cascade(options={"trace_logprobs": inner}), name="inner")
    llm = CascadeLLM([below, fakes()[1]], lambda answer: False, trace_logprobs=outer)
    llm.invoke("hi", traced.config)
    assert traced.root().named("small")
    assert '"top_logprobs"' not in traced.server.searched()


@pytest.mark.parametrize("ambient", [False, True])
def test_a_shadow_call_is_a_trace_with_its_cost_and_no_secret(traced, ambient):
    """A shadow call's run is a root that names the checked run, priced and scrubbed."""
    loop = FeedbackLoop(shadow_share=1.0)
    small, large = fakes(logprob=-0.1)
    secret = {"extra_headers": {"x": "sk-planted-0451"}}
    tiers = [small, Tier(large, name="large", price=Price(1.0, 2.0), kwargs=secret)]
    llm = CascadeLLM(tiers, CHOW, feedback_loop=loop)
    if ambient:
        with tracing_context(enabled=True, client=traced.client, project_name="p"):
            message = llm.invoke("hi")
            assert loop.settle()
    else:
        message = llm.invoke("hi", traced.config)
        assert loop.settle()
    traced.client.flush()
    shadow, root = sorted(traced.server.trees(), key=lambda tree: tree.kind, reverse=True)
    assert (["llm", "large", []], "CascadeLLM") == (shadow.shape(), root.name)
    assert set(traced.server.runs) == traced.server.ended
    assert shadow.metadata["cascade_run_id"] == message.response_metadata["cascade"]["run_id"]
    assert "cascade:shadow" in shadow.tags
    assert [4e-6 + 6e-6] == pytest.approx(costs(shadow))
    assert "sk-planted-0451" not in traced.server.searched()
