"""One agent's turn as each provider's client records it: thought, two calls, results, answer."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

__all__ = ["ANSWER", "SAID", "THOUGHT", "WRITERS", "history", "open_turn"]

THOUGHT = "I wonder about the weather"
SAID = "Let me look."
ANSWER = "Rain is wet and 2+3 is 5."
_CALLS = (("lookup", {"word": "rain"}), ("calc", {"x": "2+3"}))


def _tool_calls(ids: tuple[str, str]) -> list[Any]:
    return [
        {"name": name, "args": args, "id": call_id, "type": "tool_call"}
        for (name, args), call_id in zip(_CALLS, ids, strict=True)
    ]


def _openai(ids: tuple[str, str]) -> list[AIMessage]:
    shared = {"model_provider": "openai", "model_name": "gpt-4o", "logprobs": None}
    asked = {**shared, "id": "chatcmpl-1", "finish_reason": "tool_calls", "token_usage": {}}
    return [
        AIMessage(
            SAID,
            additional_kwargs={"refusal": None},
            response_metadata=asked,
            id="lc_run--1",
            tool_calls=_tool_calls(ids),
        ),
        AIMessage(ANSWER, response_metadata={**shared, "id": "chatcmpl-2"}, id="lc_run--2"),
    ]


def _responses(ids: tuple[str, str]) -> list[AIMessage]:
    reasoning = {
        "type": "reasoning",
        "id": "rs_68a1",
        "summary": [{"type": "summary_text", "text": THOUGHT}],
        "encrypted_content": "gAAAAABo",
    }
    said = {"type": "text", "text": SAID, "annotations": [], "id": "msg_68a2"}
    calls = [
        {
            "type": "function_call",
            "id": f"fc_68a{place}",
            "call_id": call_id,
            "name": name,
            "arguments": str(args).replace("'", '"'),
            "status": "completed",
        }
        for place, ((name, args), call_id) in enumerate(zip(_CALLS, ids, strict=True))
    ]
    metadata = {"id": "resp_68a0", "model_provider": "openai", "model_name": "gpt-5", "object": "x"}
    answer = {"type": "text", "text": ANSWER, "annotations": [], "id": "msg_68a9"}
    return [
        AIMessage(
            [reasoning, said, *calls],
            response_metadata=metadata,
            id="resp_68a0",
            tool_calls=_tool_calls(ids),
        ),
        AIMessage([answer], response_metadata={**metadata, "id": "resp_68a8"}, id="resp_68a8"),
    ]


def _anthropic(ids: tuple[str, str]) -> list[AIMessage]:
    thinking = {"type": "thinking", "thinking": THOUGHT, "signature": "EqQBCgIYAhIM"}
    redacted = {"type": "redacted_thinking", "data": "EmwKAhgB"}
    uses = [
        {"type": "tool_use", "id": call_id, "name": name, "input": args}
        for (name, args), call_id in zip(_CALLS, ids, strict=True)
    ]
    metadata = {"id": "msg_01Abc", "model_provider": "anthropic", "stop_reason": "tool_use"}
    return [
        AIMessage(
            [thinking, redacted, {"type": "text", "text": SAID}, *uses],
            response_metadata=metadata,
            id="lc_run--3",
            tool_calls=_tool_calls(ids),
        ),
        AIMessage(ANSWER, response_metadata={**metadata, "stop_reason": "end_turn"}, id="msg_01B"),
    ]


def _reasoning_content(provider: str) -> Any:
    def messages(ids: tuple[str, str]) -> list[AIMessage]:
        metadata = {"model_provider": provider, "model_name": "small", "finish_reason": "stop"}
        return [
            AIMessage(
                SAID,
                additional_kwargs={"reasoning_content": THOUGHT},
                response_metadata=metadata,
                tool_calls=_tool_calls(ids),
            ),
            AIMessage(ANSWER, response_metadata=metadata),
        ]

    return messages


WRITERS: dict[str, tuple[Any, tuple[str, str]]] = {
    "openai": (_openai, ("call_Rain0000000000000000001", "call_Calc0000000000000000002")),
    "openai-responses": (_responses, ("call_Rain0000000000000000003", "call_Calc000000000000004")),
    "anthropic": (_anthropic, ("toolu_01RainAAAAAAAAAAAAAAAAAA", "toolu_01CalcBBBBBBBBBBBBBBBBBB")),
    "local": (_reasoning_content("local"), ("call_0123456789abcdef", "call_fedcba9876543210")),
    "deepseek": (_reasoning_content("deepseek"), ("call_0_a", "call_1_b")),
    "strange ids": (_reasoning_content("other"), ("functions.lookup:0", "x" * 64)),
}
"""Provider -> what its client records, and identifiers of calls as it makes them."""


def open_turn(writer: str) -> list[BaseMessage]:
    """Return a conversation in the middle of an agent's turn: calls and results."""
    make, ids = WRITERS[writer]
    return [
        SystemMessage("Be brief."),
        HumanMessage("How is rain, and what is 2+3?"),
        make(ids)[0],
        ToolMessage("wet", tool_call_id=ids[0], name="lookup"),
        ToolMessage([{"type": "text", "text": "5"}], tool_call_id=ids[1], name="calc"),
    ]


def history(writer: str) -> list[BaseMessage]:
    """Return a conversation after an agent's turn, with the next question."""
    make, ids = WRITERS[writer]
    return [*open_turn(writer), make(ids)[1], HumanMessage("Thanks. And snow?")]
