"""LangChain messages, tools and schemas to the engine's records and back."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    convert_to_openai_messages,
    message_chunk_to_message,
)
from langchain_core.utils.function_calling import convert_to_openai_tool

from cascadellm.answer import Answer, ToolCall, Usage
from cascadellm.errors import ConfigurationError
from cascadellm.logprobs import complete, openai_shape, part_of, token_scores

__all__ = [
    "answer_of",
    "as_message",
    "buffer_text",
    "chat_dicts",
    "local_message",
    "openai_tools",
    "response_schema",
    "tool_required",
    "usage_counts",
]

_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
}
_ROLES = {"human": "user", "system": "system"}


def as_message(output: Any) -> AIMessage:
    """Return a tier's output as one whole `AIMessage`.

    Raises:
        ConfigurationError: The output is neither a message nor text.
    """
    if isinstance(output, AIMessageChunk):
        output = message_chunk_to_message(output)
    if isinstance(output, AIMessage):
        return output
    if isinstance(output, BaseMessage):
        return AIMessage(content=output.content, response_metadata=output.response_metadata)
    if isinstance(output, str):
        return AIMessage(content=output)
    raise ConfigurationError(
        f"a tier must answer with a message or text, got {type(output).__name__}; end its chain "
        "with the chat model or a StrOutputParser"
    )


def answer_of(message: AIMessage) -> Answer:
    """Read a message into an `Answer`; the message itself stays in `Answer.native`."""
    metadata = message.response_metadata
    text, reasoning = _text_and_reasoning(message)
    calls = tuple(_tool_calls(message))
    usage, thought = usage_counts(message)
    tokens = token_scores(metadata.get("logprobs"))
    visible = None if usage is None else usage.output_tokens - thought
    if complete(tokens, text, visible, bool(calls)):
        assert tokens is not None
        tokens = part_of(tokens, text, reasoning, bool(calls))
    else:
        tokens = None
    return Answer(
        text=text,
        tokens=tokens,
        tool_calls=calls,
        usage=usage,
        finish_reason=_finish_reason(metadata),
        refusal=_refusal(message),
        reasoning=reasoning,
        native=message,
        spans=_spans(metadata),
        speculation=metadata.get("speculation"),
    )


def _text_and_reasoning(message: AIMessage) -> tuple[str, str | None]:
    text = message.content if isinstance(message.content, str) else str(message.text)
    reasoning = message.additional_kwargs.get("reasoning_content")
    if isinstance(message.content, list):
        thoughts = [
            block.get("thinking") or block.get("reasoning")
            for block in message.content
            if isinstance(block, dict) and block.get("type") in ("thinking", "reasoning")
        ]
        reasoning = reasoning or "".join(t for t in thoughts if isinstance(t, str))
    opened = text.lstrip()
    if opened.startswith("<think>") and "</think>" in opened:
        inner, _, rest = opened.removeprefix("<think>").partition("</think>")
        return rest.lstrip(), reasoning or inner.strip()
    return text, reasoning or None


def _tool_calls(message: AIMessage) -> Sequence[ToolCall]:
    found = [
        ToolCall(call["name"], call["args"], call["id"] or "", raw=json.dumps(call["args"]))
        for call in message.tool_calls
    ]
    broken = [
        ToolCall(call["name"] or "", None, call["id"] or "", raw=call["args"] or "")
        for call in message.invalid_tool_calls
    ]
    return found + broken


def usage_counts(message: AIMessage) -> tuple[Usage | None, int]:
    """Return the message's usage, and how many of the output tokens were reasoning."""
    usage = message.usage_metadata
    if not usage or "input_tokens" not in usage:
        return None, 0
    thought = (usage.get("output_token_details") or {}).get("reasoning") or 0
    return Usage(usage["input_tokens"], usage["output_tokens"]), thought


def _finish_reason(metadata: Mapping[str, Any]) -> str | None:
    for key in ("finish_reason", "stop_reason", "done_reason"):
        reason = metadata.get(key)
        if isinstance(reason, str) and reason:
            return _FINISH.get(reason.lower(), reason.lower())
    return None


def _refusal(message: AIMessage) -> str | None:
    refusal = message.additional_kwargs.get("refusal")
    if refusal:
        return str(refusal)
    if isinstance(message.content, list):
        for block in message.content:
            if isinstance(block, dict) and block.get("type") == "refusal":
                return str(block.get("refusal") or "refused")
    return None


def _spans(metadata: Mapping[str, Any]) -> tuple[tuple[int, int, str], ...] | None:
    spans = metadata.get("spans")
    if not isinstance(spans, (list, tuple)):
        return None
    return tuple((int(start), int(end), str(name)) for start, end, name in spans)


