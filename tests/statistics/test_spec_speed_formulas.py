"""Speed formulas: the table of best gammas, and the real loop against its closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cascadellm.local import rules as r
from cascadellm.local.adaptive import AdaptiveGamma, expected_tokens, predicted_gain
from cascadellm.local.verify import acceptance
from tests.statistics.spec_toys import Branches, Pair, Table, every_branch

# cost -> one column per acceptance: (gamma, gain) with a bonus of p, of pi, and without bonus
RATES = (0.5, 0.7, 0.8, 0.9, 0.95)
GAINS = {
    0.02: (
        (4, 1.79398, 4, 1.79191, 5, 1.76136), (8, 2.75760, 8, 2.75487, 9, 2.71087),
        (11, 3.81672, 11, 3.81136, 12, 3.75516), (19, 6.36539, 19, 6.35295, 20, 6.27445),
        (31, 9.95418, 31, 9.92918, 32, 9.83279),
    ),
    0.05: (
        (3, 1.63043, 3, 1.62162, 4, 1.56250), (6, 2.35294, 6, 2.34234, 7, 2.26579),
        (8, 3.09208, 8, 3.07366, 9, 2.98546), (13, 4.67413, 14, 4.64001, 15, 4.53776),
        (21, 6.59967, 22, 6.54617, 23, 6.44319),
    ),
    0.10: (
        (2, 1.45833, 2, 1.42857, 3, 1.34615), (4, 1.98079, 4, 1.94739, 5, 1.84873),
        (6, 2.46964, 6, 2.42983, 7, 2.32437), (10, 3.43095, 10, 3.37216, 11, 3.26757),
        (15, 4.47899, 16, 4.40149, 17, 4.31022),
    ),
    0.25: (
        (1, 1.20000, 2, 1.12000, 2, 1.00000), (2, 1.46000, 3, 1.37982, 4, 1.26650),
        (3, 1.68686, 4, 1.59893, 5, 1.49404), (6, 2.08681, 7, 1.98473, 8, 1.89844),
        (9, 2.46931, 10, 2.36294, 11, 2.29973),
    ),
}  # fmt: skip
CELLS = [
    (cost, rate, cell) for cost, row in GAINS.items() for rate, cell in zip(RATES, row, strict=True)
]


def no_bonus_gain(rate: float, gamma: int, cost: float) -> float:
    return expected_tokens(rate, gamma - 1) / (gamma * cost + 1)


@pytest.mark.parametrize(("cost", "rate", "cell"), CELLS)
def test_the_best_gain_over_all_gammas_is_that_of_the_table(cost, rate, cell) -> None:
    """For each bonus the best gain has the table's value, and the table's gamma attains it."""
    variants = [
        lambda g: predicted_gain(rate, g, cost, lossless=True),
        lambda g: predicted_gain(rate, g, cost, lossless=False),
        lambda g: no_bonus_gain(rate, g, cost),
    ]
    for gain, (gamma, value) in zip(variants, zip(cell[::2], cell[1::2], strict=True), strict=True):
        assert pytest.approx(value, abs=6e-6) == max(map(gain, range(1, 60)))
        assert pytest.approx(value, abs=6e-6) == gain(gamma)


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize(("cost", "rate", "cell"), CELLS)
def test_adaptive_gamma_settles_on_the_tables_gain(cost, rate, cell, lossless) -> None:
    """Fed with constant acceptance and cost it chooses a gamma with the best gain."""
    chooser = AdaptiveGamma(lossless=lossless)
    for turn in range(300):
        chooser.record(
            tested=100, kept=round(100 * rate), steps=10, draft_s=10 * cost, verify_s=1.0,
            verified=3 + turn % 3,
        )  # fmt: skip
    found = predicted_gain(rate, chooser.next(), cost, lossless=lossless)
    assert pytest.approx(cell[1 if lossless else 3], abs=1e-4) == found


def test_some_gamma_gains_exactly_where_acceptance_exceeds_the_cost() -> None:
    """A gain above 1 exists iff a > c; gamma 1 gives (1 + a) / (1 + c)."""
    for rate, cost in itertools.product((0.1, 0.3, 0.6, 0.9), (0.05, 0.2, 0.4, 0.8)):
        gains = [predicted_gain(rate, gamma, cost, lossless=True) for gamma in range(1, 40)]
        assert (rate > cost) == (max(gains) > 1)
        assert pytest.approx((1 + rate) / (1 + cost)) == gains[0]


@pytest.mark.parametrize(("spread", "truth"), [(0.15, 3.94), (0.30, 4.52)])
def test_the_formula_underestimates_where_acceptance_varies(spread, truth) -> None:
    """With mean 0.8 per block and this standard deviation a round writes more than 3.69 tokens."""
    total = 0.8 * 0.2 / spread**2 - 1
    a, b = 0.8 * total, 0.2 * total
    moments = [math.prod((a + i) / (a + b + i) for i in range(k)) for k in range(6)]
    assert pytest.approx(truth, abs=0.005) == sum(moments)
    assert sum(moments) > expected_tokens(0.8, 5) + 0.2


class Flat(Table):
    """The same law after every prefix, so that acceptance is constant and independent."""

    def __init__(self, row: Sequence[float]) -> None:
        super().__init__(0, vocab=len(row))
        self._row = torch.tensor(row, dtype=torch.float64).log()

    def logits(self, prefix: Sequence[int]) -> Tensor:
        return self._row


def rounds(pair: Pair, gamma: int) -> tuple[float, float, float]:
    """Return the expected tokens, draft steps and accepted drafts of one round of the loop."""
    sums = [0.0, 0.0, 0.0]

    def run(choices: Branches) -> tuple[int, ...]:
        found = pair.decoder(choices, (0,)).round(gamma)
        return len(found.tokens), found.draft_steps, found.kept

    for counts, weight in every_branch(run):
        sums = [total + weight * count for total, count in zip(sums, counts, strict=True)]
    return sums[0], sums[1], sums[2]


RULES = [r.Lossless(), r.TokenV3(0.4), r.Diff(-0.1), r.Lenient(0.7), r.Ensemble(0.4)]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_loop_writes_as_many_tokens_per_call_as_the_formula_says(rule) -> None:
    """With constant acceptance a: (1 - a^(gamma+1)) / (1 - a) tokens and gamma + a^gamma steps."""
    pair = Pair(rule, draft=Flat([0.5, 0.3, 0.2]), target=Flat([0.25, 0.45, 0.3]))
    q, _, pi = pair.rows((0,))
    rate = float(acceptance(pi, q))
    assert 0.6 < rate < 1
    for gamma in (1, 2, 3):
        tokens, steps, kept = rounds(pair, gamma)
        assert pytest.approx(expected_tokens(rate, gamma), abs=1e-12) == tokens
        # a bonus of law pi is a draft of its own, in fully accepted rounds only
        extra = 0.0 if rule.lossless else rate**gamma
        assert pytest.approx(gamma + extra, abs=1e-12) == steps
        tested = gamma if rule.lossless else gamma + 1
        assert pytest.approx(sum(rate**k for k in range(1, tested + 1)), abs=1e-12) == kept
