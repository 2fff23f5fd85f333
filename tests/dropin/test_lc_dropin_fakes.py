"""LangChain programs that know nothing of cascades, on rule-based tiers and a real client."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from langchain.agents.middleware import (
    HumanInTheLoopMiddleware,
    ModelCallLimitMiddleware,
    ModelRetryMiddleware,
    SummarizationMiddleware,
    TodoListMiddleware,
    ToolCallLimitMiddleware,
)
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk

from cascadellm import ToolCall
from cascadellm.testing import FakeModel
from langchain_cascade import CascadeLLM, Tier, Valid, guard, tracing
from tests.dropin import lc_agents as agents
from tests.dropin import lc_programs as programs
from tests.dropin.lc_programs import Program
from tests.dropin.lc_watch import run_everywhere
from tests.langchain.lc_openai import OpenAIFake, chat_openai
from tests.langchain.lc_tools import CHOW

pytestmark = [
    pytest.mark.dropin,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"),
]

FACTS = (
    "Paris is the capital of France.",
    "Rome is the capital of Italy.",
    "Ada works as a baker.",
)
STORE = programs.store_of(FACTS)
ASKED = "What is the capital of France?"
DRAFT = "Zebra zonk quagga."
ANSWER = "Paris it certainly is."
PERSON = {"age": 41, "home": "Orla", "name": "Ada"}
WRITTEN = json.dumps(PERSON, sort_keys=True)
GOOD = ToolCall("Person", PERSON, id="call_9")
BAD = ToolCall("Person", {"name": "zebra", "age": "quagga"})
CALL = ToolCall("add", {"a": 2, "b": 2}, id="call_1")
BAD_CALL = ToolCall("add", {"a": "zebra", "b": "quagga"})
RAG = "Answer from the context.\n\n{context}\n\nQuestion: {question}"
add = programs.add


def results(messages: Any) -> int:
    """Return how many tool results a conversation holds."""
    return sum(message["role"] == "tool" for message in messages)


def calls(messages: Any) -> Any:
    """Call the tool, then answer."""
    return ANSWER if results(messages) else CALL


def fills_in(messages: Any) -> Any:
    """Call the tool, then the schema."""
    return GOOD if results(messages) else CALL


def writes(messages: Any) -> Any:
    """Call the tool, then write the object as text."""
    return WRITTEN if results(messages) else CALL


@dataclass(frozen=True)
class Case:
    """A program, what its tiers say, and the policy that decides.

    Attributes:
        program: The program.
        good: What a tier says that is accepted; text, a call, or a rule.
        bad: What the small tier says when its answer must be rejected.
        policy: The deferral policy.
        answer: The program's final answer.
        name: Distinguishes cases of one program.
    """

    program: Program
    good: Any = ANSWER
    bad: Any = DRAFT
    policy: Any = CHOW
    answer: str = ANSWER
    name: str = ""

    def __str__(self) -> str:
        return self.program.name + self.name


def _objects() -> Iterator[Case]:
    for schema in programs.SCHEMAS:
        called = ToolCall("PersonDict", PERSON) if schema == "typed-dict" else GOOD
        for raw in (False, True):
            program = programs.structured(schema, "Ada?", raw=raw)
            yield Case(program, called, BAD, Valid(), WRITTEN)
        for method in ("json_schema", "json_mode"):
            program = programs.structured(schema, "Ada?", raw=True, method=method)
            yield Case(program, WRITTEN, "zebra {", Valid(), WRITTEN)


def _agents() -> Iterator[Case]:
    yield Case(agents.agent("tools", [add], "2 + 2?"), calls)
    yield Case(agents.agent("tools", [add], "2 + 2?"), calls, BAD_CALL, Valid(), name="-valid")
    for kind, rule in ((ToolStrategy, fills_in), (ProviderStrategy, writes)):
        program = agents.agent(
            kind.__name__, [add], "2 + 2?", response_format=kind(programs.Person)
        )
        yield Case(program, rule, answer=WRITTEN)
    yield Case(
        agents.agent("schema", [add], "2 + 2?", response_format=programs.Person),
        fills_in,
        answer=WRITTEN,
    )
    yield Case(
        agents.agent(
            "middleware",
            [add],
            "2 + 2?",
            lambda llm: [
                ModelRetryMiddleware(),
                ModelCallLimitMiddleware(run_limit=5),
                ToolCallLimitMiddleware(run_limit=5),
                TodoListMiddleware(),
            ],
        ),
        calls,
    )
    yield Case(
        agents.agent(
            "summarized",
            [add],
            "2 + 2?",
            lambda llm: [
                SummarizationMiddleware(llm, trigger=("messages", 3), keep=("messages", 2))
            ],
        ),
        calls,
    )
    yield Case(agents.interrupted([add], "2 + 2?", HumanInTheLoopMiddleware({"add": True})), calls)


def _bound() -> Iterator[Case]:
    for form in programs.FORMS:
        name = "Add" if form == "pydantic" else "add"
        good, bad = (ToolCall(name, {"a": a, "b": 2}, id="call_1") for a in (2, "zebra"))
        answer = '[["add", {"a": 2, "b": 2}]]' if name == "add" else '{"a": 2, "b": 2}'
        program = programs.bound_tools(form, "2 + 2?", tool_choice="any")
        yield Case(program, good, bad, Valid(), answer)


CASES = [
    Case(programs.chain(ASKED)),
    Case(programs.messages(ASKED)),
    Case(programs.parallel(ASKED)),
    Case(programs.routed(ASKED)),
    Case(programs.parsed_json(ASKED), WRITTEN, answer=WRITTEN),
    Case(programs.retrieval(STORE, ASKED, RAG)),
    Case(programs.sourced(STORE, ASKED, RAG)),
    Case(programs.condensed(STORE, ASKED, RAG)),
    *_objects(),
    *_bound(),
    Case(agents.chat_graph(ASKED, "Are you sure?")),
    Case(agents.tool_graph([add], "2 + 2?"), calls),
    *_agents(),
]


def ruled(reply: Any) -> Callable[[Any], Any]:
    """Return a rule from a reply that may be one already."""
    return reply if callable(reply) else lambda messages: reply


def hosted(reply: Any) -> Any:
    """Return a real `ChatOpenAI` whose server answers by a rule."""
    rule = ruled(reply)

    def answer(request: httpx.Request) -> httpx.Response:
        said = rule(json.loads(request.content)["messages"])
        if isinstance(said, ToolCall):
            return OpenAIFake(tool_call=(said.name, dict(said.arguments or {})))(request)
        return OpenAIFake(said)(request)

    return chat_openai(answer)


def tiers_of(case: Case, kind: str) -> list[Any]:
    """Return the tiers of a case: the small one accepted, or rejected before another one."""
    if kind == "accepted":
        return [FakeModel(case.good, name="small"), FakeModel(DRAFT, name="large")]
    small = FakeModel(case.bad, name="small", logprob=-2.0)
    if kind == "escalated":
        return [small, FakeModel(case.good, name="large")]

    return [small, Tier(hosted(case.good), name="large")]


@pytest.mark.parametrize("kind", ["accepted", "escalated", "hosted"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_program_runs_alike_in_every_way(case: Case, kind: str) -> None:
    """Same answer and decisions in every way, no draft shown, tokens exact, decisions traced."""
    text, found = run_everywhere(
        case.program.ways, lambda: CascadeLLM(tiers_of(case, kind), case.policy), never=("zebra",)
    )
    assert {"small" if kind == "accepted" else "large"} == {name for name, *_ in found}
    assert case.answer == text


# -- the checker notices --

STREAMED = programs.chain(ASKED)
AGENT = agents.agent("tools", [add], "2 + 2?")


def doubted() -> CascadeLLM:
    """Return a cascade whose first draft is rejected."""
    small = FakeModel(DRAFT, name="small", logprob=-2.0)
    return CascadeLLM([small, FakeModel(ANSWER, name="large")], CHOW)


class Leaky(CascadeLLM):
    """Shows the draft before it decides."""

    def _stream(self, messages: Any, *rest: Any, **kwargs: Any) -> Any:
        yield ChatGenerationChunk(message=AIMessageChunk(content=DRAFT))
        yield from super()._stream(messages, *rest, **kwargs)


@pytest.mark.parametrize("way", ["stream", "stream messages"])
def test_a_leaked_draft_is_noticed(way: str) -> None:
    """A draft that reaches the caller's stream is found, in a chain and in an agent."""
    ways = {way: (STREAMED if way == "stream" else AGENT).ways[way]}
    with pytest.raises(AssertionError, match="of the rejected draft"):
        run_everywhere(ways, lambda: Leaky(doubted().tiers, CHOW))


