"""Whatever shape a provider sends, reading it gives a valid record or a typed error."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from cascadellm.answer import Answer, TokenScore
from cascadellm.errors import CascadeError
from cascadellm.logprobs import openai_shape, token_scores
from cascadellm.scores import SCORES
from langchain_cascade.convert import (
    answer_of,
    as_message,
    buffer_text,
    chat_dicts,
    openai_tools,
    response_schema,
)

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
LEAVES = st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=6)
NAMES = st.sampled_from(
    ["token", "logprob", "top_logprobs", "content", "tokens", "token_logprobs", "entropy", "part",
     "type", "text", "function", "name", "parameters", "id", "schema", "json_schema", "kwargs"]
)  # fmt: skip
ANY = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
BLOCKS = st.lists(
    st.text(max_size=8)
    | st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "thinking", "reasoning", "refusal", "tool_use", "odd"])},
        optional={"text": st.text(max_size=8), "thinking": LEAVES, "refusal": LEAVES, "id": LEAVES},
    ),
    max_size=4,
)
USAGE = st.none() | st.builds(
    lambda given, made: {"input_tokens": given, "output_tokens": made, "total_tokens": 0},
    st.integers(0, 50),
    st.integers(0, 50),
)


def check_answer(answer: Answer) -> None:
    """Check that an answer can be scored, recorded and written as JSON."""
    assert isinstance(answer.text, str)
    if answer.tokens is not None:
        check_scores(answer.tokens)
    for score in SCORES.values():
        value = score(answer)
        assert value is None or not math.isnan(value)
    for call in answer.tool_calls:
        assert call.arguments is None or json.dumps(dict(call.arguments)) is not None
    assert answer.finish_reason is None or answer.finish_reason
    assert answer.reasoning is None or isinstance(answer.reasoning, str)


def check_scores(tokens: tuple[TokenScore, ...]) -> None:
    """Check that scores are numbers with their alternatives in order."""
    assert tokens
    for one in tokens:
        assert isinstance(one.token, str)
        assert isinstance(one.logprob, float)
        assert not math.isnan(one.logprob)
        assert one.part in ("answer", "reasoning", "arguments", "other")
        assert all(isinstance(text, str) for text, _ in one.top)


@FUZZ
@given(ANY)
def test_logprobs_of_any_shape(shape: Any) -> None:
    """Any JSON in the place of logprobs is read as scores or as none at all."""
    scores = token_scores(shape)
    if scores is not None:
        check_scores(scores)
        assert token_scores(openai_shape(scores)) is not None


@FUZZ
@given(
    content=st.text(max_size=20) | BLOCKS,
    usage=USAGE,
    metadata=st.dictionaries(
        st.sampled_from(["logprobs", "finish_reason", "stop_reason", "speculation"]),
        ANY,
        max_size=3,
    ),
    extra=st.dictionaries(st.sampled_from(["refusal", "reasoning_content"]), LEAVES, max_size=2),
)
def test_messages_of_any_shape(content: Any, usage: Any, metadata: Any, extra: Any) -> None:
    """Any message that LangChain itself accepts becomes an answer that can be recorded."""
    message = AIMessage(
        content=content,
        usage_metadata=usage,
        response_metadata=metadata,
        additional_kwargs={k: v for k, v in extra.items() if isinstance(v, str)},
    )
    check_answer(answer_of(as_message(message)))


@FUZZ
@given(ANY)
def test_outputs_of_any_kind(output: Any) -> None:
    """A tier's output is a message or text; anything else is a configuration error."""
    if isinstance(output, str):
        assert as_message(output).content == output
        return
    with pytest.raises(CascadeError, match="a tier must answer with a message or text"):
        as_message(output)


@FUZZ
@given(st.lists(ANY, max_size=3))
def test_tools_of_any_shape(tools: Any) -> None:
    """Any tool specification becomes OpenAI's form or a configuration error."""
    try:
        found = openai_tools(tools)
    except CascadeError as error:
        assert "a tool must be" in str(error)  # noqa: PT017 - either end is right
        return
    assert all(tool["type"] == "function" for tool in found)


@FUZZ
@given(ANY, ANY)
def test_response_formats_of_any_shape(asked: Any, structured: Any) -> None:
    """Any response format is a schema as a dict, or none."""
    schema = response_schema({"response_format": asked}, structured)
    assert schema is None or isinstance(schema, dict)


@FUZZ
@given(
    st.lists(
        st.builds(HumanMessage, st.text(max_size=9))
        | st.builds(SystemMessage, st.text(max_size=9))
        | st.builds(AIMessage, st.text(max_size=9))
        | st.builds(ToolMessage, st.text(max_size=9), tool_call_id=st.text(max_size=4)),
        min_size=1,
        max_size=5,
    )
)
def test_conversations_of_any_order(messages: Any) -> None:
    """Any order of messages is rendered for local models, one dict a message, and as text."""
    rendered = chat_dicts(messages)
    assert [one["role"] for one in rendered] == [
        {"human": "user", "ai": "assistant"}.get(message.type, message.type) for message in messages
    ]
    assert isinstance(buffer_text(messages), str)


def test_mutation_a_score_that_is_no_number_is_noticed() -> None:
    """The check refuses a score of NaN."""
    with pytest.raises(AssertionError):
        check_scores((TokenScore("a", math.nan),))
