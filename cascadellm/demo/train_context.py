"""Training conversations about contexts: one, many, and in a second attempt."""

from __future__ import annotations

from random import Random

from cascadellm.demo import facts, tasks
from cascadellm.demo import train_layouts as lay
from cascadellm.demo.question import Question
from cascadellm.demo.words import JOBS, PLACES


def fresh(rng: Random, skill: str, steps: int = 1) -> Question:
    """Draw a question of a skill that is not held out."""
    world = facts.World(rng.random())
    while True:
        made = tasks.make(rng, world, skill, steps)
        if not tasks.held_out(made.query):
            return made


def _join(rng: Random, found: list[str]) -> str:
    """Join facts into nodes of one to three sentences, as a retriever would."""
    nodes: list[str] = []
    while found:
        size = rng.choice((1, 1, 2, 3))
        nodes.append(" ".join(found[:size]))
        found = found[size:]
    if rng.random() < 0.06:
        nodes = [f"source: note {rng.randint(1, 99)}\n\n{node}" for node in nodes]
    return rng.choice(("\n\n", "\n\n", "\n", " ")).join(nodes)


def _asks(rng: Random, world: facts.World, count: int) -> list[tuple[facts.Ask, int | None]]:
    """Draw questions, some of which the context will lack a fact for."""
    made: list[tuple[facts.Ask, int | None]] = []
    while len(made) < count:
        one = rng.random() < 0.62
        ask = facts.one_fact(rng, world) if one else facts.two_facts(rng, world)
        if not tasks.held_out(ask.query):
            missing = rng.randrange(len(ask.needs)) if rng.random() < 0.3 else None
            made.append((ask, missing))
    return made


def dense(rng: Random, turns: int = 0) -> lay.Conversation:
    """Several questions about one context."""
    world = facts.World(rng.random())
    turns = turns or rng.randint(3, 7)
    style: dict[tuple[str, str], int] = {}
    lacking: set[tuple[str, str]] = set()
    kept: list[tuple[facts.Ask, int | None]] = []
    for ask, missing in _asks(rng, world, turns):
        held = [need for at, need in enumerate(ask.needs) if at != missing]
        lost = set(ask.needs) - set(held)
        if lost & set(style) or lacking & set(held):
            continue
        if any(style.get(need, ask.style) != ask.style for need in held):
            continue
        style.update(dict.fromkeys(held, ask.style))
        lacking |= lost
        kept.append((ask, missing))
    found = _surround(rng, world, style, lacking, rng.randint(4, 12))
    first, missing = kept[0]
    messages = lay.qa(rng, _join(rng, found), first.query)
    messages.append(lay.assistant(_reply(first, missing)))
    for ask, missing in kept[1:]:
        messages += [lay.user(ask.query), lay.assistant(_reply(ask, missing))]
    return messages, []


def _surround(
    rng: Random,
    world: facts.World,
    style: dict[tuple[str, str], int],
    lacking: set[tuple[str, str]],
    size: int,
) -> list[str]:
    """Add distractors that share relation or key with the needed facts, and shuffle."""
    chosen = dict(style)
    near = list({*style, *lacking})
    while len(chosen) < max(size, len(style) + 2):
        noun, key = rng.choice(near)
        if rng.random() < 0.6:
            pair = (noun, rng.choice(facts.RELATIONS[noun].keys))
        else:
            pair = (rng.choice([r.noun for r in facts.RELATIONS.values() if key in r.keys]), key)
        if pair not in chosen and pair not in lacking:
            chosen[pair] = rng.randrange(len(facts.RELATIONS[pair[0]].forms))
    made = [world.fact(noun, key, form) for (noun, key), form in chosen.items()]
    rng.shuffle(made)
    return made


def _reply(ask: facts.Ask, missing: int | None) -> str:
    parts = ask.reply if missing is None else (*ask.reply[:missing], facts.NO_ANSWER)
    return " ".join(parts)


def single(rng: Random) -> lay.Conversation:
    """One question about one context."""
    skill = rng.choices(("one_fact", "two_facts", "not_in_context"), (45, 25, 30))[0]
    made = fresh(rng, skill)
    messages = lay.qa(rng, _join(rng, list(made.facts)), made.query)
    return [*messages, lay.assistant(made.solution)], []


def refine(rng: Random) -> lay.Conversation:
    """A second context either lacks the answer, or holds what the first lacked."""
    skill = rng.choice(("one_fact", "two_facts", "not_in_context", "not_in_context"))
    made = fresh(rng, skill)
    if skill == "not_in_context" and made.solution == facts.NO_ANSWER and rng.random() < 0.7:
        original = rng.choice((made.solution, f"The answer is {rng.choice((*PLACES, *JOBS))}."))
        answer = original
    else:
        original, answer = facts.NO_ANSWER, made.solution
    body = lay.REFINE.format(
        context=_join(rng, list(made.facts)), query=made.query, answer=original
    )
    return [lay.user(body), lay.assistant(answer)], []
