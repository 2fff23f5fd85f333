"""The shared scenarios through every way to call a LangChain chat model."""

from __future__ import annotations

import asyncio
import functools
import operator
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration

from cascadellm import record_cascade
from langchain_cascade import CascadeLLM
from tests.scenarios import SCENARIOS, Scenario


async def _all(chunks: Any) -> list[Any]:
    return [chunk async for chunk in chunks]


def _sum(chunks: list[Any]) -> Any:
    return functools.reduce(operator.add, chunks)


PATHS: dict[str, Callable[[Any, str, dict[str, Any]], Any]] = {
    "invoke": lambda llm, text, kw: llm.invoke(text, **kw),
    "ainvoke": lambda llm, text, kw: asyncio.run(llm.ainvoke(text, **kw)),
    "stream": lambda llm, text, kw: _sum(list(llm.stream(text, **kw))),
    "astream": lambda llm, text, kw: _sum(asyncio.run(_all(llm.astream(text, **kw)))),
    "batch": lambda llm, text, kw: llm.batch([text, text], **kw)[1],
    "abatch": lambda llm, text, kw: asyncio.run(llm.abatch([text, text], **kw))[1],
}


def _call(scenario: Scenario, path: str) -> tuple[Any, Any, Exception | None, list[Any]]:
    models = scenario.models()
    llm: Any = CascadeLLM(models, scenario.policy, **scenario.options)
    if scenario.tools:
        llm = llm.bind_tools(list(scenario.tools))
    kwargs = {} if scenario.pin is None else {"model": scenario.pin}
    with record_cascade() as recorder:
        try:
            message, raised = PATHS[path](llm, scenario.question, kwargs), None
        except Exception as error:
            message, raised = None, error
    return message, recorder.traces[-1], raised, models


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_scenario(scenario: Scenario, path: str) -> None:
    """Every path gives the scenario's answer, tier, actions and codes, or raises its error."""
    message, trace, raised, _ = _call(scenario, path)
    assert type(raised) is (scenario.raises or type(None))
    assert trace.answered_by == scenario.answered_by
    assert tuple(attempt.action for attempt in trace.attempts) == scenario.actions
    assert tuple(attempt.code for attempt in trace.attempts) == scenario.codes
    assert trace.escalated == scenario.escalated
    if raised is None:
        record = message.response_metadata["cascade"]
        assert message.text == scenario.text
        assert record["answered_by"] == scenario.answered_by
        assert [a["action"] for a in record["attempts"]] == list(scenario.actions)
        made = [(call["name"], call["args"]) for call in message.tool_calls]
        assert made == [(name, dict(arguments)) for name, arguments in scenario.tool_calls]


@pytest.mark.parametrize("path", ["ainvoke", "stream", "astream", "batch", "abatch"])
@pytest.mark.parametrize(
    "scenario", [s for s in SCENARIOS if s.raises is None], ids=lambda s: s.name
)
def test_paths_are_equal(scenario: Scenario, path: str) -> None:
    """Content, usage, metadata and the tiers' keyword arguments are those of `invoke`."""
    expected, _, _, asked = _call(scenario, "invoke")
    message, _, _, models = _call(scenario, path)
    assert message.content == expected.content
    assert message.usage_metadata == expected.usage_metadata
    assert message.additional_kwargs == expected.additional_kwargs
    assert _timeless(message) == _timeless(expected)
    assert {str(m.calls[-1:]) for m in models} == {str(m.calls[-1:]) for m in asked}


def _timeless(message: AIMessage) -> dict[str, Any]:
    metadata = dict(message.response_metadata)
    record = dict(metadata.pop("cascade"))
    record.pop("latency_s")
    record["attempts"] = [
        {k: v for k, v in attempt.items() if k not in ("latency_s", "first_token_s")}
        for attempt in record["attempts"]
    ]
    return {**metadata, "cascade": record}


def test_the_matrix_notices_a_path_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parity check fails when one path decides without the plan (mutation)."""

    def skips_the_cascade(self: CascadeLLM, messages: Any, *_: Any, **__: Any) -> Any:
        message = self.engine.last.invoke(messages)
        yield from ()
        raise AssertionError(ChatGeneration(message=message))

    monkeypatch.setattr(CascadeLLM, "_stream", skips_the_cascade)
    with pytest.raises((AssertionError, IndexError)):
        test_scenario(SCENARIOS[0], "stream")
