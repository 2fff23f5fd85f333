"""Types of the LlamaIndex adapter as a user sees them: checked by mypy, never run."""

from __future__ import annotations

from typing import assert_type

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.llms import LLM

from cascadellm.testing import FakeModel
from llamaindex_cascade import CascadeLLM, LocalLLM, Threshold, mean_logprob


def a_cascade_is_an_llm() -> LLM:
    """Wherever an LLM stands, a cascade can stand."""
    return CascadeLLM(
        tiers=["hf:Qwen/Qwen3-0.6B", FakeModel("4")], policy=Threshold(mean_logprob, -0.35)
    )


async def calls_return_responses(llm: CascadeLLM) -> None:
    """The endpoints keep LlamaIndex's types."""
    messages = [ChatMessage(content="hi")]
    assert_type(llm.complete("hi"), CompletionResponse)
    assert_type(llm.chat(messages), ChatResponse)
    assert_type(await llm.acomplete("hi"), CompletionResponse)
    assert_type(await llm.achat(messages), ChatResponse)
    for response in llm.stream_chat(messages):
        assert_type(response, ChatResponse)
    async for response in await llm.astream_chat(messages):
        assert_type(response, ChatResponse)


def a_policy_can_be_exchanged(llm: CascadeLLM) -> None:
    """`with_policy` returns a cascade."""
    assert_type(llm.with_policy(Threshold(mean_logprob, -1.0)), CascadeLLM)


def a_local_model_is_an_llm() -> LLM:
    """A local model stands alone too."""
    return LocalLLM(model="Qwen/Qwen3-0.6B")
