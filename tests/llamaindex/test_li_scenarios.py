"""The shared scenario list, driven through the eight endpoints of the LlamaIndex adapter."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from cascadellm import record_cascade
from llamaindex_cascade import CascadeLLM
from tests.llamaindex.li_support import ENDPOINTS, ask, text_of
from tests.scenarios import SCENARIOS, Scenario


def _call(scenario: Scenario, endpoint: str) -> tuple[list[Any], CascadeLLM, list[Any], Any]:
    models = scenario.models()
    llm = CascadeLLM(models, scenario.policy, **scenario.options)
    kwargs: dict[str, Any] = {}
    if scenario.tools:
        kwargs["tools"] = [dict(tool) for tool in scenario.tools]
    if scenario.pin:
        kwargs["cascade_tier"] = scenario.pin
    with record_cascade() as recorder:
        try:
            chunks = asyncio.run(ask(llm, endpoint, scenario.question, **kwargs))
        except Exception as error:
            return [], llm, models, (recorder.traces, error)
    return chunks, llm, models, (recorder.traces, None)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_scenario_takes_the_same_decision_on_every_endpoint(
    scenario: Scenario, endpoint: str
) -> None:
    """Text, tier, record and error of a scenario do not depend on the endpoint."""
    chunks, _, models, (traces, error) = _call(scenario, endpoint)
    assert 1 == len(traces)
    trace = traces[0]
    assert scenario.actions == tuple(a.action for a in trace.attempts)
    assert scenario.codes == tuple(a.code for a in trace.attempts)
    assert scenario.answered_by == trace.answered_by
    asked = sum(a.action != "skip" for a in trace.attempts)
    assert asked == sum(len(model.calls) for model in models)
    if scenario.raises is not None:
        assert scenario.raises is type(error)
        return
    assert error is None, error
    last = chunks[-1]
    assert scenario.text == text_of(last)
    record = last.additional_kwargs["cascade"]
    assert trace.to_dict() == record == last.raw["cascade"]
    assert scenario.escalated == record["escalated"]
    json.dumps(record, allow_nan=False)
    if "stream" in endpoint:
        assert scenario.text == "".join(chunk.delta or "" for chunk in chunks)


@pytest.mark.parametrize("endpoint", ENDPOINTS[:4])
@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.tool_calls], ids=lambda s: s.name)
def test_scenario_tool_calls_are_read_back(scenario: Scenario, endpoint: str) -> None:
    """The accepted answer's tool calls are read back through the cascade."""
    chunks, llm, _, _ = _call(scenario, endpoint)
    calls = llm.get_tool_calls_from_response(chunks[-1])
    assert scenario.tool_calls == tuple((c.tool_name, c.tool_kwargs) for c in calls)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_scenario_gives_tiers_the_same_arguments_everywhere(scenario: Scenario) -> None:
    """What a tier is asked with does not depend on the endpoint (w5)."""
    seen = []
    for endpoint in ENDPOINTS:
        _, _, models, _ = _call(scenario, endpoint)
        seen.append([[(m, kwargs) for m, kwargs in model.calls] for model in models])
    assert all(one == seen[0] for one in seen)
