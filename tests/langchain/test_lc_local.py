"""LocalChatModel, and a cascade over the demo pair: real models behind LangChain's interface."""

from __future__ import annotations

import asyncio
import functools
import operator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_tests.integration_tests import ChatModelIntegrationTests

from cascadellm.answer import Answer, TokenScore, ToolCall
from cascadellm.testing import FakeModel
from langchain_cascade import (
    CascadeLLM,
    ConfigurationError,
    LocalChatModel,
    ModelError,
    SpeculativeCascade,
    Threshold,
    TokenV3,
    mean_entropy,
    mean_logprob,
)
from langchain_cascade.convert import answer_of, chat_dicts
from tests.langchain.lc_tools import CHOW, PATHS, fakes

demo = pytest.importorskip("cascadellm.demo")
torch = pytest.importorskip("torch")


@functools.cache
def pair() -> tuple[Any, Any]:
    """Return the demo models, loaded once."""
    torch.set_num_threads(1)
    return demo.load("small"), demo.load("large")


def question(skill: str | None = None, seed: int = 3) -> Any:
    """Return a held-out question."""
    return demo.questions(1, seed=seed, skill=skill)[0]


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def test_messages_become_chat_dicts():
    """System, tool calls and tool results reach a local model in OpenAI's form."""
    asked = [
        SystemMessage("Be brief."),
        HumanMessage("2 + 3?"),
        AIMessage("", tool_calls=[{"name": "add", "args": {"a": 2, "b": 3}, "id": "c1"}]),
        ToolMessage("5", tool_call_id="c1"),
    ]
    model = FakeModel("5", name="m")
    LocalChatModel(model).invoke(asked)
    system, user, call, result = model.calls[0][0]
    assert {"role": "system", "content": "Be brief."} == system
    assert {"role": "user", "content": "2 + 3?"} == user
    assert "add" == call["tool_calls"][0]["function"]["name"]
    assert ("tool", "5", "c1") == (result["role"], result["content"], result["tool_call_id"])


def test_an_answer_survives_the_round_trip():
    """Tokens with entropy, alternatives and parts, spans and counters pass through the message."""
    answer = Answer(
        "ab",
        tokens=(
            TokenScore("hm", -0.3, part="reasoning"),
            TokenScore("a", -0.1, top=(("a", -0.1), ("x", -3.0)), entropy=0.2),
            TokenScore("b", -0.2, entropy=0.4),
        ),
        reasoning="hm",
        finish_reason="stop",
        spans=((0, 1, "small"), (1, 2, "large")),
        speculation={"accepted": 1},
    )
    message = LocalChatModel(FakeModel(answer, name="m")).invoke("hi")
    read = answer_of(message)
    assert answer.tokens == read.tokens
    assert (answer.spans, answer.speculation, "hm") == (
        read.spans,
        read.speculation,
        read.reasoning,
    )
    assert mean_entropy(answer.over("answer")) == mean_entropy(read.over("answer"))


def test_settings_of_the_call_win():
    """Settings given per call win over the model's, and unknown names reach the local model."""
    model = FakeModel("x", name="m")
    chat = LocalChatModel(model, temperature=0.5, seed=1, max_tokens=9, stop=["A"])
    chat.invoke("hi")
    chat.invoke("hi", temperature=0.7, max_tokens=3, stop=["B"], strict=True, colour="red")
    first, second = (arguments for _, arguments in model.calls)
    assert {"temperature": 0.5, "seed": 1, "max_new_tokens": 9, "stop": ["A"]} == first
    assert {"temperature": 0.7, "max_new_tokens": 3, "stop": ["B"]}.items() <= second.items()
    assert "red" == second["colour"]
    assert "strict" not in second


def test_tool_choice_leaves_the_named_tool_visible():
    """A named choice shows one tool, `none` shows none."""

    def other(x: int) -> int:
        """Do something else."""
        return x

    model = FakeModel("x", name="m")
    chat = LocalChatModel(model)
    for choice in ("add", "none", None):
        chat.bind_tools([add, other], tool_choice=choice).invoke("hi")
    shown = [[t["function"]["name"] for t in a.get("tools", [])] for _, a in model.calls]
    assert [["add"], [], ["add", "other"]] == shown


def test_a_broken_tool_call_stays_visible():
    """Arguments that are no JSON become an invalid tool call, never a silent repair."""
    model = FakeModel(ToolCall("add", None, raw='{"a": 2, "b"'), name="m")
    message = LocalChatModel(model).invoke("hi")
    (broken,) = message.invalid_tool_calls
    assert ('{"a": 2, "b"', []) == (broken["args"], message.tool_calls)
    assert answer_of(message).tool_calls[0].arguments is None


