"""Exact properties of the real loop: every branch of its choices, enumerated in float64."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch

from cascadellm.errors import ModelError
from cascadellm.local import decode
from cascadellm.local import rules as r
from cascadellm.local.decode import Decoder
from cascadellm.local.sequential import SequentialDecoder
from cascadellm.local.streams import RandomChoices
from cascadellm.local.verify import residual
from tests.statistics.spec_toys import (
    Branches,
    Law,
    Pair,
    Table,
    TableLane,
    distance,
    every_branch,
    shaper,
)

EXACT = 1e-12
RULES = [
    r.Lossless(), r.Chow(0.5), r.Diff(0.1), r.Opt(0.2), r.TokenV1(0.3), r.TokenV2(0.3),
    r.TokenV3(0.5), r.Lenient(0.6), r.Ensemble(0.4), r.Mentored(0.4),
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("block", [False, True], ids=["tokens", "blocks"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_loop_has_the_law_of_the_rule(rule, block) -> None:
    """For gamma 1 and 2 at T = 1, and 2 at T = .5, the loop's law of three tokens is pi^3."""
    for temperature, gamma in ((1, 1), (1, 2), (0.5, 2), (0, 3)):
        pair = Pair(rule, temperature, block=block)
        assert distance(pair.product(3), pair.loop_law(3, gamma)) < EXACT


@pytest.mark.parametrize("block", [False, True], ids=["tokens", "blocks"])
@pytest.mark.parametrize("rule", [r.Lossless(), r.TokenV3(0.5)], ids=str)
def test_the_law_does_not_depend_on_a_long_gamma(rule, block) -> None:
    """With gamma 5, longer than what is read, two tokens over a vocabulary of two are pi^2."""
    pair = Pair(rule, draft=Table(3, vocab=2), target=Table(4, vocab=2), block=block)
    assert distance(pair.product(2), pair.loop_law(2, 5)) < EXACT


def test_several_rounds_on_the_same_caches_have_the_law() -> None:
    """Rolling back between rounds leaves both lanes where the text is."""
    for rule, block in itertools.product((r.Lossless(), r.TokenV3(0.5)), (False, True)):
        pair = Pair(rule, draft=Table(5, vocab=2), target=Table(6, vocab=2), block=block)

        def run(choices: Branches, pair: Pair = pair) -> tuple[int, ...]:
            decoder = pair.decoder(choices, (0,))
            while len(decoder.tokens) < 4:
                decoder.round(2)
                for lane in (decoder._draft_lane, decoder._target_lane):
                    assert lane.seen == decoder.tokens[: lane.length]
            return tuple(decoder.tokens[:4])

        law: Law = {}
        for tokens, weight in every_branch(run):
            law[tokens] = law.get(tokens, 0.0) + weight
        assert distance(pair.product(3), law) < EXACT


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_sequential_baseline_has_the_same_law(rule) -> None:
    """One token after the other, with the same rule, is the same law at another cost."""
    pair = Pair(rule)

    def run(choices: Branches) -> tuple[int, ...]:
        decoder = SequentialDecoder(
            TableLane(pair.draft), TableLane(pair.target), rule, shaper(1), choices, prompt=(0,)
        )
        for _ in range(2):
            decoder.round()
        return tuple(decoder.tokens)

    law: Law = {}
    for tokens, weight in every_branch(run):
        law[tokens] = law.get(tokens, 0.0) + weight
    assert distance(pair.product(2), law) < EXACT


def test_a_sequential_chow_asks_the_target_only_where_it_defers() -> None:
    """Where Chow keeps the draft's token the target is not called, and catches up later."""
    target = TableLane(Table(2))
    decoder = SequentialDecoder(
        TableLane(Table(1, peak=6.0)), target, r.Chow(0.2), shaper(0), Branches([]), prompt=(0,)
    )
    rounds = [decoder.round() for _ in range(12)]
    asked = [found.target_rows is not None for found in rounds]
    assert {True, False} == set(asked)
    assert [1 - kept for kept in (found.kept for found in rounds)] <= [int(a) for a in asked]
    assert target.seen == decoder.tokens[: target.length]


