"""The sampled loop against its law: chi-square with fixed seeds, on tables and real modules."""

from __future__ import annotations

import itertools
import os
import statistics
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from scipy import stats
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    T5Config,
    T5ForConditionalGeneration,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

from cascadellm.local import rules as r
from cascadellm.local.decode import Decoder
from cascadellm.local.lanes import CausalLane, Seq2SeqLane
from cascadellm.local.quick import QuickForward
from cascadellm.local.rows import Shaper
from cascadellm.local.streams import RandomChoices
from tests.statistics.spec_toys import Law, Pair, Table, TableLane, shaper

LENGTH = 3
RULES = [
    (r.Lossless(), False), (r.Lossless(), True), (r.TokenV3(0.5), False), (r.TokenV3(0.5), True),
    (r.Chow(0.5), False), (r.Diff(0.1), False), (r.Opt(0.2), False), (r.OptLog(0.1), True),
    (r.BiLDStar(1.0), False), (r.TokenV1(0.3), False), (r.TokenV2(0.3), True),
    (r.Lenient(0.6), False), (r.Ensemble(0.4), False), (r.Mentored(0.4), True),
]  # fmt: skip
FULL = 20_000
# every rule at full size takes two minutes; at full size always: plain and cascaded speculation
COUNT = FULL if os.environ.get("CASCADE_STATISTICS") == "full" else 1500


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def draw(lanes, rule, prompt: Sequence[int], count: int, *, block: bool, seed: int) -> Counter:
    """Return how often each sequence of three tokens is written."""
    choices = RandomChoices(seed, "cpu")
    seen: Counter = Counter()
    for _ in range(count):
        for lane in lanes:
            lane.rollback(min(lane.length, len(prompt) - 1))
        decoder = Decoder(*lanes, rule, shaper(1), choices, prompt=prompt, block=block)
        while len(decoder.tokens) < len(prompt) + LENGTH:
            decoder.round(2)
        seen[tuple(decoder.tokens[len(prompt) :][:LENGTH])] += 1
    return seen


def p_value(seen: Counter, law: Law) -> float:
    """Return the chi-square p-value; sequences expected fewer than 5 times share a cell."""
    count = seen.total()
    rare = {key for key, prob in law.items() if prob * count < 5}
    rare |= seen.keys() - law.keys()
    observed = [seen[key] for key in law if key not in rare]
    expected = [law[key] * count for key in law if key not in rare]
    rest = sum(law.get(key, 0.0) for key in rare) * count
    if rest >= 5:
        observed.append(sum(seen[key] for key in rare))
        expected.append(rest)
    elif sum(seen[key] for key in rare) > 30:
        return 0.0
    scale = sum(observed) / sum(expected)
    return float(stats.chisquare(observed, [e * scale for e in expected]).pvalue)


def holm(values: Sequence[float]) -> float:
    """Return the least p-value after Holm's correction."""
    ordered = sorted(values)
    return min(p * (len(ordered) - i) for i, p in enumerate(ordered))


def p_of_rule(place: int, count: int) -> float:
    """Return the p-value of one rule's draws on a pair of tables."""
    rule, block = RULES[place]
    pair = Pair(rule)
    lanes = (TableLane(pair.draft), TableLane(pair.target))
    seen = draw(lanes, rule, (0,), count, block=block, seed=100 + place)
    return p_value(seen, {key[1:]: prob for key, prob in pair.product(LENGTH).items()})


def test_the_sampled_loop_follows_the_law_on_tables() -> None:
    """No chi-square test of any rule rejects pi^3 at 1e-3 (Holm)."""
    found = [p_of_rule(place, COUNT) for place in range(len(RULES))]
    assert holm(found) > 1e-3, found


@pytest.mark.slow
def test_twenty_thousand_draws_follow_the_law() -> None:
    """Plain speculation and V3, by tokens and by blocks, at full size."""
    found = [p_of_rule(place, FULL) for place in (0, 2, 3)]
    assert holm(found) > 1e-3, found


