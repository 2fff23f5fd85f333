"""Whatever shape a provider sends, reading it gives a valid record or a typed error."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from cascadellm.answer import Answer
from cascadellm.errors import CascadeError
from cascadellm.scores import SCORES
from llamaindex_cascade.chat_dicts import chat_dicts, flatten_tools
from llamaindex_cascade.convert import answer_from, chat_from_completion, completion_from_chat

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
LEAVES = st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=6)
NAMES = st.sampled_from(
    ["choices", "logprobs", "content", "token", "logprob", "top_logprobs", "tokens", "usage",
     "token_logprobs", "message", "refusal", "finish_reason", "prompt_tokens", "completion_tokens",
     "answer", "piece"]
)  # fmt: skip
ANY = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=14,
)
BLOCKS = st.lists(
    st.builds(TextBlock, text=st.text(max_size=8))
    | st.builds(ThinkingBlock, content=st.none() | st.text(max_size=8))
    | st.builds(
        ToolCallBlock,
        tool_name=st.text(max_size=5),
        tool_kwargs=st.text(max_size=8) | st.dictionaries(st.text(max_size=3), LEAVES, max_size=3),
        tool_call_id=st.none() | st.text(max_size=4),
    ),
    max_size=4,
)
MESSAGES = st.builds(
    ChatMessage,
    role=st.sampled_from(list(MessageRole)),
    blocks=BLOCKS,
    additional_kwargs=st.dictionaries(NAMES | st.just("tool_call_id"), ANY, max_size=3),
)
LOGPROBS = st.none() | st.lists(
    st.lists(st.builds(LogProb, token=st.text(max_size=3), logprob=st.floats()), max_size=2),
    max_size=3,
)


def check_answer(answer: Answer) -> None:
    """Check that an answer can be scored, recorded and written as JSON."""
    assert isinstance(answer.text, str)
    for one in answer.tokens or ():
        assert isinstance(one.token, str)
        assert isinstance(one.logprob, float)
    for score in SCORES.values():
        value = score(answer)
        assert value is None or not math.isnan(value)
    for call in answer.tool_calls:
        assert call.arguments is None or json.dumps(dict(call.arguments)) is not None
    usage = answer.usage
    assert usage is None or isinstance(usage.total_tokens, int)
    assert answer.finish_reason is None or answer.finish_reason
    assert answer.refusal is None or answer.refusal


@FUZZ
@given(message=MESSAGES, raw=ANY, extra=st.dictionaries(NAMES, ANY, max_size=3), logprobs=LOGPROBS)
def test_responses_of_any_shape(message: Any, raw: Any, extra: Any, logprobs: Any) -> None:
    """Any response that LlamaIndex accepts becomes an answer that can be recorded."""
    response = ChatResponse(message=message, raw=raw, additional_kwargs=extra, logprobs=logprobs)
    check_answer(answer_from(response))
    assert completion_from_chat(response).text == (message.content or "")


@FUZZ
@given(text=st.text(max_size=20), raw=ANY, logprobs=LOGPROBS)
def test_completions_of_any_shape(text: str, raw: Any, logprobs: Any) -> None:
    """The same for completions, whose text is kept."""
    response = CompletionResponse(text=text, raw=raw, logprobs=logprobs)
    answer = answer_from(chat_from_completion(response))
    check_answer(answer)
    assert answer.text == text


@FUZZ
@given(st.lists(MESSAGES, min_size=1, max_size=4))
def test_conversations_of_any_shape(messages: Any) -> None:
    """Any conversation of text, thoughts and tool calls is rendered, or refused with the reason."""
    try:
        rendered = chat_dicts(messages)
    except CascadeError as error:
        assert str(error)  # noqa: PT017 - either end is right
        return
    assert len(rendered) == len(messages)
    assert all(isinstance(one["content"], str) for one in rendered)
    assert len(flatten_tools(messages)) >= 1
