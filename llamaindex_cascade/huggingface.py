"""LlamaIndex's own `HuggingFaceLLM` as a tier: its answers are scored after they are written.

It gives no logprobs and no usage, and keeps the ids of every answer on the model's device. One
forward pass over those ids scores the answer; then they are let go. `LocalLLM` needs no second
pass, stops when a stream is closed and takes settings per call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse
from llama_index.core.llms.llm import LLM

__all__ = ["with_scores", "written_here"]

_IDS = "model_output"


def written_here(llm: LLM) -> bool:
    """Return whether an LLM is LlamaIndex's `HuggingFaceLLM`."""
    return any(cls.__name__ == "HuggingFaceLLM" for cls in type(llm).__mro__)


def with_scores(
    llm: Any,
    response: ChatResponse | CompletionResponse,
    arguments: Mapping[str, Any],
    reads: frozenset[str],
) -> ChatResponse | CompletionResponse:
    """Return a response without its tensor, and with its scores where a policy reads them.

    Args:
        llm: The `HuggingFaceLLM` that wrote it.
        response: What it returned.
        arguments: What it was called with.
        reads: What the policy reads.
    """
    if not isinstance(response.raw, dict) or _IDS not in response.raw:
        return response
    raw = {key: value for key, value in response.raw.items() if key != _IDS}
    if "logprobs" in reads:
        from cascadellm.local.posthoc import score_written

        if isinstance(response, ChatResponse):
            text = response.message.content or ""
        else:
            text = response.text
        raw["answer"] = score_written(
            llm._model,  # noqa: SLF001 - there is no public way to the model
            llm._tokenizer,  # noqa: SLF001
            response.raw[_IDS],
            _prompt(llm, arguments),
            text=text,
        )
    return response.model_copy(update={"raw": raw})


def _prompt(llm: Any, arguments: Mapping[str, Any]) -> str:
    """Return the text that the model read, composed as `HuggingFaceLLM.complete` does."""
    if "messages" in arguments:
        return str(llm.messages_to_prompt(arguments["messages"]))
    prompt = str(arguments["prompt"])
    if arguments.get("formatted"):
        return prompt
    if llm.query_wrapper_prompt:
        prompt = llm.query_wrapper_prompt.format(query_str=prompt)
    if llm.completion_to_prompt:
        return str(llm.completion_to_prompt(prompt))
    return f"{llm.system_prompt} {prompt}" if llm.system_prompt else prompt
