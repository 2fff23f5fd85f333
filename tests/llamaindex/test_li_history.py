"""What one provider wrote is read by every other; a table of writers and readers."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock, ThinkingBlock
from llama_index.core.llms import MockLLM
from llama_index.llms.openai import OpenAIResponses

from cascadellm.testing import FakeModel
from llamaindex_cascade import CascadeLLM, ConfigurationError, LocalLLM, Never
from llamaindex_cascade.chat_dicts import chat_dicts
from llamaindex_cascade.history import readable
from llamaindex_cascade.tier import TierBook
from tests.llamaindex.li_recorded import ANSWER, SAID, THOUGHT, WRITERS, history, open_turn
from tests.llamaindex.li_support import openai
from tests.servers.openai_server import OpenAIServer, Said

TURNS = {"closed": history, "open": open_turn}
both = pytest.mark.parametrize("turn", TURNS)
every_writer = pytest.mark.parametrize("writer", WRITERS)


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    """An OpenAI-compatible server that says yes."""
    with OpenAIServer(Said.text("Yes.")) as running:
        yield running


def _rendered(llm: Any, messages: list[ChatMessage]) -> list[ChatMessage]:
    """Return a conversation as a cascade's tier sees it."""
    book = TierBook()
    tier = book.enter(llm)
    return book.of(0, tier).render(messages)


def _says(payload: Any, *, kept: bool) -> None:
    """Raise unless text, calls and results are in a payload, and foreign thoughts are not."""
    text = str(payload)
    for part in (SAID, "lookup", "calc", "rain", "2+3", "wet", "5"):
        assert part in text
    if not kept:
        for sign in (THOUGHT, "rs_68a1", "EqQBCgIYAhIM", "fc_68a0"):
            assert sign not in text


def _check_chat(messages: list[dict[str, Any]]) -> None:
    """Raise unless Chat Completions would take these messages."""
    waiting: list[str] = []
    for message in messages:
        assert set(message) <= {"role", "content", "tool_calls", "tool_call_id", "name"}
        if message["role"] == "tool":
            waiting.remove(message["tool_call_id"])
        else:
            assert not waiting, "a call without its result"
        assert message["content"] is None or isinstance(message["content"], str)
        for call in message.get("tool_calls", ()):
            assert {"id", "type", "function"} == set(call)
            assert 0 < len(call["id"]) <= 40
            assert isinstance(call["function"]["arguments"], str)
            waiting.append(call["id"])
    assert not waiting


def _check_anthropic(messages: Any, *, own: bool, thinking: bool) -> None:
    """Raise unless Anthropic would take these messages."""
    used: list[str] = []
    for message in messages:
        blocks = message["content"]
        if message["role"] == "user":
            assert used == [b["tool_use_id"] for b in blocks if b["type"] == "tool_result"]
            used = []
        for block in blocks:
            kinds = {"text", "tool_use", "tool_result"} | ({"thinking"} if own else set())
            assert block["type"] in kinds
            if block["type"] == "thinking":
                assert block["signature"]
            if block["type"] == "tool_use":
                assert re.fullmatch(r"[a-zA-Z0-9_-]+", block["id"])
                assert isinstance(block["input"], dict)
                used.append(block["id"])
    last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
    kinds = [block["type"] for block in messages[last]["content"]]
    if thinking and "tool_use" in kinds:
        assert "thinking" == kinds[0]


@both
@every_writer
def test_chat_completions_read_every_writer(server: OpenAIServer, writer: str, turn: str) -> None:
    """The payload that arrives is one that OpenAI takes, with text, calls and results."""
    messages = TURNS[turn](writer)
    before = copy.deepcopy(messages)
    assert "Yes." == CascadeLLM([openai(server)]).chat(messages).message.content
    sent = server.requests[0]["messages"]
    _check_chat(sent)
    _says(sent, kept=False)
    assert (ANSWER in str(sent)) == (turn == "closed")
    assert before == messages


@both
@every_writer
@pytest.mark.parametrize("store", [False, True])
def test_the_responses_api_reads_every_writer(
    server: OpenAIServer, writer: str, turn: str, store: bool
) -> None:
    """Its own items come back with their ids, others' calls in its own form."""
    llm = OpenAIResponses(model="gpt-4o", api_base=server.url, api_key="none", store=store)
    assert "Yes." == CascadeLLM([llm]).chat(TURNS[turn](writer)).message.content
    items = server.requests[0]["input"]
    own = writer == "openai-responses"
    called = [item for item in items if item.get("type") == "function_call"]
    given = [item for item in items if item.get("type") == "function_call_output"]
    assert 2 == len(called)
    assert [item["call_id"] for item in called] == [item["call_id"] for item in given]
    assert all(isinstance(item["arguments"], str) for item in called)
    assert own == any("id" in item for item in items)
    assert (own and store) == any(item.get("type") == "reasoning" for item in items)
    _says(items, kept=own)