def test_what_is_no_local_model_is_refused():
    """A wrong model or path is a typed error that says what to do."""
    with pytest.raises(ConfigurationError, match="expects a LocalModel"):
        LocalChatModel(object())
    with pytest.raises(ConfigurationError, match="belong to a path"):
        LocalChatModel(fakes()[0], model_kwargs={"device": "cpu"})
    with pytest.raises(ModelError):
        LocalChatModel("/no/such/folder")


def test_content_blocks_are_read_as_text():
    """A list of text blocks is one text for a local model."""
    blocks = HumanMessage([{"type": "text", "text": "2 + 2?"}])
    assert "2 + 2?" in str(chat_dicts([blocks]))


# --- the demo pair ---


@pytest.mark.parametrize("path", PATHS)
def test_a_real_model_answers_on_every_path(path):
    """The demo model's answer is the same on every path, with logprobs and exact usage."""
    asked = question().question
    chat = LocalChatModel(pair()[0], max_tokens=48)
    expected = pair()[0].generate([{"role": "user", "content": asked}], max_new_tokens=48)
    message = PATHS[path](chat, asked, {})
    read = answer_of(message)
    assert expected.text == read.text
    assert expected.usage == read.usage
    assert mean_logprob(expected) == pytest.approx(mean_logprob(read), abs=1e-6)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("threshold", "who"), [(-1e9, "small"), (0.1, "large")])
def test_the_threshold_decides_between_real_models(path, threshold, who):
    """Below every score the small model answers, above every score the large one."""
    small, large = pair()
    llm = CascadeLLM([small, large], Threshold(mean_logprob, threshold), stop=["\n\n\n"])
    message = PATHS[path](llm, question().question, {})
    record = message.response_metadata["cascade"]
    assert who == record["answered_by"]
    assert record["attempts"][0]["score"] < 0
    alone = {"small": small, "large": large}[who]
    expected = alone.generate([{"role": "user", "content": question().question}])
    assert expected.text == message.text


def test_a_chain_over_the_pair():
    """`prompt | cascade` answers from the pair, streamed or not."""
    prompt = ChatPromptTemplate.from_messages([("user", "{q}")])
    chain = prompt | CascadeLLM(list(pair()), CHOW)
    asked = {"q": question().question}
    whole = functools.reduce(operator.add, chain.stream(asked))
    assert chain.invoke(asked).text == whole.text


def test_concurrent_calls_of_one_loaded_pair():
    """Six concurrent calls over one loaded pair answer like six calls one by one."""
    llm = CascadeLLM(list(pair()), CHOW)
    asked = [one.question for one in demo.questions(6, seed=5)]
    expected = [llm.invoke(one).text for one in asked]

    async def together() -> list[str]:
        return [message.text for message in await llm.abatch(asked)]

    assert expected == asyncio.run(together())


def test_a_token_level_boundary_has_provenance():
    """A speculative boundary answers with spans per tier, and is one run of one pair."""
    small, large = pair()
    llm = CascadeLLM([small, large], SpeculativeCascade(TokenV3(alpha=0.3), gamma=4))
    message = llm.invoke(question().question)
    record = message.response_metadata["cascade"]
    assert "small+large" == record["answered_by"]
    assert 0 == record["spans"][0][0]
    assert len(message.text) == record["spans"][-1][1]
    assert record["speculation"]["drafted"] >= record["speculation"]["accepted"]
    wrapped = CascadeLLM([LocalChatModel(small), LocalChatModel(large)], llm.policy)
    assert message.text == wrapped.invoke(question().question).text


def test_an_agent_runs_on_the_pair():
    """An agent over the pair ends with an answer and a record, whatever the models decide."""
    agent = create_agent(CascadeLLM(list(pair()), CHOW), tools=[add])
    state = agent.invoke({"messages": [("user", "What is 12 + 5?")]}, {"recursion_limit": 8})
    assert "cascade" in state["messages"][1].response_metadata


class TestDemoPair(ChatModelIntegrationTests):
    """The standard suite's parts that tiny models can do: talk, stream, batch, count, stop."""

    @property
    def chat_model_class(self) -> type[CascadeLLM]:
        return CascadeLLM

    @property
    def chat_model_params(self) -> dict[str, Any]:
        tiers = [LocalChatModel(model, max_tokens=24) for model in pair()]
        return {"tiers": tiers, "policy": CHOW, "tier_callbacks": False}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def model_override_value(self) -> str:
        return "large"
