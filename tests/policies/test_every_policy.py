"""Every policy, in both frameworks, sync and async: one decision, everything charged, nested."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.instrumentation import get_dispatcher

from cascadellm import Policy
from cascadellm.ledger import Ledger
from cascadellm.policies.config import POLICIES
from tests.engine.running import MODES
from tests.langchain.lc_tools import Recording
from tests.llamaindex.li_support import Spans
from tests.policies.both_frameworks import FRAMEWORKS, record_of
from tests.policies.every_policy import ALLOWED, CASES, Case, named_models

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
frameworks = pytest.mark.parametrize("framework", FRAMEWORKS)
modes = pytest.mark.parametrize("mode", MODES)
asking = pytest.mark.parametrize(
    "case", [case for case in CASES if case.purposes], ids=lambda case: case.name
)


def record(framework: str, mode: str, case: Case, config: Any = None) -> dict[str, Any]:
    """Return the record of a case on one path."""
    return record_of(
        framework,
        mode,
        case.tiers(),
        case.make(),
        case.question,
        tools=case.tools,
        config=config,
    )


def seen(found: dict[str, Any]) -> dict[str, Any]:
    """Return what must be the same on every path: all but times and what counting differs in."""
    kept = ("name", "action", "policy", "score_name", "score", "threshold", "code", "reason")
    return {
        "answered_by": found["answered_by"],
        "attempts": [{k: a[k] for k in kept} for a in found["attempts"]],
        "calls": [(c["name"], c["purpose"]) for a in found["attempts"] for c in a["calls"]],
    }


def check_charged(found: dict[str, Any], purposes: tuple[str, ...]) -> None:
    """Check that each call of the policy is in the record, and the sum of costs is the total."""
    calls = [call for attempt in found["attempts"] for call in attempt["calls"]]
    assert list(purposes) == [call["purpose"] for call in calls]
    assert all(call["cost_usd"] > 0 for call in calls)
    asked = [a["cost_usd"] for a in found["attempts"] if a["action"] != "skip"]
    paid = sum(asked) + sum(call["cost_usd"] for call in calls)
    assert found["cost_usd"] == pytest.approx(paid)


def test_the_table_when_policies_are_added() -> None:
    """No policy that a config may name is missing from the table."""
    assert set(POLICIES) == {case.name.split("-")[0] for case in CASES}
    assert all(type(case.make()).__name__ == case.name.split("-")[0] for case in CASES)


@cases
def test_config_when_a_policy_is_written_and_read(case: Case) -> None:
    """Each policy becomes plain JSON data, and comes back equal."""
    policy = case.make()
    data = json.loads(json.dumps(policy.to_config()))
    back = Policy.from_config(data, allow={**ALLOWED, **named_models(policy)})

    assert policy == back
    assert data == back.to_config()


@modes
@frameworks
@cases
def test_decision_when_a_policy_runs_in_a_framework(case: Case, framework: str, mode: str) -> None:
    """Both frameworks, sync, async and streamed, decide as the bare engine does, and charge."""
    found = record(framework, mode, case)
    expected = record("engine", mode, case)

    assert case.action == found["attempts"][0]["action"]
    assert seen(expected) == seen(found)
    check_charged(found, case.purposes)


@asking
def test_charges_when_the_ledger_forgets_them(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check has power: a ledger that drops a policy's calls is noticed."""
    monkeypatch.setattr(Ledger, "_charge", lambda *_: None)
    with pytest.raises(AssertionError):
        check_charged(record("langchain", "invoke", case), case.purposes)


@modes
@asking
def test_trace_when_a_policy_asks_models_in_langchain(case: Case, mode: str) -> None:
    """Each call that a policy makes is a run below the cascade's own run."""
    told = Recording()
    found = record("langchain", mode, case, {"callbacks": [told]})
    (root,) = [run for run in told.runs.values() if run.parent is None]
    asked = sorted(call["name"] for a in found["attempts"] for call in a["calls"])
    tiers = sorted(a["name"] for a in found["attempts"] if a["action"] != "skip")

    assert "CascadeLLM" == root.name
    assert sorted(asked + tiers) == sorted(
        run.name for run in told.models if run.run_id != root.run_id
    )
    for run in told.models:
        above = run
        while above.parent is not None:
            above = told.runs[above.parent]
        assert above is root


@pytest.fixture
def spans() -> Iterator[Spans]:
    """Record every span of LlamaIndex."""
    dispatcher = get_dispatcher()
    before = list(dispatcher.span_handlers)
    handler = Spans(open_spans={}, completed_spans=[], dropped_spans=[])
    dispatcher.add_span_handler(handler)
    yield handler
    dispatcher.span_handlers = before


@modes
@asking
def test_trace_when_a_policy_asks_models_in_llamaindex(case: Case, mode: str, spans: Spans) -> None:
    """Each call that a policy makes is a span below the cascade's own span."""
    found = record("llamaindex", mode, case)
    asked = sum(len(a["calls"]) for a in found["attempts"])
    tiers = sum(a["action"] != "skip" for a in found["attempts"])
    inner = spans.named("LocalLLM.")

    assert asked + tiers == len(inner)
    for span in inner:
        assert spans.ancestors(span)[-1].startswith("CascadeLLM.")
