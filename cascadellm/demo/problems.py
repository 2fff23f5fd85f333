"""Grade-school word problems of one to four steps, with their worked solution."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from cascadellm.demo.words import BOXES, FOODS, NAMES, OBJECTS

_TIMES = {2: "twice", 3: "three times", 4: "four times"}


@dataclass(frozen=True, slots=True)
class Problem:
    """A word problem.

    Args:
        text: The problem as asked.
        solution: The worked steps, ending in "The answer is N.".
        answer: The number asked for.
        expression: One arithmetic expression with the same value.
        steps: Number of calculations in the solution.
        form: Which template family wrote it.
    """

    text: str
    solution: str
    answer: int
    expression: str
    steps: int
    form: str


def problem(rng: Random, steps: int) -> Problem:
    """Write one word problem.

    Args:
        rng: Source of randomness.
        steps: Number of calculations, 1 to 4.
    Returns: The problem.
    """
    while True:
        made = _compare(rng, steps) if rng.random() < 0.35 else _chain(rng, steps)
        if made is not None:
            return made


def _apply(rng: Random, name: str, other: str, thing: str, value: int) -> tuple[str, str, int]:
    """Pick one event that changes how many things a person has: sentence, operator, amount."""
    if value > 8 and rng.random() < 0.5:
        amount = rng.randint(2, min(value - 2, 40))
        lose = ["{a} gives {n} {t} to {b}.", "{a} loses {n} {t}.", "{a} sells {n} {t}."]
        if thing in FOODS:
            lose.append("{a} eats {n} {t}.")
        text, sign = rng.choice(lose), "-"
    else:
        amount = rng.randint(2, 40)
        gain = ["{a} buys {n} more {t}.", "{b} gives {a} {n} more {t}.", "{a} finds {n} more {t}."]
        text, sign = rng.choice(gain), "+"
    return text.format(a=name, b=other, n=amount, t=thing), sign, amount


def _last(rng: Random, name: str, thing: str, value: int) -> tuple[str, str, str, int] | None:
    """A closing division or multiplication: sentence, question, operator, amount."""
    divisors = [d for d in range(2, 10) if value % d == 0 and 2 <= value // d <= 20]
    if divisors and rng.random() < 0.5:
        amount = rng.choice(divisors)
        return (
            f"{name} shares the {thing} equally among {amount} friends.",
            f"How many {thing} does each friend get?",
            "/",
            amount,
        )
    if value <= 20:
        amount = rng.randint(2, 9)
        return (
            f"{name} sells all the {thing} for {amount} dollars each.",
            f"How many dollars does {name} get?",
            "*",
            amount,
        )
    return None


def _chain(rng: Random, steps: int) -> Problem | None:
    name, other, third = rng.sample(NAMES, 3)
    thing = rng.choice(OBJECTS)
    first_product = rng.random() < 0.3
    if first_product:
        box = rng.choice(BOXES)
        count, each = rng.randint(2, 9), rng.randint(2, 12)
        value = count * each
        said = [f"{name} has {count} {box} with {each} {thing} in each."]
        work, expression = [f"{count} * {each} = {value}."], f"{count} * {each}"
    else:
        value = rng.randint(4, 60)
        said, work, expression = [f"{name} has {value} {thing}."], [], str(value)
    if rng.random() < 0.15:
        said.append(f"{third} has {rng.randint(2, 40)} {rng.choice(OBJECTS)}.")
    question = f"How many {thing} does {name} have{'' if first_product and steps == 1 else ' now'}?"
    while len(work) < steps:
        close = None
        if len(work) == steps - 1 and rng.random() < 0.35:
            close = _last(rng, name, thing, value)
        if close is not None:
            sentence, question, sign, amount = close
        else:
            sentence, sign, amount = _apply(rng, name, other, thing, value)
        said.append(sentence)
        result = _value(value, sign, amount)
        work.append(f"{value} {sign} {amount} = {result}.")
        inner = f"({expression})" if sign in "*/" and len(work) > 1 else expression
        expression, value = f"{inner} {sign} {amount}", result
    if not 0 < value <= 200:
        return None
    text = " ".join([*said, question])
    solution = " ".join([*work, f"The answer is {value}."])
    return Problem(text, solution, value, expression, steps, "chain")


def _compare(rng: Random, steps: int) -> Problem | None:
    people = rng.sample(NAMES, steps + 1)
    thing = rng.choice(OBJECTS)
    together = steps > 1 and rng.random() < 0.5
    values, exprs = [rng.randint(4, 50)], [""]
    exprs[0] = str(values[0])
    said = [f"{people[0]} has {values[0]} {thing}."]
    work: list[str] = []
    for index in range(1, steps + (0 if together else 1)):
        before, name = people[index - 1], people[index]
        value = values[-1]
        kind = rng.choice("+-*") if value <= 40 else rng.choice("+-")
        amount = rng.randint(2, 4) if kind == "*" else rng.randint(2, 30)
        if kind == "-" and amount >= value:
            kind = "+"
        words = {"+": f"{amount} more", "-": f"{amount} fewer", "*": ""}[kind]
        how = f"{words} {thing} than {before}"
        if kind == "*":
            how = f"{_TIMES[amount]} as many {thing} as {before}"
        said.append(f"{name} has {how}.")
        result = _value(value, kind, amount)
        work.append(f"{name}: {value} {kind} {amount} = {result}.")
        inner = f"({exprs[-1]})" if kind == "*" and index > 1 else exprs[-1]
        exprs.append(f"{inner} {kind} {amount}")
        values.append(result)
    if together:
        one, last = rng.randrange(len(values) - 1), len(values) - 1
        answer, expression = values[one] + values[last], f"{exprs[one]} + {exprs[last]}"
        said.append(f"How many {thing} do {people[one]} and {people[last]} have together?")
        work.append(f"{values[one]} + {values[last]} = {answer}.")
    else:
        answer, expression = values[-1], exprs[-1]
        said.append(f"How many {thing} does {people[len(values) - 1]} have?")
    if not 0 < answer <= 200 or max(values) > 200:
        return None
    solution = " ".join([*work, f"The answer is {answer}."])
    return Problem(" ".join(said), solution, answer, expression, steps, "compare")


def _value(left: int, sign: str, right: int) -> int:
    if sign == "+":
        return left + right
    if sign == "-":
        return left - right
    return left * right if sign == "*" else left // right
