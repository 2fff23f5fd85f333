"""What is known before a tier is chosen, and which tiers cannot take a request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from llama_index.core.base.llms.types import LLMMetadata
from llama_index.core.constants import DEFAULT_NUM_OUTPUTS
from llama_index.core.llms.llm import LLM
from llama_index.core.utils import get_tokenizer

from cascadellm.answer import Request
from llamaindex_cascade.convert import text_of
from llamaindex_cascade.tools import Asked

__all__ = ["cascade_metadata", "refuses", "room"]

_PER_MESSAGE = 8
"""Tokens that a chat template adds to a message, on the generous side."""


def room(metadata: LLMMetadata) -> tuple[int, int]:
    """Return (context window, tokens kept for the answer) of a model, as core counts them."""
    output = DEFAULT_NUM_OUTPUTS if metadata.num_output == -1 else metadata.num_output
    return metadata.context_window, output


def cascade_metadata(
    llms: Sequence[LLM],
    names: Sequence[str],
    *,
    context: Literal["min", "max"],
    function_calling: Literal["last", "any", "all"],
) -> LLMMetadata:
    """Return metadata that holds whichever tier answers.

    Window and output length are the pair of one tier, the one that leaves the least (`min`)
    or the most (`max`) room for a prompt: mixing two tiers' numbers breaks prompt helpers.
    """
    all_metadata = [llm.metadata for llm in llms]
    pick = min if context == "min" else max
    window, output = pick((room(one) for one in all_metadata), key=lambda pair: pair[0] - pair[1])
    able = [one.is_function_calling_model for one in all_metadata]
    calls = {"last": able[-1], "any": any(able), "all": all(able)}[function_calling]
    return LLMMetadata(
        context_window=window,
        num_output=output,
        is_chat_model=True,
        is_function_calling_model=calls,
        model_name=f"cascade({','.join(names)})",
        system_role=all_metadata[-1].system_role,
    )


def refuses(llm: LLM, request: Request) -> tuple[str, str] | None:
    """Return why a tier cannot take a request, as (code, sentence); None = it can."""
    asked: Asked = request.native
    metadata = llm.metadata
    if request.tools and not metadata.is_function_calling_model:
        return "no_tools", "the request has tools, which this tier cannot call"
    window, output = room(metadata)
    # a tokenizer never makes more tokens than bytes, so short prompts need no counting
    most = sum(len((m.content or "").encode()) + _PER_MESSAGE for m in asked.messages)
    if most + output <= window:
        return None
    count = _counter(llm)(text_of(asked.messages)) + _PER_MESSAGE * len(asked.messages)
    if count + output <= window:
        return None
    reason = (
        f"the prompt has about {count} tokens and {output} are kept for the answer, more than "
        f"the {window} of this tier"
    )
    return "context_window", reason


def _counter(llm: LLM) -> Callable[[str], int]:
    for owner in (getattr(llm, "model", None), llm):
        for name in ("tokenizer", "_tokenizer"):
            tokenizer: Any = _quiet(owner, name)
            if callable(getattr(tokenizer, "encode", None)):
                return lambda text: len(tokenizer.encode(text))
    tokenize = get_tokenizer()
    return lambda text: len(tokenize(text))


def _quiet(owner: Any, name: str) -> Any:
    # a tokenizer property may try to load something; without it the default one counts
    try:
        return getattr(owner, name, None)
    except Exception:
        return None
