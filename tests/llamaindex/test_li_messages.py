"""What enters a tier and what leaves the cascade: nothing leaks, nothing is changed."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock
from llama_index.core.llms import MockLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.llms.openai_like import OpenAILike

from cascadellm import Answer
from cascadellm.testing import FakeModel
from llamaindex_cascade import (
    CascadeLLM,
    ConfigurationError,
    LocalLLM,
    Never,
    Threshold,
    Tier,
    mean_logprob,
)
from tests.llamaindex.li_support import CHOW, ENDPOINTS, Events, SlowLLM, asked, pair, text_of, user

KEY = "sk-planted-5f1c9a"


@pytest.mark.parametrize("endpoint", ENDPOINTS[:4])
@pytest.mark.parametrize("logprob", [-0.1, -2.0])
def test_t11_a_text_answer_has_no_extra_message_data(endpoint: str, logprob: float) -> None:
    """No chunk's message carries cascade data or token counts, which providers would be sent."""
    for chunk in asked(pair(logprob)[0], endpoint):
        assert chunk.message.additional_kwargs == {}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_t11_the_record_is_in_the_response_and_in_raw(endpoint: str) -> None:
    """The record stands on the response and in `raw`, where agents keep it."""
    response = asked(pair()[0], endpoint)[-1]
    assert response.additional_kwargs["cascade"]["answered_by"] == "large"
    assert response.raw["cascade"] == response.additional_kwargs["cascade"]
    assert isinstance(response.raw["response"]["answer"], Answer)


class _Counting(MockLLM):
    """A completion model that reports usage, as core's conversions write into messages."""

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        response = super().complete(prompt, formatted=formatted, **kwargs)
        response.additional_kwargs = {"prompt_tokens": 3, "completion_tokens": 2}
        return response


@pytest.mark.parametrize("endpoint", ["complete", "acomplete", "chat", "achat"])
def test_t12_no_message_holds_the_record_after_a_call(endpoint: str) -> None:
    """Neither the tier's message nor the returned one holds cascade data or token counts."""
    seen: list[Any] = []
    small = FakeModel("ok", name="small")
    llm = CascadeLLM([LocalLLM(small), _Counting()], Never())
    seen = asked(llm, endpoint)
    native = seen[0].raw["response"]
    assert "cascade" not in str(native)
    completion = CascadeLLM([_Counting(max_tokens=3)])
    response = asked(completion, endpoint)[0]
    if "chat" in endpoint:
        assert response.message.additional_kwargs == {}
    assert response.additional_kwargs["prompt_tokens"] == 3
    assert response.additional_kwargs["cascade"]["attempts"][0]["input_tokens"] == 3


def _with_key() -> CascadeLLM:
    small = FakeModel("hm", name="small", logprob=-2.0)
    hosted = OpenAILike(
        model="large",
        api_key=KEY,
        api_base="http://127.0.0.1:9/v1",
        is_chat_model=True,
        default_headers={"Authorization": f"Bearer {KEY}"},
        max_retries=0,
    )
    return CascadeLLM(
        [small, Tier(hosted, kwargs={"extra_headers": {"x-key": KEY}})],
        CHOW,
        on_exhausted="best",
    )


def test_t13_no_credential_leaves_by_repr_dict_payload_or_events(events: Events) -> None:
    """A planted key is in no repr, dict, JSON, payload, event or record."""
    llm = _with_key()
    response = asked(llm, "chat")[0]
    leaving = [
        repr(llm),
        str(llm),
        repr(llm.to_dict()),
        llm.to_json(),
        llm.model_dump_json(),
        repr(llm.to_payload()),
        json.dumps(response.additional_kwargs["cascade"]),
        repr(llm.metadata),
        repr(llm.tiers),
        *(
            repr(event.model_dump())
            for event in events.events
            if (event.span_id or "").startswith("Cascade")
        ),
    ]
    assert response.message.content == "hm"
    assert not [text for text in leaving if KEY in text]


def test_t14_the_callers_messages_are_untouched() -> None:
    """Messages, and tool history in them, are equal before and after an escalation."""

    def meddle(messages: Any) -> str:
        messages[0]["content"] = "changed"
        return "hm"

    messages = [ChatMessage(role="system", content="Be brief."), *user()]
    before = copy.deepcopy(messages)
    small = FakeModel(meddle, name="small", logprob=-2.0)
    for endpoint in ENDPOINTS[:4]:
        asked(CascadeLLM([small, FakeModel("ok", name="large")], CHOW), endpoint, messages)
    assert messages == before


class _Meddles(LocalLLM):
    def chat(self, messages: Any, **kwargs: Any) -> Any:
        messages.append(ChatMessage(content="appended"))
        messages[0].blocks[0].text = "changed"
        return super().chat(messages, **kwargs)


def test_t14_a_tier_that_edits_its_input_does_not_reach_the_next() -> None:
    """Each tier reads its own deep copy of the conversation."""
    large = FakeModel("ok", name="large")
    llm = CascadeLLM([SlowLLM(), large], CHOW)
    llm._book._llms[id(large)] = meddling = _Meddles(large)
    messages = user("original")
    response = llm.chat(messages)
    assert meddling is llm._book.llm(large)
    assert text_of(response) == "ok"
    assert messages[0].content == "original"


def test_t14_editing_the_answer_does_not_change_the_record() -> None:
    """The returned message is the caller's own."""
    from cascadellm import record_cascade

    with record_cascade() as recorder:
        llm, _, _ = pair()
        response = llm.chat(user())
        response.message.blocks[0].text = "edited"
        response.additional_kwargs["cascade"]["answered_by"] = "edited"
    assert recorder.records[0].output == "Four, I am certain."
    assert recorder.traces[0].answered_by == "large"
    native = response.raw["response"]["answer"]
    assert native.text == "Four, I am certain."


