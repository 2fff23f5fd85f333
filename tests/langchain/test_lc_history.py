"""T19, T20: what one provider wrote is read by every other; a table of writers and readers."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI

from cascadellm.testing import FakeModel
from langchain_cascade import CascadeLLM, ConfigurationError, LocalChatModel, ModelError, Never
from langchain_cascade.convert import chat_dicts
from langchain_cascade.history import own_arguments, readable
from tests.langchain.lc_recorded import ANSWER, SAID, THOUGHT, WRITERS, history, open_turn
from tests.servers.openai_server import OpenAIServer, Said

TURNS = {"closed": history, "open": open_turn}
both = pytest.mark.parametrize("turn", TURNS)
every_writer = pytest.mark.parametrize("writer", WRITERS)


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    """An OpenAI-compatible server that says yes."""
    with OpenAIServer(Said.text("Yes.")) as running:
        yield running


def _client(server: OpenAIServer, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(model="gpt-4o", base_url=server.url, api_key="none", max_retries=0, **options)


def _check_chat(messages: list[dict[str, Any]]) -> None:
    """Raise unless Chat Completions would take these messages."""
    waiting: set[str] = set()
    for message in messages:
        assert set(message) <= {"role", "content", "tool_calls", "tool_call_id", "name"}
        if message["role"] == "tool":
            waiting.remove(message["tool_call_id"])
        else:
            assert not waiting, "a call without its result"
        content = message["content"]
        for block in content if isinstance(content, list) else ():
            assert {"type", "text"} == set(block)
            assert "text" == block["type"]
        for call in message.get("tool_calls", ()):
            assert {"id", "type", "function"} == set(call)
            assert len(call["id"]) <= 40
            waiting.add(call["id"])
    assert not waiting


def _check_responses(items: list[dict[str, Any]], *, own: bool) -> None:
    """Raise unless the Responses API would take these items."""
    called = [item["call_id"] for item in items if item.get("type") == "function_call"]
    given = [item["call_id"] for item in items if item.get("type") == "function_call_output"]
    assert called == given
    assert all(len(call_id) <= 64 for call_id in called)
    for item in items:
        assert item.get("type", "message") in {
            "message", "function_call", "function_call_output", *(["reasoning"] if own else []),
        }  # fmt: skip
        if not own:
            assert "id" not in item


def _check_anthropic(messages: list[dict[str, Any]], *, own: bool, thinking: bool) -> None:
    """Raise unless Anthropic would take these messages."""
    used: list[str] = []
    for message in messages:
        blocks = message["content"]
        blocks = [{"type": "text", "text": blocks}] if isinstance(blocks, str) else blocks
        assert blocks
        results = [b["tool_use_id"] for b in blocks if b["type"] == "tool_result"]
        if message["role"] == "user":
            assert used == results
            used = []
        for block in blocks:
            kinds = {"text", "tool_use", "tool_result", "image"}
            assert block["type"] in kinds | ({"thinking", "redacted_thinking"} if own else set())
            if block["type"] == "tool_use":
                assert re.fullmatch(r"[a-zA-Z0-9_-]+", block["id"])
                assert isinstance(block["input"], dict)
                used.append(block["id"])
            if block["type"] == "text":
                assert block["text"].strip()
    last = next(m for m in reversed(messages) if m["role"] == "assistant")
    blocks = last["content"] if isinstance(last["content"], list) else []
    if thinking and last is messages[-2] and any(b["type"] == "tool_use" for b in blocks):
        assert blocks[0]["type"] in ("thinking", "redacted_thinking")


def _says(payload: Any, writer: str) -> None:
    """Raise unless text, calls and results are in a payload, and foreign thoughts are not."""
    text = str(payload)
    for part in (SAID, "lookup", "calc", "rain", "2+3", "wet", "5"):
        assert part in text
    if writer != "kept":
        assert THOUGHT not in text
        for sign in ("rs_68a1", "EqQBCgIYAhIM", "fc_68a0"):
            assert sign not in text


@both
@every_writer
def test_chat_completions_read_every_writer(server, writer, turn):
    """The payload that arrives is one that OpenAI takes, with text, calls and results."""
    messages = TURNS[turn](writer)
    before = copy.deepcopy(messages)
    assert "Yes." == CascadeLLM([_client(server)]).invoke(messages).text
    sent = server.requests[0]["messages"]
    _check_chat(sent)
    _says(sent, writer)
    assert (ANSWER in str(sent)) == (turn == "closed")
    assert before == messages


@both
@every_writer
def test_the_responses_api_reads_every_writer(server, writer, turn):
    """Its own reasoning items come back with their ids, others' never arrive."""
    llm = CascadeLLM([_client(server, use_responses_api=True)])
    assert "Yes." == llm.invoke(TURNS[turn](writer)).text
    own = writer == "openai-responses"
    items = server.requests[0]["input"]
    _check_responses(items, own=own)
    _says(items, "kept" if own else writer)
    assert ("rs_68a1" in str(items)) == own