def test_the_chi_square_test_has_power() -> None:
    """Mutation: the same draws are rejected under the target's law and under the draft's."""
    pair = Pair(r.TokenV3(0.5))
    lanes = (TableLane(pair.draft), TableLane(pair.target))
    seen = draw(lanes, pair.rule, (0,), 800, block=False, seed=7)
    for which in (0, 1):
        law = {key[1:]: prob for key, prob in pair.product(LENGTH, which).items()}
        assert p_value(seen, law) < 1e-6


class ReusedUniform(RandomChoices):
    """Draws the residual with the uniform of the rejected test."""

    def accept(self, ratios):
        self._last = torch.rand(1, generator=self._accept, dtype=torch.float64)
        return int(bool(self._last < ratios[0]))

    def residual(self, law):
        return int(torch.searchsorted(law.cumsum(-1), self._last).clamp(max=len(law) - 1))


def test_mutation_a_reused_uniform_is_visible() -> None:
    """The residual must not share its random number with the acceptance test."""
    q = torch.tensor([0.50, 0.30, 0.15, 0.05], dtype=torch.float64)
    p = torch.tensor([0.25, 0.45, 0.20, 0.10], dtype=torch.float64)
    tables = [Table(1, vocab=4), Table(2, vocab=4)]
    for table, row in zip(tables, (q, p), strict=True):
        table._rows[(0,)] = row.log()
    law = {(v,): float(p[v]) for v in range(4)}

    def first_tokens(choices) -> Counter:
        seen: Counter = Counter()
        for _ in range(2500):
            lanes = [TableLane(table) for table in tables]
            decoder = Decoder(*lanes, r.Lossless(), shaper(1), choices, prompt=(0,))
            decoder.round(1)
            seen[tuple(decoder.tokens[1:2])] += 1
        return seen

    assert p_value(first_tokens(RandomChoices(1, "cpu")), law) > 1e-3
    assert p_value(first_tokens(ReusedUniform(1, "cpu")), law) < 1e-6


class Remembering(RandomChoices):
    """Remembers what it drafted."""

    def draft(self, law):
        self.drafted = super().draft(law)
        return self.drafted


@pytest.mark.parametrize("rule", [r.Lossless(), r.TokenV3(0.5), r.Lenient(0.6)], ids=str)
def test_the_rejection_rate_is_what_the_ratios_say(rule) -> None:
    """Rejections agree with the mean of max(0, 1 - pi(x) / q(x)), and that with D(pi, q)."""
    pair = Pair(rule)
    lanes = (TableLane(pair.draft), TableLane(pair.target))
    choices = Remembering(3, "cpu")
    q, _, pi = pair.rows((0,))
    rejected, estimates = 0, []
    for _ in range(1000):
        for lane in lanes:
            lane.rollback(0)
        decoder = Decoder(*lanes, pair.rule, shaper(1), choices, prompt=(0,))
        # a bonus would be drafted and forgotten by the round
        decoder._without_draft = lambda p_row: True
        rejected += decoder.round(1).kept == 0
        x = choices.drafted
        estimates.append(max(0.0, 1 - float(pi[x] / q[x])))
    mean, spread = statistics.mean(estimates), statistics.pstdev(estimates)
    exact = float((pi - q).clamp(min=0).sum())
    assert exact > 0.05
    assert mean == pytest.approx(exact, abs=4 * spread / 1000**0.5)
    assert rejected / 1000 == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 1000) ** 0.5)
    # the estimate of D from drafts alone is the steadier of the two
    assert spread**2 < exact * (1 - exact)


def llama(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=4, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return sharpened(LlamaForCausalLM(config).eval(), 12.0)


def t5(seed: int) -> T5ForConditionalGeneration:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=4, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1,
        num_heads=2, decoder_start_token_id=0, pad_token_id=0, eos_token_id=3,
        tie_word_embeddings=False,
    )  # fmt: skip
    module = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        module.lm_head.weight.mul_(0.3)
    return module


