"""Training conversations with tool calls, verdicts and JSON objects."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from cascadellm.demo import facts, tools
from cascadellm.demo import train_layouts as lay
from cascadellm.demo.train_context import fresh
from cascadellm.demo.words import NAMES, PLACES

_SYLLABLES = "ka zor vi mel tan rup des qui lo bra fen dul shi gar mo".split()


def word(rng: Random) -> str:
    """Make up a word, so that copying does not depend on the word pools."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 3))).capitalize()


def variant(rng: Random, tool: dict[str, Any]) -> dict[str, Any]:
    """Render a tool as LangChain or as LlamaIndex does, at times described otherwise."""
    function = json.loads(json.dumps(tool["function"]))
    name, about = function["name"], function["description"]
    argument = next(iter(function["parameters"]["properties"]))
    if rng.random() < 0.25:
        about = rng.choice(_DESCRIPTIONS[name])
    if rng.random() < 0.45:
        function["parameters"]["properties"] = {
            argument: {"title": argument.title(), "type": "string"}
        }
        if rng.random() < 0.8:
            about = f"{name}({argument}: str) -> str\n{about}"
    function["description"] = about
    return {"type": "function", "function": function}


_DESCRIPTIONS = {
    "calculator": (
        "Evaluate an arithmetic expression and return the result.",
        "Compute the value of an expression.",
        "A calculator. Use it for arithmetic.",
        "Calculate.",
    ),
    "lookup": (
        "Look up what is known about a name.",
        "Look up facts about a person, a place or a thing by name.",
        "Return the facts about a name.",
        "Search for a name.",
    ),
}


def _tool_turns(rng: Random, skill: str) -> lay.Conversation:
    both = [tools.CALCULATOR, tools.LOOKUP]
    rng.shuffle(both)
    mine = tools.CALCULATOR if skill == "calculator" else tools.LOOKUP
    used = both if rng.random() < 0.75 else [mine]
    messages = lay.maybe_system(rng, 0.5)
    for _ in range(rng.choice((1, 1, 1, 2))):
        made = fresh(rng, skill)
        if skill == "calculator" and rng.random() < 0.2:
            made = fresh(rng, "word_problem", 1)
            calculation = made.solution.split(": ")[-1].split(" = ")[0]
            call = {"name": "calculator", "arguments": {"expression": calculation}}
            messages += [lay.user(made.question + " Use the calculator."), lay.assistant("", call)]
            messages += [lay.tool_result(made.answer)]
            reply = f"{calculation} = {made.answer}. The answer is {made.answer}."
            messages += [lay.assistant(reply)]
            continue
        call = made.call or {}
        result = made.run_tool(call["name"], call["arguments"])
        reply = made.solution
        if skill == "lookup" and rng.random() < 0.08:
            result, reply = "Nothing found.", facts.NO_ANSWER
        messages += [lay.user(made.question), lay.assistant("", call)]
        messages += [lay.tool_result(result), lay.assistant(reply)]
    return messages, [variant(rng, tool) for tool in used]


def calculator(rng: Random) -> lay.Conversation:
    """A calculation left to the calculator."""
    return _tool_turns(rng, "calculator")


def lookup(rng: Random) -> lay.Conversation:
    """A fact looked up by name."""
    return _tool_turns(rng, "lookup")


def own_tool(rng: Random) -> lay.Conversation:
    """A tool of any name with one argument, called because the user says so."""
    name = "_".join(word(rng).lower() for _ in range(rng.randint(1, 2)))
    argument = rng.choice(("input", "value", "x", "city", "text", "query", word(rng).lower()))
    number = rng.random() < 0.5
    value: Any = rng.randint(0, 99) if number else rng.choice((*PLACES, *NAMES))
    shape = {"type": "integer" if number else "string"}
    if rng.random() < 0.4:
        shape = {"title": argument.title(), **shape}
    about = rng.choice((f"Run {name}.", "Apply the function to an input.", f"Get the {argument}."))
    parameters = {"properties": {argument: shape}, "required": [argument], "type": "object"}
    function = {"name": name, "description": about, "parameters": parameters}
    used = [{"type": "function", "function": function}]
    if rng.random() < 0.4:
        used.insert(rng.randrange(2), variant(rng, rng.choice((tools.CALCULATOR, tools.LOOKUP))))
    query = f"What is the value of {name}({value})? Use the tool."
    result = str(rng.randint(0, 999))
    call = {"name": name, "arguments": {argument: value}}
    messages = [*lay.maybe_system(rng, 0.3), lay.user(query), lay.assistant("", call)]
    return [*messages, lay.tool_result(result), lay.assistant(f"The answer is {result}.")], used


def judge(rng: Random) -> lay.Conversation:
    """Verdicts on proposed answers."""
    messages = lay.maybe_system(rng, 0.1)
    for _ in range(rng.choice((1, 2, 3))):
        made = fresh(rng, "judge")
        messages += [lay.user(made.question), lay.assistant(made.solution)]
    return messages, []


def json_object(rng: Random) -> lay.Conversation:
    """A flat JSON object, asked for in words or through a tool that takes its fields."""
    made = fresh(rng, "json")
    if rng.random() < 0.6:
        asked = [*lay.maybe_system(rng, 0.2), lay.user(made.question)]
        return [*asked, lay.assistant(made.solution)], []
    value = json.loads(made.answer)
    titled = rng.random() < 0.5
    shapes = {
        key: {
            **({"title": key.title()} if titled else {}),
            "type": "integer" if key == "age" else "string",
        }
        for key in value
    }
    parameters = {"properties": shapes, "required": list(shapes), "type": "object"}
    name = rng.choice(("Person", "Person", "Person", "Profile", "Record"))
    function = {"name": name, "description": f"A {name.lower()}.", "parameters": parameters}
    said = made.question.split("\n")[0]
    call = {"name": name, "arguments": value}
    messages = [lay.user(said), lay.assistant("", call)]
    return messages, [{"type": "function", "function": function}]
