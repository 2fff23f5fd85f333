"""LlamaIndex programs that know nothing of cascades, on rule-based tiers and a real client."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.tools import FunctionTool

from cascadellm import ToolCall
from cascadellm.testing import FakeModel
from llamaindex_cascade import CascadeLLM, ReactParsable, Tier, Valid, observe, spans
from tests.dropin import li_programs as programs
from tests.dropin.li_programs import Program
from tests.dropin.li_watch import run_everywhere
from tests.llamaindex.li_support import CHOW, CLIENTS, openai
from tests.servers.openai_server import OpenAIServer, Said

# upstream's agents and OpenInference read pydantic's old parts
pytestmark = [
    pytest.mark.dropin,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

FACTS = (
    "Paris is the capital of France.",
    "Rome is the capital of Italy.",
    "Ada works as a baker.",
)
INDEX = programs.index_of(FACTS)
ASKED = "What is the capital of France?"
DRAFT = "Zebra zonk quagga."
ANSWER = "Paris it certainly is."
PERSON = {"name": "Ada", "age": 41, "home": "Orla"}
CHOICE = '[{"choice": 1, "reason": "capitals"}]'
PLAN = '```json\n{"items": [{"sub_question": "Capital of France?", "tool_name": "facts"}]}\n```'
GOOD = ToolCall("Person", PERSON)
CALL = ToolCall("add", {"a": 2, "b": 2}, id="call_1")
THOUGHT = 'Thought: I need a tool.\nAction: add\nAction Input: {"a": 2, "b": 2}'
BAD_THOUGHT = "Thought: zonk\nAction: add\nAction Input: zebra=quagga"
FINAL = f"Thought: I can answer without using any more tools.\nAnswer: {ANSWER}"


def add(a: int, b: int) -> int:
    """Add two whole numbers."""
    return a + b


ADD = FunctionTool.from_defaults(fn=add)


def told(messages: Any) -> str:
    """Return the text of a conversation, in the tiers' or in a provider's form."""
    return json.dumps(messages, default=str)


def chooses(messages: Any) -> Any:
    """Choose when asked to, else answer."""
    return CHOICE if "choice" in told(messages).lower() else ANSWER


def plans(messages: Any) -> Any:
    """Plan when asked to, else answer."""
    return PLAN if "sub_question" in told(messages) else ANSWER


def calls(messages: Any) -> Any:
    """Call the tool, then answer."""
    return ANSWER if any(m["role"] == "tool" for m in messages) else CALL


def fills_in(messages: Any) -> Any:
    """Call the tool, answer, then write the object that the agent asks for."""
    return GOOD if "according to the provided schema" in told(messages) else calls(messages)


def hands_off(messages: Any) -> Any:
    """Hand off to the second agent, which calls the tool and answers."""
    results = sum(m["role"] == "tool" for m in messages)
    steps = (ToolCall("handoff", {"to_agent": "two", "reason": "sums"}, id="call_0"), CALL, ANSWER)
    return steps[min(results, 2)]


def reacts(messages: Any) -> Any:
    """Think, act, and answer once there is an observation."""
    return FINAL if "Observation: 4" in told(messages) else THOUGHT


@dataclass(frozen=True)
class Case:
    """A program, what its tiers say, and the policy that decides.

    Attributes:
        program: The program.
        good: What a tier says that is accepted; text, a call, or a rule.
        bad: What the small tier says when its answer must be rejected.
        policy: The deferral policy.
        answer: The program's final answer, where it is one of the tier's texts.
    """

    program: Program
    good: Any = ANSWER
    bad: Any = DRAFT
    policy: Any = CHOW
    answer: str | None = ANSWER

    def __str__(self) -> str:
        return self.program.name


def _objects() -> Iterator[Case]:
    bad = ToolCall("Person", {"name": "zebra", "age": "quagga"})
    for made in (programs.structured, programs.structured_llm):
        yield Case(made(programs.Person, "Ada"), GOOD, bad, Valid(), json.dumps(PERSON))
    written = json.dumps(PERSON)
    yield Case(programs.parsed(programs.Person, "Ada"), written, DRAFT, Valid(), written)


def _selection(kind: str) -> Any:
    one = {"index": 1, "reason": "capitals"}

    def rule(messages: Any) -> Any:
        if "capitals" not in told(messages) or "about people" not in told(messages):
            return ANSWER
        if kind == "pydantic-multi":
            return ToolCall("MultiSelection", {"selections": [one]})
        return ToolCall("SingleSelection", one)

    return rule


CASES = [
    *(Case(programs.query_engine(INDEX, m, ASKED)) for m in ("compact", "refine")),
    Case(programs.query_engine(INDEX, "tree_summarize", ASKED)),
    Case(programs.settings_engine(INDEX, ASKED)),
    *(
        Case(programs.chat_engine(INDEX, mode, (ASKED, "And of Italy?")), answer=None)
        for mode in ("simple", "condense_question", "context", "condense_plus_context")
    ),
    Case(programs.agents("function", [ADD], "2 + 2?"), calls),
    Case(programs.agents("workflow", [ADD], "2 + 2?"), calls),
    Case(
        programs.agents("function", [ADD], "2 + 2?"),
        calls,
        ToolCall("add", {"a": "zebra", "b": "quagga"}),
        Valid(),
    ),
    Case(programs.agents("output-cls", [ADD], "2 + 2?"), fills_in, answer=json.dumps(PERSON)),
    Case(programs.agents("handoff", [ADD], "2 + 2?"), hands_off),
    Case(programs.agents("react", [ADD], "2 + 2?"), reacts, BAD_THOUGHT, ReactParsable()),
    *(Case(programs.router(INDEX, kind, ASKED), chooses) for kind in ("llm-single", "llm-multi")),
    *(
        Case(programs.router(INDEX, kind, ASKED), _selection(kind))
        for kind in ("pydantic-single", "pydantic-multi")
    ),
    Case(programs.sub_questions(INDEX, ASKED), plans),
    *_objects(),
    Case(programs.extractors(FACTS[:2]), answer=None),
]


def said(reply: Any) -> Said:
    """Return a reply in the form of the local server."""
    if isinstance(reply, ToolCall):
        return Said(tool_calls=[(reply.id or "c1", reply.name, json.dumps(reply.arguments))])
    return Said.text(reply)


def ruled(reply: Any) -> Callable[[Any], Any]:
    """Return a rule from a reply that may be one already."""
    return reply if callable(reply) else lambda messages: reply


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close what a test opens."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture(autouse=True)
def loop() -> Iterator[None]:
    """Close the event loop that upstream's `asyncio_run` would make and leave open."""
    made = asyncio.new_event_loop()
    asyncio.set_event_loop(made)
    yield
    for llm in CLIENTS:
        if llm._aclient is not None:
            made.run_until_complete(llm._aclient.close())
            llm._aclient = None
    made.run_until_complete(asyncio.sleep(0.01))
    asyncio.set_event_loop(None)
    made.close()


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Leave the global settings as they were."""
    before = Settings._llm, Settings._embed_model
    yield
    Settings._llm, Settings._embed_model = before


def tiers_of(case: Case, kind: str, stack: ExitStack) -> list[Any]:
    """Return the tiers of a case: the small one accepted, or rejected before another one."""
    if kind == "accepted":
        return [FakeModel(case.good, name="small"), FakeModel(DRAFT, name="large")]
    small = FakeModel(case.bad, name="small", logprob=-2.0)
    if kind == "escalated":
        return [small, FakeModel(case.good, name="large")]
    rule = ruled(case.good)
    server = stack.enter_context(OpenAIServer(lambda body: said(rule(body["messages"]))))
    usage = {"stream_options": {"include_usage": True}}
    return [small, Tier(openai(server, additional_kwargs=usage), name="large")]


@pytest.mark.parametrize("kind", ["accepted", "escalated", "hosted"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_program_runs_alike_in_every_way(case: Case, kind: str, stack: ExitStack) -> None:
    """Same answer and decisions in every way, no draft shown, tokens exact, decisions traced."""
    ways = dict(case.program.ways)
    if kind == "hosted" and case.program.name == "extractors":
        # extractors are async inside, and a provider's async client lives in one loop
        del ways["threads"]
    text, found = run_everywhere(
        ways, lambda: CascadeLLM(tiers_of(case, kind, stack), case.policy), never=("zebra",)
    )
    assert {"small" if kind == "accepted" else "large"} == {name for name, *_ in found}
    if case.answer is not None:
        assert case.answer == text


# -- the checker notices --

STREAMED = programs.query_engine(INDEX, "compact", ASKED)


def doubted() -> CascadeLLM:
    """Return a cascade whose first draft is rejected."""
    small = FakeModel(DRAFT, name="small", logprob=-2.0)
    return CascadeLLM([small, FakeModel(ANSWER, name="large")], CHOW)


class Leaky(CascadeLLM):
    """Shows the draft before it decides."""

    def stream_chat(self, messages: Any, **kwargs: Any) -> Any:
        accepted = list(super().stream_chat(messages, **kwargs))

        def chunks() -> Any:
            message = ChatMessage(role="assistant", content=DRAFT)
            yield ChatResponse(message=message, delta=DRAFT)
            yield from accepted

        return chunks()


def test_a_leaked_draft_is_noticed() -> None:
    """A draft that reaches the caller's stream is found."""
    made = doubted()
    ways = {"stream": STREAMED.ways["stream"]}
    with pytest.raises(AssertionError, match="of the rejected draft"):
        run_everywhere(ways, lambda: Leaky(made.tiers, CHOW))
    with pytest.raises(AssertionError, match="'zebra' is in"):
        run_everywhere(ways, lambda: Leaky(made.tiers, CHOW), never=("zebra",))


def test_tokens_counted_twice_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A response whose usage reaches the cascade's own span is found."""
    monkeypatch.setattr(observe, "event_copy", lambda response: response)
    with pytest.raises(AssertionError, match="the spans say"):
        run_everywhere({"sync": STREAMED.ways["sync"]}, doubted)


def test_a_missing_decision_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decision without its span is found."""
    monkeypatch.setattr(spans.Spans, "_policy", lambda self, tier: None)
    with pytest.raises(AssertionError, match="the spans show the decisions"):
        run_everywhere({"sync": STREAMED.ways["sync"]}, doubted)


def test_a_way_that_decides_otherwise_is_noticed() -> None:
    """A policy that flips from one way to the next is found."""
    flips = itertools.cycle([True, False])

    def build() -> CascadeLLM:
        defer = next(flips)
        return CascadeLLM(doubted().tiers, lambda answer: defer)

    with pytest.raises(AssertionError, match="small"):
        run_everywhere(STREAMED.ways, build)
