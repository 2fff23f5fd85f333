"""Agents whose steps are answered by different providers, through their real clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from cascadellm import ToolCall
from cascadellm.testing import FakeModel
from langchain_cascade import CascadeLLM, Tier, Valid
from tests.dropin import lc_agents as agents
from tests.dropin import lc_programs as programs
from tests.dropin.lc_programs import Program
from tests.dropin.lc_watch import run_everywhere
from tests.langchain.lc_openai import OpenAIFake, chat_openai
from tests.langchain.lc_tools import CHOW
from tests.servers.anthropic_server import AnthropicServer

anthropic = pytest.importorskip("langchain_anthropic")

pytestmark = [
    pytest.mark.dropin,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"),
]

DRAFT = "Zebra zonk quagga."
ANSWER = "Four it certainly is."
CALL = ToolCall("add", {"a": 2, "b": 2}, id="call_1")
BAD_CALL = ToolCall("add", {"a": "zebra", "b": "quagga"})
PERSON = {"age": 41, "home": "Orla", "name": "Ada"}
add = programs.add


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close what a test opens."""
    with ExitStack() as opened:
        yield opened


def answered(messages: Any) -> bool:
    """Return whether a tool's result stands in a conversation of any provider's form."""
    told = json.dumps(messages, default=str)
    return '"role": "tool"' in told or "tool_result" in told


def calls(messages: Any) -> Any:
    """Call the tool, then answer."""
    return ANSWER if answered(messages) else CALL


def claude(reply: Any, stack: ExitStack) -> Tier:
    """Return a real `ChatAnthropic` whose server answers by a rule."""
    rule = reply if callable(reply) else lambda messages: reply
    server = stack.enter_context(AnthropicServer(rule))
    model = anthropic.ChatAnthropic(
        model="claude-fake", api_key="none", base_url=server.url, max_retries=0
    )
    return Tier(model, name="large")


def gpt(reply: Any, stack: ExitStack) -> Tier:
    """Return a real `ChatOpenAI` whose transport answers by a rule."""
    rule = reply if callable(reply) else lambda messages: reply

    def answer(request: Any) -> Any:
        said = rule(json.loads(request.content)["messages"])
        if isinstance(said, ToolCall):
            return OpenAIFake(tool_call=(said.name, dict(said.arguments or {})))(request)
        return OpenAIFake(said)(request)

    return Tier(chat_openai(answer), name="large")


CASES: dict[str, tuple[Program, Any, Any, Any, str]] = {
    "chain": (programs.chain("2 + 2?"), ANSWER, DRAFT, CHOW, ANSWER),
    "agent": (agents.agent("tools", [add], "2 + 2?"), calls, DRAFT, CHOW, ANSWER),
    "agent-valid": (agents.agent("tools", [add], "2 + 2?"), calls, BAD_CALL, Valid(), ANSWER),
    "graph": (agents.tool_graph([add], "2 + 2?"), calls, DRAFT, CHOW, ANSWER),
    "structured": (
        programs.structured("pydantic", "Ada?", raw=True),
        ToolCall("Person", PERSON),
        ToolCall("Person", {"name": "zebra"}),
        Valid(),
        json.dumps(PERSON, sort_keys=True),
    ),
    **{
        f"tools-{form}": (
            programs.bound_tools(form, "2 + 2?", tool_choice="any"),
            CALL,
            BAD_CALL,
            Valid(),
            '[["add", {"a": 2, "b": 2}]]',
        )
        for form in ("function", "openai", "anthropic")
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_program_runs_alike_with_claude_as_its_large_tier(case: str, stack: ExitStack) -> None:
    """Same answer and decisions in every way through Anthropic's client; nothing leaks."""
    program, good, bad, policy, answer = CASES[case]

    def build() -> CascadeLLM:
        small = FakeModel(bad, name="small", logprob=-2.0)
        return CascadeLLM([small, claude(good, stack)], policy)

    text, found = run_everywhere(program.ways, build, never=("zebra",))
    assert answer == text
    assert {"large"} == {name for name, *_ in found}


@pytest.mark.parametrize("writer", ["small", "large"])
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_an_agents_steps_are_answered_by_different_tiers(
    provider: str, writer: str, stack: ExitStack
) -> None:
    """One tier calls the tool, the other reads call and result in its own form and answers."""

    def small(messages: Any) -> Any:
        if answered(messages):
            return DRAFT if writer == "small" else ANSWER
        return CALL if writer == "small" else BAD_CALL

    def build() -> CascadeLLM:
        hosted = {"openai": gpt, "anthropic": claude}[provider](calls, stack)
        policy = Valid() | (lambda answer: "zonk" in answer.text)
        return CascadeLLM([FakeModel(small, name="small"), hosted], policy)

    program = agents.agent("mixed", [add], "2 + 2?")
    text, found = run_everywhere(program.ways, build, never=("zebra",))
    assert ANSWER == text
    assert {"small", "large"} == {name for name, *_ in found}
