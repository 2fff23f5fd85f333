"""Splitting what a model writes into answer, reasoning block and tool calls, as it arrives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from cascadellm.answer import Part, ToolCall
from cascadellm.local.toolcalls import hermes_call, schema_call

__all__ = ["TAGS", "Sections", "StopStrings", "TagSections", "TemplateSections", "open_suffix"]

_THINK, _THINK_END = "<think>", "</think>"
_CALL, _CALL_END = "<tool_call>", "</tool_call>"

TAGS = (_THINK, _THINK_END, _CALL, _CALL_END)
"""Tags of the Hermes/Qwen form; part of the text even where a tokenizer calls them special."""

Chunk = tuple[Part, str]
_OPENS: dict[str, Part] = {_THINK: "reasoning", _CALL: "arguments"}


class Sections(Protocol):
    """Assigns every character to a part; chunks come out in the order of the text."""

    calls: list[ToolCall]

    def feed(self, text: str) -> list[Chunk]:
        """Take new characters; return those whose part is now certain."""

    def finish(self) -> list[Chunk]:
        """Return the rest; the text ends here."""


def open_suffix(text: str, tags: Sequence[str]) -> int:
    """Return the length of the longest end of `text` that may still become one of `tags`."""
    longest = max(map(len, tags), default=0) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        if any(len(tag) > length and tag.startswith(end) for tag in tags):
            return length
    return 0


class StopStrings:
    """Cuts a text before the first stop string.

    Attributes:
        hit: Whether a stop string was found; nothing passes after it.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.hit = False

    def feed(self, text: str) -> str:
        """Return the characters that cannot belong to a stop string any more."""
        if self.hit or not self._stop:
            return "" if self.hit else text
        text = self._held + text
        found = [(at + len(s), at) for s in self._stop if (at := text.find(s)) >= 0]
        if found:
            self.hit, self._held = True, ""
            # the one that ends first, as if the characters had come one by one
            return text[: min(found)[1]]
        cut = len(text) - open_suffix(text, self._stop)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """Return what was held back; no stop string can follow."""
        held, self._held = self._held, ""
        return held


class TagSections:
    """Reads `<think>` blocks and Hermes/Qwen `<tool_call>` blocks.

    A reasoning block opens only where nothing but space precedes it in its section, so an
    answer about the tag itself stays an answer. Tool calls are read only when tools were given.

    Args:
        tools: Whether the request offers tools.
        thinking: Whether the prompt ends inside a reasoning block.
    """

    def __init__(self, *, tools: bool, thinking: bool = False) -> None:
        self._tools = tools
        self._mode: Part = "reasoning" if thinking else "answer"
        self._fresh = True
        self._held = ""
        self._body = ""
        self.calls: list[ToolCall] = []

    def feed(self, text: str) -> list[Chunk]:
        """Take new characters; return those whose part is now certain."""
        self._held += text
        chunks: list[Chunk] = []
        while self._held and self._advance(chunks):
            pass
        return chunks

    def finish(self) -> list[Chunk]:
        """Return the rest; a tool call that was not closed is read as far as it goes."""
        chunks: list[Chunk] = []
        self._emit(chunks, self._held)
        self._held = ""
        if self._mode == "arguments":
            self._close_call()
        return chunks

    def _advance(self, chunks: list[Chunk]) -> bool:
        """Consume up to the next tag; False when more text is needed."""
        tags = self._tags()
        found = [(at, tag) for tag in tags if (at := self._held.find(tag)) >= 0]
        if found:
            at, tag = min(found)
            if tag == _THINK and self._held[:at].strip():
                self._fresh = False
                return True
            if tag == _CALL_END and _inside_string(self._body + self._held[:at]):
                end = at + len(tag)
                self._emit(chunks, self._held[:end])
                self._held = self._held[end:]
                return True
            self._emit(chunks, self._held[:at])
            chunks.append(("other", tag))
            self._held = self._held[at + len(tag) :]
            self._turn(tag)
            return True
        cut = len(self._held) - open_suffix(self._held, tags)
        self._emit(chunks, self._held[:cut])
        self._held = self._held[cut:]
        return False

    def _tags(self) -> list[str]:
        if self._mode == "reasoning":
            return [_THINK_END]
        if self._mode == "arguments":
            return [_CALL_END]
        return [_THINK] * self._fresh + [_CALL] * self._tools

    def _turn(self, tag: str) -> None:
        if tag == _CALL_END:
            self._close_call()
        self._mode = _OPENS.get(tag, "answer")
        self._fresh = True

    def _emit(self, chunks: list[Chunk], text: str) -> None:
        if not text:
            return
        chunks.append((self._mode, text))
        if self._mode == "arguments":
            self._body += text
        elif self._mode == "answer" and text.strip():
            self._fresh = False

    def _close_call(self) -> None:
        self.calls.append(hermes_call(self._body))
        self._body = ""


def _inside_string(written: str) -> bool:
    """Return whether JSON ends inside a string here; a line break ends every string."""
    inside = escaped = False
    for character in written[written.rfind("\n") + 1 :]:
        if escaped:
            escaped = False
        elif character == '"':
            inside = not inside
        else:
            escaped = inside and character == "\\"
    return inside


_PARTS: dict[str, Part] = {
    "content": "answer",
    "reasoning_content": "reasoning",
    "reasoning": "reasoning",
    "thinking": "reasoning",
    "tool_calls": "arguments",
}


class TemplateSections:
    """Reads the form that a tokenizer declares itself, through transformers' own parser.

    Args:
        template: The tokenizer's `response_template`.
        prompt: The rendered prompt, which may open a block of the answer.
        tools: Tool specifications in OpenAI form, to cast arguments by their schema.
    """

    def __init__(self, template: Any, prompt: str, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        from transformers.utils.chat_parsing import ResponseParser

        self._parser: Any = ResponseParser(
            template, prefix=prompt, tools=[dict(tool) for tool in tools]
        )
        self._text = ""
        self._body = ""
        self._broken = False
        self.calls: list[ToolCall] = []

    def feed(self, text: str) -> list[Chunk]:
        """Take new characters; return those whose part is now certain."""
        chunks: list[Chunk] = []
        # one by one, so that an error in the text means the same for every grouping
        for character in text:
            self._text += character
            chunks += self._read(partial(self._parser.feed, character))
        return chunks

    def finish(self) -> list[Chunk]:
        """Return the rest; the text ends here."""
        chunks = self._read(lambda: self._parser.finalize()[1])
        if self._text:
            chunks.append(("other", self._text))
            self._text = ""
        return chunks

    def _read(self, events: Callable[[], Any]) -> list[Chunk]:
        if self._broken:
            return []
        chunks: list[Chunk] = []
        try:
            for event in events():
                self._handle(event, chunks)
        except ValueError:
            # a malformed block cannot be parsed by the template; what follows is not an answer
            self._broken = True
            if self._body:
                self.calls.append(ToolCall("", None, raw=self._body))
        return chunks

    def _handle(self, event: Mapping[str, Any], chunks: list[Chunk]) -> None:
        part = _PARTS.get(event["field"], "other")
        if event["type"] == "region_chunk":
            text = event["text"]
            at = self._text.find(text)
            if at > 0:
                chunks.append(("other", self._text[:at]))
            chunks.append((part, text))
            self._text = self._text[max(at, 0) + len(text) :]
            self._body = self._body + text if part == "arguments" else ""
        elif event["type"] == "region_close" and part == "arguments":
            self.calls.extend(schema_call(event["value"], self._body))
            self._body = ""