@both
@every_writer
@pytest.mark.parametrize("thinking", [False, True], ids=["plain", "thinking"])
def test_anthropic_reads_every_writer(writer, turn, thinking):
    """Its own signed thoughts stay; others' turns are text and calls, or text while it thinks."""
    anthropic = pytest.importorskip("langchain_anthropic")
    options = {"thinking": {"type": "enabled", "budget_tokens": 1024}} if thinking else {}
    model = anthropic.ChatAnthropic(model="claude-sonnet-4-5", api_key="none", **options)
    payload = model._get_request_payload(readable(TURNS[turn](writer), model))
    own = writer == "anthropic"
    _check_anthropic(payload["messages"], own=own, thinking=thinking)
    _says(payload, "kept" if own else writer)
    assert (THOUGHT in str(payload)) == own


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
def test_local_templates_read_every_writer(templates, writer, turn):
    """Every family's template renders every writer's turn, and the model answers."""
    for name, model in templates.items():
        messages = TURNS[turn](writer)
        prompt = model.prompt(chat_dicts(messages)).text
        own = writer == "local" and name == "qwen-3" and turn == "open"
        # the published templates of Llama, Mistral v3 and v7 and Hermes drop text beside calls
        if SAID not in prompt:
            assert name in ("llama-3.1", "mistral-v3", "mistral-v7", "hermes-3")
            prompt += SAID
        _says(prompt, "kept" if own else writer)
        assert own == (THOUGHT in prompt)
        tier = LocalChatModel(model)
        assert CascadeLLM([tier]).invoke(messages).response_metadata["cascade"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_goes_on_at_another_tier(server, stream):
    """A local tier's call, made inside the cascade, is read by the hosted tier behind it."""
    small = FakeModel(["{}"], name="small")
    llm = CascadeLLM([small, _client(server)], Never())
    turn = open_turn("local")
    found = list(llm.stream(turn))[-1] if stream else llm.invoke(turn)
    assert found is not None
    assert small.calls
    deferred = CascadeLLM([small, _client(server)], lambda answer: True)
    deferred.invoke(open_turn("anthropic"))
    _check_chat(server.requests[-1]["messages"])
    assert "thinking" not in str(small.calls[-1][0])


def test_nothing_foreign_is_not_copied(server):
    """Where nothing has to change the tier gets the caller's own messages."""
    client = _client(server)
    for messages in (
        [HumanMessage("hi")],
        [SystemMessage("s"), HumanMessage("hi")],
        history("openai"),
        [HumanMessage("hi"), AIMessage("there"), HumanMessage("so")],
    ):
        assert readable(messages, client) is messages
    foreign = history("anthropic")
    assert readable(foreign, LocalChatModel(FakeModel("x"))) is foreign
    assert readable(foreign, object()) is foreign


def test_a_foreign_turn_of_nothing_but_thought_is_left_out(server):
    """A message of which nothing is left would be refused as empty; it is not sent."""
    thought = AIMessage(
        [{"type": "thinking", "thinking": THOUGHT, "signature": "x"}],
        response_metadata={"model_provider": "anthropic"},
    )
    CascadeLLM([_client(server)]).invoke([HumanMessage("a"), thought, HumanMessage("b")])
    assert ["a", "b"] == [m["content"] for m in server.requests[0]["messages"]]


def test_malformed_calls_survive_only_with_their_result(server):
    """OpenAI wants a result for every call: a broken call without one is left out."""
    for answered in (True, False):
        broken = AIMessage(
            "Hm.",
            invalid_tool_calls=[
                {
                    "name": "calc",
                    "args": "{bad",
                    "id": "c1",
                    "error": "no JSON",
                    "type": "invalid_tool_call",
                }
            ],
            response_metadata={"model_provider": "local"},
        )
        results = [ToolMessage("no", tool_call_id="c1")] if answered else []
        CascadeLLM([_client(server)]).invoke([HumanMessage("a"), broken, *results])
        sent = server.requests[-1]["messages"]
        _check_chat(sent)
        assert ("{bad" in str(sent)) == answered


def test_cache_marks_reach_anthropic_alone(server):
    """T19: `cache_control` in blocks and call arguments is no other provider's business."""
    mark = {"type": "ephemeral"}
    block = {"type": "text", "text": "Be brief.", "cache_control": mark}
    messages = [SystemMessage([block]), HumanMessage([{**block, "text": "hi"}])]
    llm = CascadeLLM([_client(server)])
    llm.invoke(messages, cache_control=mark, prompt_cache_key="k")
    assert "cache_control" not in str(server.requests[0])
    assert "k" == server.requests[0]["prompt_cache_key"]
    small = FakeModel("x", name="small")
    CascadeLLM([small]).invoke(messages, cache_control=mark, prompt_cache_key="k", store=True)
    assert {} == small.calls[0][1]
    anthropic = pytest.importorskip("langchain_anthropic")
    claude = anthropic.ChatAnthropic(model="claude-sonnet-4-5", api_key="none")
    assert readable(messages, claude)[0] is messages[0]
    kept = own_arguments(claude, {"cache_control": mark, "prompt_cache_key": "k", "stop": ["a"]})
    assert {"cache_control": mark, "stop": ["a"]} == kept
    arguments = {"stop": ["a"]}
    assert own_arguments(claude, arguments) is arguments


def test_images_are_left_to_tiers_that_see(server, templates):
    """A hosted tier gets the image; a local one refuses it clearly, and the next tier answers."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    asked = [HumanMessage([{"type": "text", "text": "What is this?"}, image])]
    model = templates["qwen-3"]
    with pytest.raises((ConfigurationError, ModelError), match="local models read text"):
        LocalChatModel(model).invoke(asked)
    document = HumanMessage([{"type": "document", "source": {"type": "text", "data": "x"}}])
    with pytest.raises(ConfigurationError, match="local models read text"):
        LocalChatModel(model).invoke([document])
    message = CascadeLLM([model, _client(server)], Never()).invoke(asked)
    record = message.response_metadata["cascade"]
    assert ("error", "gpt-4o") == (record["attempts"][0]["action"], record["answered_by"])
    assert image == server.requests[0]["messages"][0]["content"][1]


def test_mutation_raw_histories_are_refused(server, monkeypatch):
    """Without the rendering the checks see foreign blocks and identifiers."""
    from langchain_cascade import calls

    monkeypatch.setattr(calls, "readable", lambda messages, model: messages)
    for writer in ("anthropic", "strange ids"):
        CascadeLLM([_client(server)]).invoke(history(writer))
        with pytest.raises(AssertionError):
            _check_chat(server.requests[-1]["messages"])
