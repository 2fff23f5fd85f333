"""Held-out questions for the demo models: the same seed gives the same list.

A question is held out by construction: the hash of its text decides on which side it falls, this
module returns one side only and the training text is written from the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from hashlib import blake2b
from random import Random
from typing import Any

from cascadellm.demo import facts, problems, tools
from cascadellm.demo.question import Question
from cascadellm.demo.words import JOBS, NAMES, PLACES

SKILLS = (
    "word_problem",
    "one_fact",
    "two_facts",
    "not_in_context",
    "calculator",
    "lookup",
    "judge",
    "json",
)
"""All skills; the first six make up the default mixture."""


def held_out(key: str) -> bool:
    """Tell whether a question with this text is kept out of the training text."""
    return blake2b(key.encode(), digest_size=2).digest()[0] % 8 == 0


def questions(
    n: int, seed: int, skill: str | None = None, *, steps: int | None = None
) -> list[Question]:
    """Draw held-out questions.

    Args:
        n: How many.
        seed: The same seed gives the same list; all facts of one seed agree with each other.
        skill: One of `SKILLS`; None mixes the first six evenly.
        steps: For word problems, the number of steps; None mixes 1 to 4 evenly.

    Returns: The questions, none of which is in the training text.

    Raises:
        ValueError: If the skill is unknown.
    """
    if skill is not None and skill not in SKILLS:
        raise ValueError(f"expected one of {', '.join(SKILLS)}, received {skill!r}")
    rng, world = Random(f"questions|{seed}|{skill}|{steps}"), facts.World(seed)
    made: list[Question] = []
    seen: set[tuple[str, ...]] = set()
    while len(made) < n:
        name = skill or SKILLS[len(made) % 6]
        turn = len(made) // (1 if skill else 6)
        item = make(rng, world, name, steps or turn % 4 + 1)
        key = (item.question, *item.facts)
        if held_out(item.query) and key not in seen:
            seen.add(key)
            made.append(item)
    return made


def make(rng: Random, world: facts.World, skill: str, steps: int = 1) -> Question:
    """Write one question of a skill, on either side of the split.

    Args:
        rng: Source of randomness.
        world: Where facts come from.
        skill: One of `SKILLS`.
        steps: Steps of a word problem.
    """
    if skill == "word_problem":
        return _word_problem(rng, steps)
    return _MAKERS[skill](rng, world)


def _word_problem(rng: Random, steps: int) -> Question:
    made = problems.problem(rng, steps)
    return Question(
        question=made.text,
        answer=str(made.answer),
        skill="word_problem",
        steps=steps,
        query=made.text,
        form=made.form,
        solution=made.solution,
    )


def from_context(
    rng: Random, world: facts.World, ask: facts.Ask, skill: str, missing: int | None = None
) -> Question:
    """Put a question about facts into a context that holds or lacks its answer."""
    found = facts.context(rng, world, ask, rng.randint(4, 9), missing)
    reply = ask.reply if missing is None else (*ask.reply[:missing], facts.NO_ANSWER)
    values = {world.value(*_pair) for _pair in ask.needs}
    wrong = [w for w in (*NAMES, *PLACES, *JOBS) if w != ask.answer and w not in ask.query]
    return Question(
        question="Answer from the context.\n\nContext:\n"
        + "\n".join(found)
        + f"\n\nQuestion: {ask.query}",
        answer=ask.answer if missing is None else facts.NO_ANSWER,
        skill=skill,
        steps=len(ask.needs),
        query=ask.query,
        facts=found,
        form=ask.form,
        solution=" ".join(reply),
        wrong=tuple(w for w in wrong if w not in values),
    )


def _one_fact(rng: Random, world: facts.World) -> Question:
    return from_context(rng, world, facts.one_fact(rng, world), "one_fact")


def _two_facts(rng: Random, world: facts.World) -> Question:
    return from_context(rng, world, facts.two_facts(rng, world), "two_facts")


def _not_in_context(rng: Random, world: facts.World) -> Question:
    if rng.random() < 0.7:
        return from_context(rng, world, facts.one_fact(rng, world), "not_in_context", 0)
    ask = facts.two_facts(rng, world)
    return from_context(rng, world, ask, "not_in_context", rng.randrange(2))


def _calculator(rng: Random, world: facts.World) -> Question:
    del world
    one, two, three = (rng.randint(2, 10 ** rng.randint(1, 4) + 5) for _ in range(3))
    sign, other = rng.choice("+-*"), rng.choice("+-*")
    expression = f"{one} {sign} {two}"
    if rng.random() < 0.3:
        expression = rng.choice(
            (f"({expression}) {other} {three}", f"{expression} {other} {three}")
        )
    ask = rng.choice(("What is {}?", "Calculate {}.", "How much is {}?", "Compute {}."))
    value = tools.calculator(expression)
    query = ask.format(expression)
    return Question(
        question=query,
        answer=value,
        skill="calculator",
        tools=(tools.CALCULATOR, tools.LOOKUP),
        query=query,
        call={"name": "calculator", "arguments": {"expression": expression}},
        form="expression",
        solution=f"{expression} = {value}. The answer is {value}.",
    )


def _lookup(rng: Random, world: facts.World) -> Question:
    key = rng.choice(NAMES)
    ask = facts.one_fact(rng, world, key)
    nouns = [
        noun for noun, r in facts.RELATIONS.items() if key in r.keys and noun != ask.needs[0][0]
    ]
    known = [
        (ask.needs[0][0], ask.style),
        *((noun, 0) for noun in rng.sample(nouns, rng.randint(0, 3))),
    ]
    rng.shuffle(known)
    return Question(
        question=ask.query,
        answer=ask.answer,
        skill="lookup",
        tools=(tools.CALCULATOR, tools.LOOKUP),
        query=ask.query,
        facts=tuple(world.fact(noun, key, style) for noun, style in known),
        call={"name": "lookup", "arguments": {"name": key}},
        form=ask.form,
        solution=" ".join(ask.reply),
    )


def judge_question(query: str, proposed: str, *, solve: bool = True) -> str:
    """Write the message that asks whether a proposed answer is right.

    Args:
        query: The question that was answered.
        proposed: The answer to judge.
        solve: Ask for a solution before the verdict; otherwise for the verdict alone.
    """
    first = "Solve the question, then answer" if solve else "Is the proposed answer correct? Answer"
    return f"Question: {query}\nProposed answer: {proposed}\n{first} True or False."


def _judge(rng: Random, world: facts.World) -> Question:
    del world
    made = problems.problem(rng, rng.choice((1, 1, 2, 2, 3)))
    right, solve = rng.random() < 0.5, rng.random() < 0.7
    proposed = made.solution if rng.random() < 0.5 else f"The answer is {made.answer}."
    if not right:
        proposed = _spoil(rng, proposed)
    return Question(
        question=judge_question(made.text, proposed, solve=solve),
        answer=str(right),
        skill="judge",
        steps=made.steps,
        query=made.text,
        form="solve first" if solve else "verdict only",
        solution=f"{made.solution} {right}" if solve else str(right),
    )


def _spoil(rng: Random, solution: str) -> str:
    """Change the last number that is computed, and the answer with it."""
    old = solution.rstrip(".").rsplit(" ", 1)[1]
    new = str(max(1, int(old) + rng.choice((-10, -5, -3, -2, -1, 1, 2, 3, 5, 10))))
    new = new if new != old else str(int(old) + 4)
    head, _, _ = solution.rpartition(f"The answer is {old}.")
    return re.sub(rf"= {old}\. $", f"= {new}. ", head) + f"The answer is {new}."


def _json(rng: Random, world: facts.World) -> Question:
    key = rng.choice(NAMES)
    nouns = rng.sample(("age", "home", "job", "pet"), rng.randint(1, 3))
    record = rng.random() < 0.6
    said = " ".join(world.fact(noun, key, rng.randrange(2)) for noun in nouns)
    if record:
        said = "; ".join([f"name: {key}", *(f"{noun}: {world.value(noun, key)}" for noun in nouns)])
    value: dict[str, Any] = {"name": key}
    for noun in nouns:
        text = world.value(noun, key)
        value[noun] = int(text) if noun == "age" else text
    query = f"{said}\nWrite a JSON object with the keys {', '.join(value)}."
    answer = json.dumps(value)
    return Question(
        query,
        answer,
        "json",
        query=query,
        form="record" if record else "sentences",
        solution=answer,
    )


_MAKERS: dict[str, Callable[[Random, facts.World], Question]] = {
    "one_fact": _one_fact,
    "two_facts": _two_facts,
    "not_in_context": _not_in_context,
    "calculator": _calculator,
    "lookup": _lookup,
    "judge": _judge,
    "json": _json,
}
