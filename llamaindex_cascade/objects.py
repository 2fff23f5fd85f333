"""How one tier is asked for an object: schema, tool, plain text, or its own way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.core.types import PydanticProgramMode

from cascadellm.answer import Answer
from llamaindex_cascade.local import LocalLLM

__all__ = ["as_object_text", "native_call", "object_arguments", "route", "wrapped_object"]

Route = Literal["schema", "tool", "text", "native"]


def route(llm: LLM) -> Route:
    """Return how an LLM is asked for an object.

    Where its own `structured_predict` is upstream's, the same steps are taken here, because
    that method hides the response and with it the token scores.
    """
    owner = next(cls for cls in type(llm).__mro__ if "structured_predict" in vars(cls))
    ours = owner is LLM or owner.__module__.startswith(("llama_index.llms.openai.", __package__))
    mode = llm.pydantic_program_mode
    known = (PydanticProgramMode.DEFAULT, PydanticProgramMode.FUNCTION, PydanticProgramMode.LLM)
    if not ours or mode not in known:
        return "native"
    if mode is PydanticProgramMode.LLM:
        return "text"
    schema = getattr(llm, "_should_use_structure_outputs", None)
    if mode is PydanticProgramMode.DEFAULT and callable(schema) and schema():
        return "schema"
    able = llm.metadata.is_function_calling_model and isinstance(llm, FunctionCallingLLM)
    return "tool" if able else "text"


def object_arguments(
    llm: LLM, output_cls: type[BaseModel], messages: list[ChatMessage], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of `chat` that ask for an object.

    Args:
        llm: The tier's LLM; its route is not `native`.
        output_cls: The class wanted.
        messages: The conversation; a copy that may be changed.
        kwargs: Call arguments.
    """
    way = route(llm)
    if way == "schema":
        prepare: Any = llm._prepare_schema  # type: ignore[attr-defined]  # noqa: SLF001 - upstream's own step
        return {"messages": messages, **prepare(dict(kwargs), output_cls)}
    if way == "tool" and isinstance(llm, FunctionCallingLLM):
        return llm._prepare_chat_with_tools_compat(  # noqa: SLF001 - their hook
            [get_function_tool(output_cls)],
            chat_history=messages,
            tool_required=True,
            **kwargs,
        )
    formatted = PydanticOutputParser(output_cls=output_cls).format_messages(messages)
    shaped = {"output_schema": output_cls.model_json_schema()} if isinstance(llm, LocalLLM) else {}
    return {"messages": formatted, **shaped, **kwargs}


def native_call(
    output_cls: type[BaseModel], messages: list[ChatMessage], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of an LLM's own `structured_predict`."""
    prompt = ChatPromptTemplate(message_templates=messages)
    return {"output_cls": output_cls, "prompt": prompt, "llm_kwargs": dict(kwargs)}


def wrapped_object(value: BaseModel) -> ChatResponse:
    """Return an object as the response that says it; its tokens and usage are unknown."""
    message = ChatMessage(role=MessageRole.ASSISTANT, content=value.model_dump_json())
    return ChatResponse(message=message, raw={"object": value})


def as_object_text(answer: Answer) -> Answer:
    """Return an answer whose text is the object, also where it came as a tool call."""
    if not answer.tool_calls:
        return answer
    call = answer.tool_calls[0]
    text = call.raw if call.arguments is None else json.dumps(dict(call.arguments), default=str)
    return replace(answer, text=text, tool_calls=())