def law_of(pair: Pair, gamma: int = 2) -> float:
    """Return how far the loop's law is from pi^2."""
    return distance(pair.product(2), pair.loop_law(2, gamma))


def test_mutation_residual_of_target_minus_draft(monkeypatch) -> None:
    """A residual from p - q instead of pi - q changes the loop's law."""
    pair = Pair(r.TokenV3(0.5))

    def wrong(self, drafts, pi, q):
        kept, law = right(self, drafts, pi, q)
        if law is None:
            return kept, None
        _, p, _ = pair.rows((*self.tokens, *drafts[:kept]))
        return kept, residual(p, q[kept])

    right = Decoder._accept
    assert law_of(pair) < EXACT
    monkeypatch.setattr(Decoder, "_accept", wrong)
    assert law_of(pair) > 0.01


def test_mutation_bonus_from_the_target_row(monkeypatch) -> None:
    """A bonus token from p instead of pi changes the loop's law."""
    pair = Pair(r.TokenV3(0.5))
    monkeypatch.setattr(
        Decoder,
        "_bonus",
        lambda self, block, p_row, scaled_p, text: self._choices.residual(scaled_p[0]),
    )
    assert law_of(pair, gamma=1) > 0.01


def test_mutation_token_residual_inside_block_verification(monkeypatch) -> None:
    """norm(max(0, pi - q)) instead of norm(max(0, P_j pi - q)) changes the law of blocks."""
    pair = Pair(r.Lossless(), block=True, draft=Table(13), target=Table(23))
    assert law_of(pair) < EXACT
    monkeypatch.setattr(decode, "block_residual", lambda weight, pi, q: residual(pi, q))
    assert law_of(pair) > 0.003


def test_mutation_swapped_models() -> None:
    """With draft and target swapped the law is another one."""
    pair = Pair(r.TokenV3(0.5))
    swapped = Pair(r.TokenV3(0.5), draft=pair.target, target=pair.draft)
    assert distance(pair.product(2), swapped.loop_law(2, 2)) > 0.05


def test_mutation_scaled_rows_decide(monkeypatch) -> None:
    """Deciding on scaled rows changes the law at T = .5."""
    pair = Pair(r.TokenV3(0.5), temperature=0.5, draft=Table(13), target=Table(23))
    assert law_of(pair) < EXACT
    monkeypatch.setattr(
        Decoder,
        "_target",
        lambda self, q_rows, p_rows, q, p: self._rule.target_distribution(q, p),
    )
    assert law_of(pair) > 0.003


def test_mutation_off_by_one_context(monkeypatch) -> None:
    """Reading the target's rows one position off changes the law."""
    pair = Pair(r.Lossless())
    right = TableLane.forward

    def shifted(self, tokens, keep):
        rows = right(self, tokens, keep)
        return rows.roll(1, dims=0) if keep > 1 else rows

    monkeypatch.setattr(TableLane, "forward", shifted)
    assert law_of(pair) > 0.05


def sample(rule, choices, count: int, *, temperature: float = 1.0, gamma: int = 3) -> list[int]:
    decoder = Decoder(
        TableLane(Table(1)), TableLane(Table(2)), rule, shaper(temperature), choices, prompt=(0,)
    )
    while len(decoder.tokens) <= count:
        decoder.round(gamma)
    return decoder.tokens[1 : count + 1]


def draft_alone(count: int, seed: int, temperature: float) -> list[int]:
    stream, table, text = torch.Generator().manual_seed(seed), Table(1), [0]
    while len(text) <= count:
        row = (table.logits(text) / temperature).softmax(-1)
        text.append(int(torch.multinomial(row, 1, generator=stream)))
    return text[1:]


