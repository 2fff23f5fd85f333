"""The direct path: the same answers and records as with a handler, without what nobody sees."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.tracers.context import collect_runs

from cascadellm import record_cascade
from langchain_cascade import CascadeLLM, direct
from langchain_cascade.tracing import Tracing
from tests.langchain.lc_tools import CHOW, PATHS, Recording, cascade, fakes
from tests.langchain.test_lc_scenarios import _timeless
from tests.scenarios import SCENARIOS, Scenario


def _outcome(scenario: Scenario, path: str, config: dict[str, Any]) -> Any:
    models = scenario.models()
    llm: Any = CascadeLLM(models, scenario.policy, **scenario.options)
    if scenario.tools:
        llm = llm.bind_tools(list(scenario.tools))
    if scenario.pin is not None:
        llm = llm.bind(model=scenario.pin)
    with record_cascade() as recorder:
        try:
            message = PATHS[path](llm, scenario.question, config)
        except Exception as error:
            return repr(error), [a.action for a in recorder.traces[0].attempts]
    shown = message.model_dump(exclude={"id", "response_metadata"})
    return shown, _timeless(message), [str(model.calls) for model in models]


@pytest.mark.parametrize("path", ["invoke", "ainvoke"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_both_paths_leave_equal_records(scenario, path):
    """Message, record and the tiers' calls are those of a call with a handler."""
    assert _outcome(scenario, path, {"callbacks": [Recording()]}) == _outcome(scenario, path, {})


def _taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    taken: list[str] = []
    original = direct.answered

    def noting(*arguments: Any) -> Any:
        taken.append("direct")
        return original(*arguments)

    monkeypatch.setattr(direct, "answered", noting)
    return taken


@pytest.mark.parametrize("path", ["invoke", "ainvoke"])
def test_it_is_taken_when_nobody_listens(monkeypatch, path):
    """Without handlers no run, context or decision run is built."""
    taken = _taken(monkeypatch)
    monkeypatch.setattr(Tracing, "__init__", None)
    assert "large says so" == PATHS[path](cascade(), "hi", {}).text
    assert ["direct"] == taken


class _Handler(BaseCallbackHandler):
    pass


@pytest.mark.parametrize(
    "options",
    [
        {"callbacks": [_Handler()]},
        {"rate_limiter": InMemoryRateLimiter(requests_per_second=1000)},
        {"cache": InMemoryCache()},
        {"output_version": "v1"},
        {"streaming": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_it_is_not_taken_when_something_wants_the_run(monkeypatch, options):
    """Callbacks, a rate limiter, a cache and output versions go LangChain's way."""
    taken = _taken(monkeypatch)
    assert "large says so" == cascade(options=options).invoke("hi").text
    assert not taken


def test_it_is_not_taken_under_a_collector_or_a_global_cache(monkeypatch):
    """Handlers from context variables and a global cache count as listeners."""
    taken = _taken(monkeypatch)
    with collect_runs() as runs:
        cascade().invoke("hi")
    assert 1 == len(runs.traced_runs)
    set_llm_cache(InMemoryCache())
    try:
        cascade().invoke("hi")
    finally:
        set_llm_cache(None)
    cascade().invoke("hi", {"callbacks": [_Handler()]})
    assert not taken


def test_the_run_id_of_the_config_names_the_message():
    """An id given in the config is the message's, on both paths."""
    import uuid

    run_id = uuid.uuid4()
    message = cascade().invoke("hi", {"run_id": run_id})
    assert f"lc_run--{run_id}-0" == message.id


def test_it_works_inside_a_running_loop():
    """A sync call inside a running event loop takes the same decision."""

    async def inside() -> Any:
        return cascade().invoke("hi")

    assert "large says so" == asyncio.run(inside()).text


def test_a_difference_is_noticed(monkeypatch):
    """The comparison fails when the direct path loses something (mutation)."""
    monkeypatch.setattr(direct, "answered", lambda outcome, config: outcome.answer.native)
    scenario = SCENARIOS[0]
    with pytest.raises(KeyError, match="cascade"):
        _outcome(scenario, "invoke", {})
    small, large = fakes()
    assert "cascade" not in CascadeLLM([small, large], CHOW).invoke("hi").response_metadata