def sharpened(module, factor: float):
    """Scale a random module's matrices so that its laws are neither flat nor certain."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.dim() > 1 and "relative" not in name:
                weight.mul_(factor)
    return module


def module_law(pair_rows, rule, prompt) -> Law:
    """Return pi^3 from whole forward passes, without any cache."""
    law: Law = {(): 1.0}
    for _ in range(LENGTH):
        grown: Law = {}
        for prefix, weight in law.items():
            q, p = pair_rows((*prompt, *prefix))
            pi = rule.target_distribution(q, p)
            for v, prob in enumerate(pi.tolist()):
                grown[(*prefix, v)] = weight * prob
        law = grown
    return law


@pytest.mark.parametrize(("rule", "block"), [(r.Lossless(), False), (r.TokenV3(0.5), True)])
def test_the_sampled_loop_follows_the_law_on_a_decoder_only_pair(rule, block) -> None:
    """600 draws of two real Llama modules with caches agree with cache-free forward passes."""
    small, large = llama(1), llama(2)
    prompt = (1, 2, 0)
    lanes = [CausalLane(m, "m", 4, QuickForward.of(m, 8)) for m in (small, large)]

    @torch.inference_mode()
    def rows(ids):
        whole = torch.tensor([ids])
        return [m(whole).logits[0, -1].softmax(-1) for m in (small, large)]

    law = module_law(rows, rule, prompt)
    seen = draw(lanes, rule, prompt, 600, block=block, seed=5)
    assert p_value(seen, law) > 1e-3
    draft_law = module_law(lambda ids: rows(ids)[:1] * 2, rule, prompt)
    assert p_value(seen, draft_law) < 1e-6


def test_processors_shape_both_rows_and_the_criterion_reads_neither() -> None:
    """At T = 0.7 with top-k 3 the mixture is of processed rows, decided on the free ones."""
    small, large = llama(1), llama(2)
    prompt, rule = (1, 2, 0), r.TokenV3(0.5)
    chain = LogitsProcessorList([TemperatureLogitsWarper(0.7), TopKLogitsWarper(3)])
    lanes = [CausalLane(m, "m", 4, QuickForward.of(m, 8)) for m in (small, large)]

    @torch.inference_mode()
    def law_of(decide_on_scaled: bool) -> Law:
        law: Law = {(): 1.0}
        for _ in range(LENGTH):
            grown: Law = {}
            for prefix, weight in law.items():
                whole = torch.tensor([(*prompt, *prefix)])
                logits = [m(whole).logits[:, -1] for m in (small, large)]
                hot = [chain(whole, row.clone()).softmax(-1) for row in logits]
                free = hot if decide_on_scaled else [row.softmax(-1) for row in logits]
                pi = rule.target_distribution(*free, draft_scaled=hot[0], target_scaled=hot[1])
                for v, prob in enumerate(pi[0].tolist()):
                    if prob > 0:
                        grown[(*prefix, v)] = weight * prob
            law = grown
        return law

    shape = Shaper(chain, greedy=False)
    choices, seen = RandomChoices(8, "cpu"), Counter()
    for _ in range(1500):
        for lane in lanes:
            lane.rollback(min(lane.length, len(prompt) - 1))
        decoder = Decoder(*lanes, rule, shape, choices, prompt=prompt, block=True)
        while len(decoder.tokens) < len(prompt) + LENGTH:
            decoder.round(2)
        seen[tuple(decoder.tokens[len(prompt) :][:LENGTH])] += 1
    assert p_value(seen, law_of(decide_on_scaled=False)) > 1e-3
    assert p_value(seen, law_of(decide_on_scaled=True)) < 1e-6


def test_the_sampled_loop_follows_the_law_on_an_encoder_decoder_pair() -> None:
    """500 draws of two real T5 modules agree with cache-free forward passes."""
    small, large = t5(1), t5(2)
    source = torch.tensor([[1, 2, 2, 1]])
    rule = r.TokenV3(0.5)
    lanes = [Seq2SeqLane(m, "m", 4, source) for m in (small, large)]

    @torch.inference_mode()
    def rows(ids):
        whole = torch.tensor([ids])
        return [
            m(input_ids=source, decoder_input_ids=whole).logits[0, -1].softmax(-1)
            for m in (small, large)
        ]

    law = module_law(rows, rule, (0,))
    seen = draw(lanes, rule, (0,), 500, block=False, seed=6)
    assert p_value(seen, law) > 1e-3
    draft_law = module_law(lambda ids: rows(ids)[:1] * 2, rule, (0,))
    assert p_value(seen, draft_law) < 1e-6
    assert len(law) == len(list(itertools.product(range(4), repeat=3)))
