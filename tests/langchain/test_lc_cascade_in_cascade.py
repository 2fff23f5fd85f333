"""A cascade that is itself a tier: each of the two keeps its own shape and marks in LangSmith."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from langchain_core.callbacks import get_usage_metadata_callback

from cascadellm.testing import FakeModel
from langchain_cascade import CascadeLLM, Tier, guard, tracing
from tests.langchain.lc_tools import CHOW, PATHS, cascade, fakes
from tests.langchain.test_lc_langsmith import traced

__all__ = ["traced"]

DECISION = ["chain", "cascade_decision", []]
INNER = ["chain", "inner", [["llm", "small", []], DECISION, ["llm", "large", []]]]


def nested(place: str) -> Any:
    """Return a cascade with another one, which escalates, as its first or last tier."""
    inner = Tier(cascade(), name="inner")
    if place == "first":
        return CascadeLLM([inner, FakeModel("top", name="top")], lambda answer: False)
    return CascadeLLM([FakeModel("hm", name="outer small", logprob=-3.0), inner], CHOW)


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("path", PATHS)
def test_each_cascade_is_a_chain_with_its_own_tiers(traced, path, place):
    """The inner cascade is a usage-free `chain` below the outer one, on every path."""
    PATHS[path](nested(place), "hi", traced.config)
    root = traced.root()
    before = [["llm", "outer small", []], DECISION]
    below = [INNER, DECISION] if place == "first" else [*before, INNER]
    assert ["chain", "CascadeLLM", below] == root.shape()
    assert set(traced.server.runs) == traced.server.ended
    assert root.total_tokens == sum(run.total_tokens for run in root.all() if run.kind == "llm")


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("path", ["invoke", "ainvoke", "stream", "astream"])
def test_the_inner_tiers_have_their_own_place(traced, path, place):
    """Tags and names of the tier that the inner cascade is do not reach the tiers below it."""
    PATHS[path](nested(place), "hi", traced.config)
    root = traced.root()
    (inner,), (small,), (large,) = (root.named(name) for name in ("inner", "small", "large"))
    assert ("accept", "large", True) == tuple(
        inner.metadata[f"cascade_{name}"] for name in ("action", "answered_by", "escalated")
    )
    for run, place_, action in ((small, 0, "escalate"), (large, 1, "accept")):
        assert (place_, run.name, action) == tuple(
            run.metadata[f"cascade_{name}"] for name in ("tier", "name", "action")
        )
        assert [f"cascade:tier:{place_}"] == [t for t in run.tags if t.startswith("cascade:")]
    for decision in root.named("cascade_decision"):
        assert not [name for name in decision.metadata if name.startswith("cascade_")]
        assert not [tag for tag in decision.tags if tag.startswith("cascade:")]


def test_the_usage_callback_counts_the_tiers_of_both_once():
    """`get_usage_metadata_callback` sees the models that were asked, and no cascade."""
    with get_usage_metadata_callback() as usage:
        nested("last").invoke("hi")
    assert {"outer small", "small", "large"} == set(usage.usage_metadata)
    assert 5 + 7 + 7 == sum(one["total_tokens"] for one in usage.usage_metadata.values())


def test_a_nested_cascade_left_as_it_comes_is_noticed(traced, monkeypatch):
    """Without its own tracer the inner cascade is an `llm` run (mutation)."""
    monkeypatch.setattr(guard, "NestedTracer", guard.TierTracer)
    nested("first").invoke("hi", traced.config)
    assert "llm" == traced.root().named("inner")[0].kind


def test_a_place_that_is_handed_down_is_noticed(traced, monkeypatch):
    """With the place of the inner cascade on its tiers, drafts are marked wrongly (mutation)."""
    whole = tracing.Outer.child_manager

    def handed_down(self: Any, *args: Any, **kwargs: Any) -> Any:
        manager = whole(self, *args, **kwargs)
        manager.add_tags(self.tags)
        return manager

    monkeypatch.setattr(tracing.Outer, "child_manager", handed_down)
    nested("first").invoke("hi", traced.config)
    assert "escalate" != traced.root().named("small")[0].metadata["cascade_action"]


@pytest.mark.parametrize("path", ["invoke", "ainvoke"])
def test_a_tier_that_is_asked_again_marks_each_failure(traced, path):
    """Of a tier with retries, each failed run says `error` and the last one what came of it."""
    asked = itertools.count()

    def second_time(messages: Any) -> str:
        if next(asked) < 2:
            raise TimeoutError("not yet")
        return "here"

    small = Tier(FakeModel(second_time, name="small", logprob=-0.1), retry=3)
    PATHS[path](CascadeLLM([small, fakes()[1]], CHOW), "hi", traced.config)
    runs = traced.root().named("small")
    assert ["error", "error", "accept"] == [run.metadata["cascade_action"] for run in runs]
    assert [True, True, False] == [bool(run.run.get("error")) for run in runs]


def test_an_infinite_score_is_no_feedback(traced, caplog):
    """LangSmith takes finite scores only, so an infinite one stays in the metadata alone."""
    tiers = [FakeModel("hm", name="small", logprob=float("-inf")), fakes()[1]]
    CascadeLLM(tiers, CHOW, trace_feedback=True).invoke("hi", traced.config)
    assert "-inf" == traced.root().metadata["cascade_score"]
    assert not traced.server.feedback
    assert not caplog.records
