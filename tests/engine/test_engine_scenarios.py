"""The scenario list through the bare engine, in the four ways that adapters run it."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest

from cascadellm import Cascade, Request, Tier
from cascadellm.events import Failed
from cascadellm.testing import EventRecorder
from tests.engine.running import MODES, run
from tests.scenarios import SCENARIOS, Scenario


def build(scenario: Scenario) -> tuple[Cascade, list[Any], Request]:
    """Return the scenario's cascade, its fakes and its request."""
    models = scenario.models()
    tiers = [Tier(model, name=model.name) for model in models]
    cascade = Cascade(tiers, scenario.policy, **scenario.options)
    request = Request(
        [{"role": "user", "content": scenario.question}], scenario.question, tools=scenario.tools
    )
    return cascade, models, request


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_scenario(scenario: Scenario, mode: str) -> None:
    """Text, tier, attempts and codes are those listed, on every path."""
    cascade, models, request = build(scenario)
    told = EventRecorder()
    if scenario.raises is not None:
        with pytest.raises(scenario.raises):
            run(cascade, mode, request, [told], pin=scenario.pin)
        trace = told.of(Failed)[0].trace
    else:
        outcome = run(cascade, mode, request, [told], pin=scenario.pin)
        trace = outcome.trace
        assert scenario.text == outcome.answer.text
        calls = tuple((c.name, dict(c.arguments or {})) for c in outcome.answer.tool_calls)
        assert tuple((n, dict(a)) for n, a in scenario.tool_calls) == calls

    assert scenario.answered_by == trace.answered_by
    assert scenario.actions == tuple(a.action for a in trace.attempts)
    assert scenario.codes == tuple(a.code for a in trace.attempts)
    assert scenario.escalated == trace.escalated
    asked = [a.name for a in trace.attempts if a.action != "skip"]
    assert asked == [model.name for model in models for _ in model.calls]
    json.dumps(trace.to_dict(), allow_nan=False)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_scenario_asks_every_tier_alike(scenario: Scenario) -> None:
    """All four paths ask the same tiers with the same messages and arguments."""
    seen = []
    for mode in MODES:
        cascade, models, request = build(scenario)
        with contextlib.suppress(*([scenario.raises] if scenario.raises else [])):
            run(cascade, mode, request, pin=scenario.pin)
        seen.append([(model.name, model.calls) for model in models])

    assert seen[0] == seen[1] == seen[2] == seen[3]