def local_message(answer: Answer, model_name: str) -> AIMessage:
    """Return the message of a local model's answer, logprobs in OpenAI's shape."""
    metadata: dict[str, Any] = {"model_name": model_name, "model_provider": "local"}
    if answer.finish_reason:
        metadata["finish_reason"] = answer.finish_reason
    if answer.tokens is not None:
        metadata["logprobs"] = openai_shape(answer.tokens)
    if answer.spans is not None:
        metadata["spans"] = [list(span) for span in answer.spans]
    if answer.speculation is not None:
        metadata["speculation"] = dict(answer.speculation)
    extra: dict[str, Any] = {}
    if answer.reasoning:
        extra["reasoning_content"] = answer.reasoning
    if answer.refusal:
        extra["refusal"] = answer.refusal
    good: list[Any] = []
    broken: list[Any] = []
    for call in answer.tool_calls:
        shared = {"name": call.name, "id": call.id or f"call_{uuid.uuid4().hex[:16]}"}
        if call.arguments is None:
            broken.append(
                {**shared, "type": "invalid_tool_call", "args": call.raw, "error": "no JSON object"}
            )
        else:
            good.append({**shared, "type": "tool_call", "args": dict(call.arguments)})
    message = AIMessage(
        content=answer.text,
        additional_kwargs=extra,
        response_metadata=metadata,
        tool_calls=good,
        invalid_tool_calls=broken,
    )
    if answer.usage is not None:
        message.usage_metadata = {
            "input_tokens": answer.usage.input_tokens,
            "output_tokens": answer.usage.output_tokens,
            "total_tokens": answer.usage.total_tokens,
        }
    return message


def chat_dicts(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Return messages as chat dicts in OpenAI form, which local models read."""
    return [_chat_dict(message) for message in messages]


def _chat_dict(message: BaseMessage) -> dict[str, Any]:
    if isinstance(message, AIMessage):
        return _assistant(message)
    role = _ROLES.get(message.type)
    plain = not message.additional_kwargs and isinstance(message.content, str)
    if role is not None and plain:
        return {"role": role, "content": message.content}
    try:
        converted = convert_to_openai_messages([message])
    except ValueError as error:
        raise ConfigurationError(
            f"local models read text only, and a {message.type} message holds more "
            f"({str(error)[:200]}); remove it, or let another tier answer this request"
        ) from error
    assert isinstance(converted, list)
    return converted[0]


def _assistant(message: AIMessage) -> dict[str, Any]:
    """Return an answer as text and calls: other providers' thoughts mean nothing to a template."""
    text = message.content if isinstance(message.content, str) else str(message.text)
    found: dict[str, Any] = {"role": "assistant", "content": text}
    calls = [(c["id"], c["name"], json.dumps(c["args"])) for c in message.tool_calls]
    calls += [(c["id"], c["name"] or "", c["args"] or "") for c in message.invalid_tool_calls]
    if calls:
        found["tool_calls"] = [
            {"id": i or "", "type": "function", "function": {"name": name, "arguments": written}}
            for i, name, written in calls
        ]
    thought = message.additional_kwargs.get("reasoning_content")
    if thought and message.response_metadata.get("model_provider") == "local":
        found["reasoning_content"] = thought
    return found


def buffer_text(messages: Sequence[BaseMessage]) -> str:
    """Return a conversation as neutral text, as the LlamaIndex adapter does.

    One message is its text; several are a line each, `role: text`.
    """
    if len(messages) == 1:
        return _said(messages[0])
    return "\n".join(f"{_role(message)}: {_said(message)}" for message in messages)


def _role(message: BaseMessage) -> str:
    named = {"human": "user", "ai": "assistant"}.get(message.type, message.type)
    return str(getattr(message, "role", None) or named)


def _said(message: BaseMessage) -> str:
    calls = getattr(message, "tool_calls", None) or ()
    asked = [f"{call['name']}({json.dumps(call['args'], default=str)})" for call in calls]
    return "\n".join(part for part in (str(message.text), *asked) if part)


def openai_tools(tools: Any) -> tuple[dict[str, Any], ...]:
    """Return tools (dicts, classes, functions, `BaseTool`s) in OpenAI form.

    Raises:
        ConfigurationError: One of them is none of these.
    """
    return tuple(_openai_tool(tool) for tool in tools or ())


def _openai_tool(tool: Any) -> dict[str, Any]:
    if isinstance(tool, dict) and tool.get("type") == "function" and "function" in tool:
        return tool
    try:
        return convert_to_openai_tool(tool)
    except Exception as error:
        raise ConfigurationError(
            "a tool must be a LangChain tool, a function, a pydantic class or a dict in OpenAI "
            f"form; got {type(tool).__name__}: {error}"
        ) from error


def tool_required(choice: Any) -> bool:
    """Return whether a `tool_choice` obliges the model to call a tool."""
    return bool(choice) and choice not in ("auto", "none")


def response_schema(kwargs: Mapping[str, Any], structured: Any = None) -> dict[str, Any] | None:
    """Return the JSON schema that the answer's text must satisfy, None if there is none.

    Args:
        kwargs: Call arguments; `response_format` in OpenAI's form is read.
        structured: What `with_structured_output` says about the call; with function calling
            the schema is the tool's own and the text is free.
    """
    response_format = kwargs.get("response_format")
    if isinstance(response_format, Mapping):
        if response_format.get("type") == "json_object":
            return {"type": "object"}
        inner = response_format.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        return dict(schema) if isinstance(schema, Mapping) else None
    if not isinstance(structured, Mapping):
        return None
    options = structured.get("kwargs")
    method = options.get("method") if isinstance(options, Mapping) else None
    if method in (None, "function_calling") or kwargs.get("tools"):
        return None
    try:
        function = convert_to_openai_tool(structured.get("schema") or {})["function"]
    except Exception:
        # a schema that cannot be read constrains nothing; the caller's parser still judges
        return None
    return dict(function.get("parameters") or {}) or None
