"""Toys for exact checks: tabular models in float64, and every branch of the real loop.

p = target, q = draft, pi = target distribution, as in `cascadellm.local.verify`.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper

from cascadellm.local.decode import Decoder
from cascadellm.local.rows import Shaper
from cascadellm.local.rule_base import Rule

Law = dict[tuple[int, ...], float]


@dataclass
class Table:
    """A random next-token law for every prefix."""

    seed: int
    vocab: int = 3
    peak: float = 1.2
    _rows: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def logits(self, prefix: Sequence[int]) -> Tensor:
        """Return the logits after a prefix. Shape (vocab,), float64."""
        key = tuple(prefix)
        if key not in self._rows:
            stream = torch.Generator().manual_seed(zlib.crc32(repr((self.seed, key)).encode()))
            row = torch.randn(self.vocab, generator=stream, dtype=torch.float64)
            self._rows[key] = (self.peak * row).log_softmax(-1)
        return self._rows[key]


class TableLane:
    """A lane over a table; it remembers its sequence as a cache does."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.seen: list[int] = []

    @property
    def length(self) -> int:
        return len(self.seen)

    def forward(self, tokens: Sequence[int], keep: int) -> Tensor:
        assert len(tokens) >= keep >= 1
        start = len(self.seen) + len(tokens) - keep
        self.seen.extend(tokens)
        rows = [self._table.logits(self.seen[: start + i + 1]) for i in range(keep)]
        return torch.stack(rows)

    def rollback(self, length: int) -> None:
        assert 0 <= length <= len(self.seen)
        del self.seen[length:]


def shaper(temperature: float) -> Shaper:
    """Return the processors of one temperature."""
    chain = LogitsProcessorList()
    if temperature not in (0, 1):
        chain.append(TemperatureLogitsWarper(float(temperature)))
    return Shaper(chain, greedy=temperature == 0)


class Branches:
    """Choices that replay a script and note the alternatives they met."""

    def __init__(self, script: Sequence[int]) -> None:
        self._script = list(script)
        self.taken: list[int] = []
        self.open: list[int] = []
        self.weight = 1.0

    def _pick(self, probs: list[float]) -> int:
        live = [i for i, prob in enumerate(probs) if prob > 0]
        place = len(self.taken)
        index = self._script[place] if place < len(self._script) else 0
        self.taken.append(index)
        self.open.append(len(live))
        self.weight *= probs[live[index]]
        return live[index]

    def draft(self, law: Tensor) -> int:
        return self._pick(law.tolist())

    def residual(self, law: Tensor) -> int:
        return self._pick(law.tolist())

    def accept(self, ratios: Tensor) -> int:
        keep = [min(1.0, ratio) for ratio in ratios.tolist()]
        probs, alive = [], 1.0
        for chance in keep:
            probs.append(alive * (1 - chance))
            alive *= chance
        return self._pick([*probs, alive])

    def accept_block(self, thresholds: Tensor) -> int:
        chances = [min(1.0, h) for h in thresholds.tolist()]
        later, probs = 1.0, []
        for chance in reversed(chances):
            probs.append(later * chance)
            later *= 1 - chance
        return self._pick([later, *reversed(probs)])


def every_branch(
    run: Callable[[Branches], tuple[int, ...]],
) -> Iterator[tuple[tuple[int, ...], float]]:
    """Run under every sequence of choices; yield each result with its probability."""
    script: list[int] | None = []
    while script is not None:
        choices = Branches(script)
        result = run(choices)
        yield result, choices.weight
        script = None
        for place in reversed(range(len(choices.taken))):
            if choices.taken[place] + 1 < choices.open[place]:
                script = [*choices.taken[:place], choices.taken[place] + 1]
                break


@dataclass
class Pair:
    """Two tables, a rule, and how the loop is run."""

    rule: Rule
    temperature: float = 1.0
    draft: Table = field(default_factory=lambda: Table(1))
    target: Table = field(default_factory=lambda: Table(2))
    block: bool = False

    def decoder(self, choices: Branches, prefix: Sequence[int]) -> Decoder:
        """Return the real decoder on these tables."""
        return Decoder(
            TableLane(self.draft), TableLane(self.target), self.rule, shaper(self.temperature),
            choices, prompt=prefix, block=self.block,
        )  # fmt: skip

    def rows(self, prefix: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return scaled q, scaled p and pi after a prefix."""
        q_logits, p_logits = self.draft.logits(prefix), self.target.logits(prefix)
        shape = shaper(self.temperature)
        q, p = (shape.scaled(row[None], prefix, len(prefix))[0] for row in (q_logits, p_logits))
        rule = self.rule.greedy_form if self.temperature == 0 else self.rule
        pi = rule.target_distribution(
            q_logits.softmax(-1), p_logits.softmax(-1), draft_scaled=q, target_scaled=p
        )
        return q, p, pi

    def product(self, length: int, which: int = 2, start: tuple[int, ...] = (0,)) -> Law:
        """Return pi^n (which = 2), p^n (1) or q^n (0)."""
        law: Law = {start: 1.0}
        for _ in range(length):
            law = {
                (*prefix, v): weight * prob
                for prefix, weight in law.items()
                for v, prob in enumerate(self.rows(prefix)[which].tolist())
                if prob > 0
            }
        return law

    def loop_law(self, length: int, gamma: int, start: tuple[int, ...] = (0,)) -> Law:
        """Return the law of the first tokens that the real loop emits, by enumeration."""
        done: Law = {}
        todo: Law = {start: 1.0}
        while todo:
            prefix, weight = todo.popitem()
            for tokens, prob in self._round(prefix, gamma):
                whole = (*prefix, *tokens)[: length + len(start)]
                into = done if len(whole) == length + len(start) else todo
                into[whole] = into.get(whole, 0.0) + weight * prob
        return done

    def _round(self, prefix: tuple[int, ...], gamma: int) -> Law_items:
        found: Law = {}
        for tokens, weight in every_branch(
            lambda choices: tuple(self.decoder(choices, prefix).round(gamma).tokens)
        ):
            found[tokens] = found.get(tokens, 0.0) + weight
        return list(found.items())


Law_items = list[tuple[tuple[int, ...], float]]


def distance(one: Law, other: Law) -> float:
    """Return the total variation of two laws on sequences."""
    keys = one.keys() | other.keys()
    return sum(abs(one.get(k, 0.0) - other.get(k, 0.0)) for k in keys) / 2


def random_rows(count: int, vocab: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return random pairs of rows from flat to peaked. Shape (count, vocab), float64."""
    stream = torch.Generator().manual_seed(seed)
    sharp = torch.rand(2, count, 1, generator=stream, dtype=torch.float64) * 4
    noise = torch.randn(2, count, vocab, generator=stream, dtype=torch.float64)
    q, p = (sharp * noise).softmax(-1)
    return q, p


def prefixes(vocab: int, length: int, start: tuple[int, ...] = (0,)) -> list[tuple[int, ...]]:
    """Return all continuations of `start` by up to `length` tokens."""
    return [
        (*start, *more)
        for n in range(length + 1)
        for more in itertools.product(range(vocab), repeat=n)
    ]
