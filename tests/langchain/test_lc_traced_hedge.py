"""A tier that is asked ahead, in LangSmith: whoever loses is closed, marked and no failure."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cascadellm.testing import FakeModel
from langchain_cascade import Always, CascadeLLM, Hedge, Never, marks
from tests.langchain.lc_tools import PATHS
from tests.langchain.test_lc_langsmith import traced

__all__ = ["traced"]

CASES: dict[str, tuple[Any, float, float, dict[str, str]]] = {
    "the next tier is faster": (Never(), 0.6, 0.0, {"small": "escalate", "large": "accept"}),
    "the draft is deferred": (Always(), 0.05, 0.2, {"small": "escalate", "large": "accept"}),
    "the draft is accepted": (Never(), 0.05, 0.4, {"small": "accept", "large": "stopped"}),
}
"""Name -> (policy, seconds of the draft, seconds of the next tier, actions)."""


def hedged(case: str, path: str, traced: Any) -> Any:
    """Run a hedged call; return its trace once the slower model has ended too."""
    policy, draft_s, large_s, _ = CASES[case]
    small = FakeModel("a draft of some words", name="small", delay_s=draft_s)
    large = FakeModel("an answer of some words", name="large", delay_s=large_s)
    PATHS[path](CascadeLLM([small, large], Hedge(policy, after_s=0)), "hi", traced.config)
    until = time.monotonic() + 5
    while time.monotonic() < until:
        root = traced.root()
        if set(traced.server.runs) == traced.server.ended and len(root.all()) == 4:
            return root
        time.sleep(0.02)
    return traced.root()


@pytest.mark.parametrize("path", ["invoke", "ainvoke", "stream", "astream"])
@pytest.mark.parametrize("case", CASES)
def test_the_loser_is_closed_and_marked(traced, case, path):
    """One closed tree: both tiers and the decision below the cascade, and nothing failed."""
    root = hedged(case, path, traced)
    assert ["cascade_decision", "large", "small"] == sorted(child.name for child in root.children)
    assert set(traced.server.runs) == traced.server.ended
    done = {name: root.named(name)[0].metadata["cascade_action"] for name in ("small", "large")}
    # a lost draft is cancelled in a task, and runs on unheard in a thread
    lost = done["small"] == "stopped" and CASES[case][3]["small"] == "escalate"
    assert CASES[case][3] == {**done, **({"small": "escalate"} if lost else {})}
    assert not [node.name for node in root.all() if node.run.get("error")]


@pytest.mark.parametrize("path", ["ainvoke", "astream"])
def test_a_loser_shown_as_a_failure_is_noticed(traced, monkeypatch, path):
    """Without taking the cancellation off, the loser's run would be an error (mutation)."""
    from langchain_cascade import guard

    for module in (guard, marks):
        monkeypatch.setattr(module, "forgive", lambda run: None)
    root = hedged("the draft is accepted", path, traced)
    assert ["large"] == [node.name for node in root.all() if node.run.get("error")]
