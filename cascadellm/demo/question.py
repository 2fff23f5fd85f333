"""A demo question: what is asked, what is right, and the tools that may help."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cascadellm.demo import tools

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its answer.

    Args:
        question: The whole user message, context included.
        answer: The value asked for, as text.
        skill: The skill it tests; `tasks.SKILLS` lists them.
        steps: Calculations or facts needed.
        tools: Tool schemas in the OpenAI form; empty where none is needed.
        query: The bare question; what a retriever should search for.
        facts: The sentences of the context, or what the lookup tool knows; each a document.
        call: The tool call expected first, as {"name", "arguments"}.
        form: Which template family wrote it.
        solution: A model answer (after the tool result where a tool is called).
        wrong: Values that must not stand in the last sentence of a right answer.
    """

    question: str
    answer: str
    skill: str
    steps: int = 1
    tools: tuple[dict[str, Any], ...] = ()
    query: str = ""
    facts: tuple[str, ...] = ()
    call: dict[str, Any] | None = field(default=None, hash=False)
    form: str = ""
    solution: str = ""
    wrong: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return hash((self.question, self.answer, self.skill))

    def grade(self, text: str) -> bool:
        """Tell whether a text gives the right answer: tolerant in form, strict in value.

        Args:
            text: A whole answer. Where a tool is expected, its call is accepted too.
        """
        made = _CALL.search(text)
        if made:
            return self.call is not None and same_call(made.group(1), self.call)
        text = text.strip()
        if not text:
            return False
        if self.skill == "not_in_context":
            return bool(re.search(r"does(?: not|n't) (?:hold|contain|say|have)", text))
        if self.skill == "json":
            return _same_json(text, self.answer)
        if self.skill == "judge":
            said = re.findall(r"\b(true|false)\b", text, re.IGNORECASE)
            return bool(said) and said[-1].capitalize() == self.answer
        if _NUMBER.fullmatch(self.answer):
            numbers = _NUMBER.findall(text)
            return bool(numbers) and float(numbers[-1].replace(",", "")) == float(self.answer)
        last = re.split(r"(?<=[.!?])\s+", text)[-1]
        return _says(last, self.answer) and not any(_says(last, word) for word in self.wrong)

    def run_tool(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Run a demo tool as this question's world would: what an agent loop feeds back.

        Args:
            name: "calculator" or "lookup".
            arguments: The arguments of the call.
        Returns: The result as text; for an unknown tool or a bad expression, what went wrong.
        """
        if name == "calculator":
            try:
                return tools.calculator(str(arguments.get("expression", "")))
            except ValueError as error:
                return f"Error: {error}"
        if name == "lookup":
            key = str(arguments.get("name", ""))
            found = [fact for fact in self.facts if key and _says(fact, key)]
            return " ".join(found) or "Nothing found."
        return f"Error: unknown tool {name}"


def same_call(text: str, expected: Mapping[str, Any]) -> bool:
    """Tell whether a JSON call names the expected tool with arguments of the same value."""
    try:
        made = json.loads(text)
        arguments = made["arguments"]
        if made["name"] != expected["name"]:
            return False
        if made["name"] != "calculator":
            return bool(arguments == expected["arguments"])
        want, got = (tools.calculator(a["expression"]) for a in (expected["arguments"], arguments))
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return want == got


def _says(text: str, word: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def _same_json(text: str, answer: str) -> bool:
    try:
        return bool(json.loads(text) == json.loads(answer))
    except ValueError:
        return False
