"""Types of the LangChain adapter as a user sees them: checked by mypy, never run."""

from __future__ import annotations

from typing import assert_type

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import StrOutputParser

from cascadellm.testing import FakeModel
from langchain_cascade import CascadeLLM, LocalChatModel, Threshold, mean_logprob


def a_cascade_is_a_chat_model() -> BaseChatModel:
    """Wherever a chat model stands, a cascade can stand."""
    return CascadeLLM(
        tiers=["hf:Qwen/Qwen3-0.6B", FakeModel("4")], policy=Threshold(mean_logprob, -0.35)
    )


async def calls_return_messages(llm: CascadeLLM) -> None:
    """invoke, ainvoke, batch and the streams keep LangChain's types."""
    assert_type(llm.invoke("hi"), AIMessage)
    assert_type(await llm.ainvoke("hi"), AIMessage)
    assert_type(llm.batch(["hi"]), list[AIMessage])
    for chunk in llm.stream("hi"):
        assert_type(chunk, AIMessageChunk)
    async for chunk in llm.astream("hi"):
        assert_type(chunk, AIMessageChunk)


def a_cascade_pipes(llm: CascadeLLM) -> None:
    """`|` builds chains."""
    chain = llm | StrOutputParser()
    assert_type(chain.invoke("hi"), str)


def a_local_model_is_a_chat_model() -> BaseChatModel:
    """A local model stands alone too."""
    return LocalChatModel(model="Qwen/Qwen3-0.6B")
