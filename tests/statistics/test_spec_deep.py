"""The real loop enumerated further: four tokens, long blocks, equal and certain positions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cascadellm.local import rules as r
from cascadellm.local.partial import matching_prefix
from tests.statistics.spec_toys import Law, Pair, Table, distance, every_branch

EXACT = 1e-12
GREEDY = [
    r.Lossless(), r.Chow(0.5), r.Diff(0.1), r.Opt(0.2), r.ChowLog(0.7), r.DiffLog(0.1),
    r.OptLog(0.1), r.BiLDStar(0.9), r.TokenV1(0.3), r.TokenV2(0.3), r.TokenV3(0.5),
    r.Lenient(0.6), r.Ensemble(0.4), r.Mentored(0.4),
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("block", [False, True], ids=["tokens", "blocks"])
@pytest.mark.parametrize("gamma", [1, 2, 3])
@pytest.mark.parametrize("temperature", [1, 0.5])
def test_four_tokens_over_three_words_are_pi4(gamma, temperature, block) -> None:
    """The loop's law of four tokens is the product, by tokens and by blocks."""
    pair = Pair(r.TokenV3(0.5), temperature, block=block)
    assert distance(pair.product(4), pair.loop_law(4, gamma)) < EXACT


@pytest.mark.slow
def test_four_tokens_over_three_words_are_pi4_at_gamma_5() -> None:
    """The longest enumeration: 243 drafts from each of 40 prefixes."""
    pair = Pair(r.TokenV3(0.5))
    assert distance(pair.product(4), pair.loop_law(4, 5)) < EXACT


@pytest.mark.parametrize("block", [False, True], ids=["tokens", "blocks"])
@pytest.mark.parametrize("rule", [r.Lossless(), r.TokenV3(0.5), r.Diff(0.1)], ids=str)
def test_four_tokens_over_two_words_are_pi4_at_gamma_5(rule, block) -> None:
    """A block longer than the text changes nothing."""
    pair = Pair(rule, draft=Table(3, vocab=2), target=Table(4, vocab=2), block=block)
    assert distance(pair.product(4), pair.loop_law(4, 5)) < EXACT


@pytest.mark.parametrize("rule", GREEDY, ids=str)
def test_three_tokens_of_every_rule_are_pi3_at_gamma_3(rule) -> None:
    """All fourteen rules, deciding on unscaled rows at T = .5 as well."""
    for temperature in (1, 0.5):
        pair = Pair(rule, temperature)
        assert distance(pair.product(3), pair.loop_law(3, 3)) < EXACT


@pytest.mark.parametrize("rule", GREEDY, ids=str)
def test_greedy_texts_are_pis_for_every_gamma(rule) -> None:
    """At temperature 0 eight tokens on twenty pairs do not depend on gamma 1 to 8."""
    for seed in range(20):
        pair = Pair(rule, 0, draft=Table(seed), target=Table(seed + 100))
        ((expected, weight),) = pair.product(8).items()
        assert 1 == weight
        for gamma in (1, 2, 3, 5, 8):
            assert {expected: 1.0} == pair.loop_law(8, gamma)


class Agreeing(Table):
    """Tables whose rows are the same for both models, or certain, at some prefixes."""

    def __init__(self, seed: int, peak: float = 1.2) -> None:
        super().__init__(seed, peak=peak)

    def logits(self, prefix: Sequence[int]) -> Tensor:
        kind = (3 * len(prefix) + sum(prefix)) % 4
        if kind == 0:
            return super().logits(prefix)
        if kind == 3:
            # one-hot in both models, at a place that may differ
            spike = torch.full((3,), float("-inf"), dtype=torch.float64)
            spike[(len(prefix) + self.seed) % 3] = 0.0
            return spike
        return Table(99).logits(prefix)


@pytest.mark.parametrize("seeds", [(1, 4), (1, 2), (2, 1)])
@pytest.mark.parametrize("block", [False, True], ids=["tokens", "blocks"])
@pytest.mark.parametrize("rule", [r.Lossless(), r.TokenV3(0.5), r.Mentored(0.4)], ids=str)
def test_equal_and_certain_positions_keep_the_law(rule, block, seeds) -> None:
    """Where p = q, or both are one-hot, 0 / 0 in a threshold or residual changes nothing."""
    pair = Pair(rule, draft=Agreeing(seeds[0]), target=Agreeing(seeds[1]), block=block)
    for gamma in (1, 2, 3):
        assert distance(pair.product(3), pair.loop_law(3, gamma)) < EXACT


def test_sampler_match_writes_the_targets_law_over_several_tokens() -> None:
    """Drafts that must equal the target's samples give p^2, whatever the draft is."""
    pair = Pair(r.Lossless())

    def run(choices):
        drafts, samples, text = [], [], (0,)
        for _ in range(2):
            drafts.append(choices.draft(pair.rows(text)[0]))
            text = (*text, drafts[-1])
        for place in range(3):
            prefix = (0, *drafts[:place])
            samples.append(choices.residual(pair.rows(prefix)[1]))
        emitted = matching_prefix(drafts, samples)
        while len(emitted) < 2:
            emitted.append(choices.residual(pair.rows((0, *emitted))[1]))
        return (0, *emitted[:2])

    law: Law = {}
    for tokens, weight in every_branch(run):
        law[tokens] = law.get(tokens, 0.0) + weight
    assert distance(pair.product(2, which=1), law) < EXACT


def test_chows_cascade_has_one_law_in_both_executions() -> None:
    """Speculative and sequential cascades under Chow are one law at different costs."""
    from cascadellm.local.sequential import SequentialDecoder
    from tests.statistics.spec_toys import TableLane, shaper

    for alpha, temperature in itertools.product((0.3, 0.5, 0.6), (1, 0.5)):
        pair = Pair(r.Chow(alpha), temperature)

        def run(choices, pair: Pair = pair) -> tuple[int, ...]:
            decoder = SequentialDecoder(
                TableLane(pair.draft), TableLane(pair.target), pair.rule,
                shaper(pair.temperature), choices, prompt=(0,),
            )  # fmt: skip
            for _ in range(3):
                decoder.round()
            return tuple(decoder.tokens)

        law: Law = {}
        for tokens, weight in every_branch(run):
            law[tokens] = law.get(tokens, 0.0) + weight
        assert distance(law, pair.loop_law(3, 2)) < EXACT
