"""From chat messages to a prompt: what templates expect, rendered and counted."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cascadellm.errors import ConfigurationError, ContextWindowError, ModelError
from cascadellm.local.history import fit_history

if TYPE_CHECKING:
    import torch

__all__ = ["Prompt", "check_room", "normalise", "plain_text", "render"]

_ROLES = {"developer": "system", "human": "user", "ai": "assistant", "function": "tool"}


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, ready for the model.

    Attributes:
        ids: Token ids. Shape (1, length), int64, on the CPU.
        text: The rendered text.
        tools: Tool specifications in OpenAI form.
    """

    ids: torch.Tensor
    text: str
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def length(self) -> int:
        """Number of tokens."""
        return int(self.ids.shape[1])

    @property
    def thinking(self) -> bool:
        """Whether the prompt ends inside a reasoning block that the template opened."""
        return self.text.rstrip().endswith("<think>")


def normalise(messages: Any) -> list[dict[str, Any]]:
    """Return messages in the form that chat templates read.

    Content becomes a string, a tool call's arguments a mapping, unknown keys stay.

    Args:
        messages: Chat dicts in OpenAI form (`role`, `content`, `tool_calls`, ...).

    Raises:
        ConfigurationError: Something is no chat message, or holds more than text.
    """
    if isinstance(messages, Mapping) or not isinstance(messages, Sequence):
        raise ConfigurationError(
            "messages must be a list of dicts with 'role' and 'content', or a string; "
            f"got {type(messages).__name__}"
        )
    if not messages:
        raise ConfigurationError("messages must hold at least one message, got an empty list")
    return [_message(message, place) for place, message in enumerate(messages)]


def plain_text(messages: Any) -> str:
    """Return the text of all messages in order, for models that are no chat models."""
    if isinstance(messages, str):
        return messages
    contents = (message["content"] for message in normalise(messages))
    return "\n".join(content for content in contents if content)


def render(
    tokenizer: Any,
    messages: Any,
    tools: Sequence[Mapping[str, Any]] | None,
    template_kwargs: Mapping[str, Any],
    name: str,
) -> str:
    """Render messages through the tokenizer's chat template, up to the assistant's turn.

    Raises:
        ModelError: There is no template, or the template refuses the messages.
    """
    template = template_kwargs.get("chat_template") or tokenizer.chat_template
    if not template:
        raise ModelError(
            f"{name} has no chat template, so it cannot read chat messages; pass a plain "
            "string, choose an instruction-tuned model, or give a template in "
            "chat_template_kwargs={'chat_template': ...}"
        )
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    options = {"add_generation_prompt": True, **template_kwargs, "tokenize": False}
    prepared = fit_history(normalise(turns), str(template))
    try:
        text: str = tokenizer.apply_chat_template(
            prepared, tools=list(tools) if tools else None, **options
        )
    except Exception as error:
        raise ModelError(
            f"the chat template of {name} refuses these messages "
            f"(roles: {', '.join(turn['role'] for turn in prepared)}): {error}"
        ) from error
    return text


def check_room(
    name: str, length: int, max_new_tokens: int | None, window: int, *, shared: bool
) -> None:
    """Check that prompt and answer fit the context window.

    Args:
        name: The model, for the message.
        length: Tokens of the prompt.
        max_new_tokens: Tokens kept free for the answer; None = at least one.
        window: The model's context window in tokens.
        shared: Whether prompt and answer share one window (not in encoder-decoder models).

    Raises:
        ContextWindowError: They do not fit.
    """
    free = (1 if max_new_tokens is None else max_new_tokens) if shared else 0
    if length + free <= window:
        return
    wanted = f" and up to {free} new ones" if free else ""
    remedy = "shorten the prompt"
    if free > 1 and length < window:
        remedy += f", set max_new_tokens to at most {window - length}"
    raise ContextWindowError(
        f"{name} reads at most {window} tokens, but the prompt has {length}{wanted}; "
        f"{remedy}, or use a model with a larger context window"
    )


def _message(message: Any, place: int) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ConfigurationError(
            f"message {place} must be a dict with a 'role' and a 'content', got {message!r:.200}"
        )
    role = message["role"]
    result = {**message, "role": _ROLES.get(role, role)}
    result["content"] = _content(message.get("content"), place)
    calls = message.get("tool_calls")
    if calls:
        result["tool_calls"] = [_tool_call(call, place) for call in calls]
    else:
        result.pop("tool_calls", None)
    return result


def _content(content: Any, place: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise ConfigurationError(
            f"the content of message {place} must be a string or a list of text blocks, "
            f"got {type(content).__name__}"
        )
    return "".join(_block(block, place) for block in content)


def _block(block: Any, place: int) -> str:
    if isinstance(block, str):
        return block
    if isinstance(block, Mapping) and isinstance(block.get("text"), str):
        return str(block["text"])
    kind = block.get("type") if isinstance(block, Mapping) else type(block).__name__
    raise ConfigurationError(
        f"message {place} holds a {kind!r} block; local models read text blocks only, "
        "so remove the block or defer this request to another tier"
    )


def _tool_call(call: Any, place: int) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ConfigurationError(
            f"a tool call of message {place} must be a dict with 'function' -> 'name' and "
            f"'arguments', got {call!r:.200}"
        )
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        # a malformed call in the history is shown to the model as it was written
        with contextlib.suppress(ValueError):
            arguments = json.loads(arguments or "{}")
    plain = {"name": function["name"], "arguments": {} if arguments is None else arguments}
    return {"id": call.get("id", ""), "type": "function", "function": plain}