def test_t17_messages_are_accepted_by_keyword_and_by_position() -> None:
    """`chat(messages=...)` and `chat(...)` are the same call."""
    llm, _, _ = pair()
    by_keyword, by_position = llm.chat(messages=user()), llm.chat(user())
    assert by_keyword.message == by_position.message
    assert llm.complete(prompt="x").text == llm.complete("x").text


class _UserRole(LocalLLM):
    @property
    def metadata(self) -> Any:
        metadata = super().metadata
        metadata.system_role = MessageRole.USER
        return metadata


def test_t24_system_messages_take_the_tiers_role() -> None:
    """A tier whose provider wants no system role never receives one; others do."""
    small, large = FakeModel("hm", name="small", logprob=-2.0), FakeModel("ok", name="large")
    llm = CascadeLLM([small, large], CHOW)
    llm._book._llms[id(small)] = _UserRole(small)
    llm.chat([ChatMessage(role="system", content="Be brief."), *user()])
    assert [m["role"] for m in small.calls[0][0]] == ["user", "user"]
    assert [m["role"] for m in large.calls[0][0]] == ["system", "user"]


def test_t24_a_tiers_own_system_prompt_reaches_it_alone() -> None:
    """A tier's `system_prompt`, which `chat` ignores upstream, is put first for that tier."""
    small, large = FakeModel("hm", name="small", logprob=-2.0), FakeModel("ok", name="large")
    llm = CascadeLLM([LocalLLM(small, system_prompt="You are small."), large], CHOW)
    for endpoint in ENDPOINTS:
        asked(llm, endpoint)
    firsts = {messages[0]["content"] for messages, _ in small.calls}
    assert firsts == {"You are small."}
    assert {messages[0]["role"] for messages, _ in large.calls} == {"user"}


def test_blocks_that_are_no_text_are_refused_by_local_tiers_with_a_reason() -> None:
    """A local tier names the block it cannot read, and the cascade goes on to the next tier."""
    from llama_index.core.base.llms.types import ImageBlock

    message = ChatMessage(blocks=[TextBlock(text="what?"), ImageBlock(url="http://x/y.png")])
    with pytest.raises(ConfigurationError, match="ImageBlock"):
        LocalLLM(FakeModel()).chat([message])
    llm, small, _ = pair()
    with pytest.raises(ConfigurationError, match="text only"):
        llm.chat([message])
    assert not small.calls


@pytest.mark.parametrize(
    ("tiers", "message"),
    [
        ([], "at least one"),
        ("hf:x", "list of at least one"),
        (["gpt-4o"], "names a local model"),
        ([3], "a tier is a LlamaIndex LLM"),
        ([Tier(FakeModel(), name="a"), Tier(FakeModel(), name="a")], "must differ"),
        ([FakeModel(), FakeModel()], "need a policy"),
    ],
)
def test_wrong_tiers_are_refused_at_construction(tiers: Any, message: str) -> None:
    """What is no cascade is a ConfigurationError that says what was expected."""
    with pytest.raises(ConfigurationError, match=message):
        CascadeLLM(tiers)


@pytest.mark.parametrize(
    ("option", "value"),
    [("context", "mean"), ("function_calling", "some"), ("on_tier_error", "x")],
)
def test_wrong_options_are_refused_at_construction(option: str, value: str) -> None:
    """An unknown choice names the allowed ones."""
    with pytest.raises(ConfigurationError, match=f"{option} must be one of"):
        CascadeLLM([FakeModel()], **{option: value})


def test_with_policy_is_a_cheap_copy() -> None:
    """The copy shares tiers and differs in its policy only; the original keeps its own."""
    llm, small, _ = pair()
    other = llm.with_policy(Never())
    assert other.chat(user()).raw["cascade"]["answered_by"] == "small"
    assert llm.chat(user()).raw["cascade"]["answered_by"] == "large"
    assert other.tiers[0].model is small
    assert other.policy == Never()
    assert llm.policy == CHOW


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_policy_for_one_call_reaches_no_tier(endpoint: str) -> None:
    """`cascade_policy` decides this call only, and no tier sees the cascade's arguments."""
    llm, small, large = pair()
    chunks = asked(
        llm, endpoint, cascade_policy=Never(), cascade_metadata={"user": "u"}, temperature=0.5
    )
    assert text_of(chunks[-1]) == "Maybe five?"
    assert small.calls[0][1] == {"temperature": 0.5}
    assert not large.calls
    assert llm.policy == Threshold(mean_logprob, -0.35)


def test_policies_read_documents_and_metadata_of_the_call() -> None:
    """What a caller hands over with a call is what its policies see."""
    seen: list[Any] = []
    from cascadellm.policies import Policy

    class Looks(Policy):
        def after(self, moment: Any) -> Any:
            request = moment.request
            seen.append((request.documents, dict(request.metadata), request.text))

    llm, _, _ = pair(policy=Looks())
    llm.chat(user("hi"), cascade_documents=["doc"], cascade_metadata={"thread": 1})
    assert seen == [(("doc",), {"thread": 1}, "hi")]


def test_nesting_a_cascade_in_a_cascade_works() -> None:
    """A cascade is an LLM and can be a tier."""
    inner, _, _ = pair()
    outer = CascadeLLM([FakeModel("hm", name="tiny", logprob=-3.0), inner], CHOW)
    record = outer.chat(user()).raw["cascade"]
    assert record["answered_by"] == "CascadeLLM"
    assert record["attempts"][0]["name"] == "tiny"