@both
@every_writer
@pytest.mark.parametrize("thinking", [False, True], ids=["plain", "thinking"])
def test_anthropic_reads_every_writer(
    writer: str, turn: str, thinking: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own signed thoughts stay; others' turns are text and calls, or text while it thinks."""
    pytest.importorskip("llama_index.llms.anthropic")
    from llama_index.llms.anthropic import Anthropic, utils

    # newer versions of Anthropic's own package made this a union, which cannot be called
    monkeypatch.setattr(utils, "MessageParam", dict)
    budget: Any = {"type": "enabled", "budget_tokens": 1024} if thinking else None
    llm = Anthropic(model="claude-sonnet-4-5", api_key="none", thinking_dict=budget)
    seen = _rendered(llm, TURNS[turn](writer))
    messages, system = utils.messages_to_anthropic_messages(seen)
    own = writer == "anthropic"
    _check_anthropic(messages, own=own, thinking=thinking)
    _says(messages, kept=own)
    assert (THOUGHT in str(messages)) == own
    assert "Be brief." == system


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Tiny local models behind the published templates."""
    pytest.importorskip("torch")
    from cascadellm.local import LocalModel
    from tests.local.family_templates import TEMPLATES
    from tests.local.tiny_models import tiny_llama

    path = tiny_llama(tmp_path_factory.mktemp("local"), window=4096)
    found = {
        name: LocalModel(path, chat_template_kwargs={"chat_template": template}, max_new_tokens=3)
        for name, template in TEMPLATES.items()
    }
    yield found
    for model in found.values():
        model.close()


@both
@every_writer
def test_local_templates_read_every_writer(templates: Any, writer: str, turn: str) -> None:
    """Every family's template renders every writer's turn, and the model answers."""
    for name, model in templates.items():
        messages = TURNS[turn](writer)
        prompt = model.prompt(chat_dicts(_rendered(LocalLLM(model), messages))).text
        local = writer in ("local", "strange ids", "no ids")
        own = local and name == "qwen-3" and turn == "open"
        # the published templates of Llama, Mistral v3 and v7 and Hermes drop text beside calls
        if SAID not in prompt:
            assert name in ("llama-3.1", "mistral-v3", "mistral-v7", "hermes-3")
            prompt += SAID
        _says(prompt, kept=own)
        assert own == (THOUGHT in prompt)
        # alone, outside a cascade, a local LLM reads the same
        assert model.prompt(chat_dicts(messages)).text.count("rain") == prompt.count("rain")
        assert CascadeLLM([model]).chat(messages).additional_kwargs["cascade"]


def test_a_local_call_has_an_identifier() -> None:
    """A local tier's call can be answered and shown to a hosted tier: its id is never empty."""
    from cascadellm.answer import ToolCall

    response = LocalLLM(FakeModel(ToolCall("calc", {"x": "1"}), name="m")).chat(history("local"))
    (call,) = LocalLLM(FakeModel("x")).get_tool_calls_from_response(response)
    assert call.tool_id
    assert call.tool_id == response.message.additional_kwargs["tool_calls"][0]["id"]


def test_an_answer_goes_on_at_another_tier(server: OpenAIServer) -> None:
    """A deferred turn with another provider's blocks reaches both tiers in their own form."""
    small = FakeModel("hm", name="small")
    llm = CascadeLLM([small, openai(server)], lambda answer: True)
    assert "Yes." == llm.chat(open_turn("anthropic")).message.content
    _check_chat(server.requests[0]["messages"])
    assert THOUGHT not in str(small.calls[0][0])


def test_unknown_classes_keep_their_own_marks() -> None:
    """A class that is not known keeps marks of its own, and gets none of the known providers'."""
    thoughts = [
        ThinkingBlock(content="own", additional_information={"thought_signature": "x"}),
        ThinkingBlock(content="signed", additional_information={"signature": "x"}),
        ThinkingBlock(content="numbered", additional_information={"id": "rs_1"}),
        ThinkingBlock(content="plain"),
    ]
    message = ChatMessage(role="assistant", blocks=[*thoughts, TextBlock(text="so")])
    (seen,) = readable([message], MockLLM())
    assert ["own"] == [b.content for b in seen.blocks if isinstance(b, ThinkingBlock)]
    assert "so" == seen.content


def test_images_are_left_to_tiers_that_see(server: OpenAIServer, templates: Any) -> None:
    """A hosted tier gets the image; a local one refuses it clearly, and the next tier answers."""
    image = ImageBlock(url="http://127.0.0.1:9/cat.png")
    asked = [ChatMessage(role="user", blocks=[TextBlock(text="What is this?"), image])]
    model = templates["qwen-3"]
    with pytest.raises(ConfigurationError, match="local models read text only"):
        LocalLLM(model).chat(asked)
    response = CascadeLLM([model, openai(server)], Never()).chat(asked)
    record = response.additional_kwargs["cascade"]
    assert ("error", "hosted") == (record["attempts"][0]["action"], record["answered_by"])
    assert "image_url" == server.requests[0]["messages"][0]["content"][1]["type"]


def test_mutation_raw_histories_are_refused(server: OpenAIServer, monkeypatch: Any) -> None:
    """Without the rendering foreign blocks and identifiers arrive, and the checks see them."""
    from llamaindex_cascade import tier

    monkeypatch.setattr(tier, "readable", lambda messages, llm: messages)
    CascadeLLM([openai(server)]).chat(history("strange ids"))
    with pytest.raises(AssertionError):
        _check_chat(server.requests[-1]["messages"])
    with pytest.raises(ValueError, match="Unsupported content block"):
        CascadeLLM([openai(server)]).chat(history("anthropic"))
