"""Facts about people, places and things, and questions that one or two of them answer.

A `World` gives each relation of each name one value, so all contexts drawn from one world agree
and can share one index.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from cascadellm.demo.words import (
    CAPITALS,
    COLORS,
    ITEMS,
    JOBS,
    NAMES,
    PETS,
    PLACES,
    RIVERS,
)

NO_ANSWER = "The context does not hold the answer."
"""What the demo models say when the context lacks the fact."""


@dataclass(frozen=True, slots=True)
class Relation:
    """One kind of fact.

    Args:
        noun: Its name in "the NOUN of KEY".
        keys: Whom it is about.
        values: What it may say; empty for a number.
        forms: Pairs of (fact, question); the first pair is the canonical one.
    """

    noun: str
    keys: tuple[str, ...]
    values: tuple[str, ...]
    forms: tuple[tuple[str, str], ...]


def _canonical(noun: str, word: str = "What") -> tuple[str, str]:
    return f"The {noun} of {{k}} is {{v}}.", f"{word} is the {noun} of {{k}}?"


RELATIONS = {
    relation.noun: relation
    for relation in (
        Relation(
            "home",
            NAMES,
            PLACES,
            (_canonical("home"), ("{k} lives in {v}.", "Where does {k} live?")),
        ),
        Relation(
            "job",
            NAMES,
            JOBS,
            (_canonical("job"), ("{k} is a {v}.", "What does {k} work as?")),
        ),
        Relation(
            "favorite color",
            NAMES,
            COLORS,
            (_canonical("favorite color"), ("{k} likes {v}.", "Which color does {k} like?")),
        ),
        Relation(
            "pet",
            NAMES,
            PETS,
            (_canonical("pet"), ("{k} has a {v}.", "Which pet does {k} have?")),
        ),
        Relation(
            "age",
            NAMES,
            (),
            (_canonical("age"), ("{k} is {v} years old.", "How old is {k}?")),
        ),
        Relation("best friend", NAMES, NAMES, (_canonical("best friend", "Who"),)),
        Relation("capital", PLACES, CAPITALS, (_canonical("capital"),)),
        Relation("river", PLACES, RIVERS, (_canonical("river"),)),
        Relation("ruler", PLACES, NAMES, (_canonical("ruler", "Who"),)),
        Relation("price", ITEMS, (), (_canonical("price"),)),
    )
}
_BRIDGES = (
    ("home", "capital"),
    ("home", "river"),
    ("home", "ruler"),
    ("best friend", "home"),
    ("best friend", "job"),
    ("best friend", "age"),
    ("best friend", "pet"),
    ("ruler", "home"),
    ("ruler", "age"),
)


class World:
    """A consistent set of facts: the same seed gives the same value for the same key.

    Args:
        seed: Any text or number.
    """

    def __init__(self, seed: object) -> None:
        self._seed = seed
        self._known: dict[tuple[str, str], str] = {}

    def value(self, noun: str, key: str) -> str:
        """Return the value of one relation of one key."""
        at = (noun, key)
        if at not in self._known:
            rng = Random(f"{self._seed}|{noun}|{key}")
            pool = [value for value in RELATIONS[noun].values if value != key]
            self._known[at] = rng.choice(pool) if pool else str(rng.randint(5, 90))
        return self._known[at]

    def fact(self, noun: str, key: str, form: int = 0) -> str:
        """Write one fact as a sentence."""
        pattern = RELATIONS[noun].forms[form][0]
        return pattern.format(k=_the(noun, key), v=self.value(noun, key))


@dataclass(frozen=True, slots=True)
class Ask:
    """A question about facts.

    Args:
        query: The bare question.
        reply: The model answer as sentences.
        answer: The value asked for.
        needs: The (noun, key) pairs that answer it, in order.
        form: Which form asked it, for accuracy per form.
        style: Form index in which the needed facts should be written.
    """

    query: str
    reply: tuple[str, ...]
    answer: str
    needs: tuple[tuple[str, str], ...]
    form: str
    style: int


def one_fact(rng: Random, world: World, key: str | None = None) -> Ask:
    """Ask for one fact, about `key` where one is given."""
    fitting = [r for r in RELATIONS.values() if key is None or key in r.keys]
    relation = rng.choice(fitting)
    key = key or rng.choice(relation.keys)
    form = rng.randrange(len(relation.forms))
    query = relation.forms[form][1].format(k=_the(relation.noun, key))
    return Ask(
        query=query,
        reply=(world.fact(relation.noun, key, form),),
        answer=world.value(relation.noun, key),
        needs=((relation.noun, key),),
        form="natural" if form else "canonical",
        style=form,
    )


def two_facts(rng: Random, world: World) -> Ask:
    """Ask something that needs two facts: a bridge from one to the next, or a sum."""
    kind = rng.choice(("bridge", "bridge", "total"))
    extra: tuple[str, ...] = ()
    if kind == "bridge":
        first, second = rng.choice(_BRIDGES)
        key = rng.choice(RELATIONS[first].keys)
        middle = world.value(first, key)
        word = "Who" if second == "ruler" else "What"
        needs = ((first, key), (second, middle))
        query = f"{word} is the {second} of the {first} of {key}?"
        answer = world.value(second, middle)
    else:
        one, two = rng.sample(NAMES, 2)
        needs = (("age", one), ("age", two))
        left, right = (int(world.value("age", key)) for key in (one, two))
        query, answer = f"What is the total age of {one} and {two}?", str(left + right)
        extra = (f"{left} + {right} = {answer}.",)
    reply = (*(world.fact(*need) for need in needs), *extra, f"The answer is {answer}.")
    return Ask(query, reply, answer, needs, kind, 0)


def context(
    rng: Random, world: World, ask: Ask, size: int, missing: int | None = None
) -> tuple[str, ...]:
    """Write the facts among which the answer stands.

    Args:
        rng: Source of randomness.
        world: Where the facts come from.
        ask: The question they surround.
        size: Number of facts.
        missing: Position in `ask.needs` of a fact to leave out.
    Returns: The facts in random order; distractors share the relation or the key.
    """
    chosen = [need for at, need in enumerate(ask.needs) if at != missing]
    barred = set(ask.needs)
    while len(chosen) < size:
        noun, key = rng.choice(ask.needs)
        turn = rng.random()
        if turn < 0.45:
            pair = (noun, rng.choice(RELATIONS[noun].keys))
        elif turn < 0.75:
            fitting = [r.noun for r in RELATIONS.values() if key in r.keys]
            pair = (rng.choice(fitting), key)
        else:
            relation = rng.choice(tuple(RELATIONS.values()))
            pair = (relation.noun, rng.choice(relation.keys))
        if pair not in barred:
            barred.add(pair)
            chosen.append(pair)
    rng.shuffle(chosen)
    return tuple(world.fact(noun, key, _style(rng, ask, noun)) for noun, key in chosen)


def _style(rng: Random, ask: Ask, noun: str) -> int:
    # A fact of the asked relation keeps the form of the question; others vary.
    if any(noun == need for need, _ in ask.needs):
        return ask.style
    return rng.randrange(len(RELATIONS[noun].forms))


def _the(noun: str, key: str) -> str:
    return f"the {key}" if noun == "price" else key