def test_a_draft_shown_to_callbacks_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that hears a tier's own tokens is found."""
    monkeypatch.setattr(tracing, "muted", list)
    with pytest.raises(AssertionError, match="in callbacks"):
        run_everywhere({"stream messages": AGENT.ways["stream messages"]}, doubted)


def test_tokens_counted_twice_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A usage that stays on the cascade's own run is found."""

    def keeps(self: Any, run: Any) -> None:
        run.extra["metadata"] = {**run.metadata, "usage_metadata": {"total_tokens": 14}}
        self._update_run_single(run)

    monkeypatch.setattr(guard.OuterTracer, "_on_llm_end", keeps)
    with pytest.raises(AssertionError, match="LangSmith says"):
        run_everywhere({"invoke": STREAMED.ways["invoke"]}, doubted)


def test_a_missing_decision_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decision without its run is found."""
    monkeypatch.setattr(tracing, "DECISION", "hidden")
    with pytest.raises(AssertionError, match="LangSmith shows the decisions"):
        run_everywhere({"invoke": STREAMED.ways["invoke"]}, doubted)


def test_a_way_that_decides_otherwise_is_noticed() -> None:
    """A policy that flips from one way to the next is found."""
    flips = itertools.cycle([True, False])

    def build() -> CascadeLLM:
        defer = next(flips)
        return CascadeLLM(doubted().tiers, lambda answer: defer)

    with pytest.raises(AssertionError, match="small"):
        run_everywhere(STREAMED.ways, build)