def test_an_always_accepting_rule_writes_what_the_draft_alone_writes() -> None:
    """Token for token, for every gamma, because drafts have a stream of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keepers = [r.Chow(1), r.Diff(1), r.TokenV1(1), r.TokenV2(1), r.TokenV3(1), r.Ensemble(0)]
    for temperature in (1.0, 0.7):
        alone = draft_alone(30, 11, temperature)
        for rule, gamma in itertools.product(keepers, (1, 4)):
            choices = RandomChoices(11, "cpu")
            assert alone == sample(rule, choices, 30, temperature=temperature, gamma=gamma)


def test_mutation_one_stream_for_drafts_and_acceptance() -> None:
    """Sharing a generator between drafts and tests breaks that identity."""
    choices = RandomChoices(11, "cpu")
    choices._accept = choices._draft
    assert draft_alone(30, 11, 1.0) != sample(r.TokenV3(1), choices, 30)


def test_rounds_differ_by_seed_and_repeat_with_it() -> None:
    """A seed fixes the text; two seeds give two texts."""
    texts = [sample(r.TokenV3(0.3), RandomChoices(seed, "cpu"), 30) for seed in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_an_end_token_inside_an_accepted_block_ends_the_round() -> None:
    """After a kept end token nothing more is emitted, and nothing was drafted behind it."""
    for block in (False, True):
        pair = Pair(r.TokenV3(1.0), block=block)
        seen = set()
        for tokens, _ in every_branch(
            lambda choices, pair=pair: tuple(
                Decoder(
                    TableLane(pair.draft), TableLane(pair.target), pair.rule, shaper(1), choices,
                    prompt=(0,), eos_ids=[2], block=pair.block,
                ).round(3).tokens
            )
        ):  # fmt: skip
            assert 2 not in tokens[:-1]
            seen.add(tokens[-1] == 2)
        assert {True, False} == seen


def test_the_law_with_an_end_token_is_the_product_cut_there() -> None:
    """Stopping to draft at a drafted end token leaves the law of what is emitted unchanged."""
    for rule, block in itertools.product((r.Lossless(), r.TokenV3(0.5)), (False, True)):
        pair = Pair(rule, block=block)
        pair.decoder = lambda choices, prefix, pair=pair: Decoder(
            TableLane(pair.draft), TableLane(pair.target), pair.rule, shaper(1), choices,
            prompt=prefix, eos_ids=[2], block=pair.block,
        )  # fmt: skip
        expected: Law = {}
        for tokens, weight in pair.product(2).items():
            cut = tokens[: tokens.index(2) + 1] if 2 in tokens else tokens
            expected[cut] = expected.get(cut, 0.0) + weight
        found: Law = {}
        todo: Law = {(0,): 1.0}
        while todo:
            prefix, weight = todo.popitem()
            for tokens, prob in pair._round(prefix, 2):
                whole = (*prefix, *tokens)[:3]
                into = found if len(whole) == 3 or whole[-1] == 2 else todo
                into[whole] = into.get(whole, 0.0) + weight * prob
        assert distance(expected, found) < EXACT


class BrokenLane(TableLane):
    def __init__(self, table: Table, at: int) -> None:
        super().__init__(table)
        self._at = at

    def forward(self, tokens, keep):
        rows = super().forward(tokens, keep)
        start = self.length - keep
        rows[[start + i == self._at for i in range(keep)]] = float("nan")
        return rows


@pytest.mark.parametrize("role", ["draft", "target"])
@pytest.mark.parametrize("rule", [r.Lossless(), r.TokenV3(0.5)], ids=str)
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_nan_row_is_an_error_that_names_the_step(role, rule, temperature) -> None:
    """Nothing of the broken round is emitted, and the message names model and token."""
    lanes = {"draft": TableLane(Table(1)), "target": TableLane(Table(2))}
    lanes[role] = BrokenLane(Table(2), at=4)
    decoder = Decoder(
        lanes["draft"], lanes["target"], rule, shaper(temperature), RandomChoices(5, "cpu"),
        prompt=(0,),
    )  # fmt: skip
    decoder.round(1)
    before: list[int] = []

    def run() -> None:
        for _ in range(6):
            before[:] = decoder.tokens
            decoder.round(3)

    with pytest.raises(ModelError, match=f"the {role} model returned nan .* for token [1-5] of"):
        run()
    assert before == decoder.tokens
