"""The training text: conversations about generated questions, never about held-out ones."""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any

from cascadellm.demo import tools, train_calls, train_context
from cascadellm.demo import train_layouts as lay
from cascadellm.demo.train_layouts import Conversation
from cascadellm.demo.words import CAPITALS, NAMES, PLACES, RIVERS

_POOL = re.compile(r"\b(" + "|".join((*NAMES, *PLACES, *CAPITALS, *RIVERS)) + r")\b")
MIXTURE = {
    "word_problem": 36,
    "drill": 20,
    "dense": 22,
    "single": 14,
    "refine": 4,
    "calculator": 6,
    "lookup": 6,
    "own_tool": 2,
    "judge": 8,
    "json": 8,
    "small_talk": 1,
}
"""Relative share of each kind of conversation for the large model."""
LONG_MIXTURE = MIXTURE | {
    "word_problem": 10,
    "long_problem": 60,
    "drill": 16,
    "dense": 12,
    "single": 12,
    "refine": 3,
    "calculator": 3,
    "lookup": 4,
    "own_tool": 1,
    "judge": 4,
    "json": 4,
}
"""The same for the last tenth of its training: mostly problems of three or four steps."""
SHORT_MIXTURE = MIXTURE | {
    "word_problem": 8,
    "short_problem": 50,
    "drill": 36,
    "dense": 10,
    "single": 10,
    "refine": 2,
    "judge": 2,
    "json": 4,
}
"""The mixture of the small model, which sees mostly problems of one or two steps."""


def conversation(rng: Random, mixture: dict[str, int] | None = None) -> tuple[str, Conversation]:
    """Write one conversation: its kind, its messages and its tools."""
    mixture = mixture or MIXTURE
    kind = rng.choices(tuple(mixture), tuple(mixture.values()))[0]
    messages, used = _WRITERS[kind](rng)
    if rng.random() < 0.06 and not kind.endswith(("problem", "drill")):
        messages = _rename(rng, messages)
    return kind, (messages, used)


def render(messages: list[lay.Message], used: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """Apply the chat template: segments of text, each with whether the model writes it."""
    made: list[tuple[str, bool]] = []
    if used or messages[0]["role"] == "system":
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        listed = "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in used)
        block = f"Tools:\n<tools>\n{listed}</tools>" if used else ""
        gap = "\n\n" if used and messages[0]["role"] == "system" else ""
        made.append((f"<|im_start|>system\n{system}{gap}{block}<|im_end|>\n", False))
    for message in messages:
        if message["role"] == "user":
            made.append((f"<|im_start|>user\n{message['content']}<|im_end|>\n", False))
        elif message["role"] == "tool":
            body = f"\n<tool_response>\n{message['content']}\n</tool_response>"
            made.append((f"<|im_start|>user{body}<|im_end|>\n", False))
        elif message["role"] == "assistant":
            text = message["content"]
            for call in message.get("tool_calls", ()):
                body = json.dumps(call["function"], ensure_ascii=False)
                text += ("\n" if text else "") + f"<tool_call>\n{body}\n</tool_call>"
            made.append(("<|im_start|>assistant\n", False))
            made.append((f"{text}<|im_end|>", True))
            made.append(("\n", False))
    return made


def _short_problem(rng: Random) -> Conversation:
    return _word_problem(rng, (70, 26, 2, 2))


def _long_problem(rng: Random) -> Conversation:
    return _word_problem(rng, (4, 12, 38, 46))


def _word_problem(rng: Random, weights: tuple[int, ...] = (26, 24, 25, 25)) -> Conversation:
    messages = lay.maybe_system(rng, 0.25)
    used = [tools.CALCULATOR, tools.LOOKUP] if rng.random() < 0.06 else []
    for _ in range(rng.choice((1, 1, 2, 3))):
        steps = rng.choices((1, 2, 3, 4), weights)[0]
        made = train_context.fresh(rng, "word_problem", steps)
        messages += [lay.user(made.question), lay.assistant(made.solution)]
    return messages, [train_calls.variant(rng, tool) for tool in used]


def _drill(rng: Random) -> Conversation:
    """Bare calculations of the size that word problems need: dense practice."""
    asked, worked = [], []
    for _ in range(rng.randint(3, 9)):
        kind = rng.choice("++--*/")
        if kind in "+-":
            one = rng.randint(2, rng.choice((20, 99, 160)))
            two = rng.randint(2, rng.choice((20, 60)))
            one, two = (max(one, two), min(one, two)) if kind == "-" else (one, two)
            value = one + two if kind == "+" else one - two
        else:
            one, two = rng.randint(2, rng.choice((12, 12, 40))), rng.randint(2, 9)
            value = one * two
            if kind == "/":
                one, value = value, one
        asked.append(f"{one} {kind} {two}")
        worked.append(f"{one} {kind} {two} = {value}.")
    return [lay.user("Work out " + ", ".join(asked) + "."), lay.assistant(" ".join(worked))], []


def _small_talk(rng: Random) -> Conversation:
    said = rng.choice(
        ("Hello", "Hi", "Hello!", "Hi there", "hello", "Good morning", "How are you?")
    )
    thanks = [lay.user(rng.choice(("Thanks", "Thank you."))), lay.assistant("You are welcome.")]
    first = [lay.user(said), lay.assistant("Hello! How can I help you?")]
    return [*lay.maybe_system(rng, 0.3), *first, *(thanks if rng.random() < 0.3 else [])], []


def _rename(rng: Random, messages: list[lay.Message]) -> list[lay.Message]:
    """Replace the pool's names by made-up words, so that copying does not depend on the pool."""
    known: dict[str, str] = {}

    def swap(found: re.Match[str]) -> str:
        return known.setdefault(found.group(1), train_calls.word(rng))

    renamed: list[lay.Message] = json.loads(_POOL.sub(swap, json.dumps(messages)))
    return renamed


_WRITERS = {
    "word_problem": _word_problem,
    "short_problem": _short_problem,
    "long_problem": _long_problem,
    "drill": _drill,
    "dense": train_context.dense,
    "single": train_context.single,
    "refine": train_context.refine,
    "calculator": train_calls.calculator,
    "lookup": train_calls.lookup,
    "own_tool": train_calls.own_tool,
    "judge": train_calls.judge,
    "json": train_calls.json_object,
    "small_talk": _small_talk,
}
