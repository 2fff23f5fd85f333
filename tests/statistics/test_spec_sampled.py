"""The sampled loop against its law: chi-square with fixed seeds, on tables and real modules."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from cascadellm.local import rules as r
from cascadellm.local.decode import Decoder
from cascadellm.local.lanes import CausalLane, Seq2SeqLane
from cascadellm.local.quick import QuickForward
from cascadellm.local.streams import RandomChoices
from tests.statistics.spec_toys import Law, Pair, Table, TableLane, shaper

LENGTH = 3
RULES = [
    (r.Lossless(), False), (r.Lossless(), True), (r.TokenV3(0.5), False), (r.Opt(0.2), False),
    (r.Mentored(0.4), True),
]  # fmt: skip


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


def test_the_sampled_loop_follows_the_law_on_tables() -> None:
    """Over 1,500 draws per rule no chi-square test rejects pi^3 at 1e-3 (Holm)."""
    found = []
    for place, (rule, block) in enumerate(RULES):
        pair = Pair(rule)
        lanes = (TableLane(pair.draft), TableLane(pair.target))
        seen = draw(lanes, rule, (0,), 1500, block=block, seed=100 + place)
        law = {key[1:]: prob for key, prob in pair.product(LENGTH).items()}
        found.append(p_value(seen, law))
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


def test_the_rejection_rate_is_what_the_ratios_say() -> None:
    """Rejections per tested draft agree with the mean of max(0, 1 - pi(x) / q(x))."""
    pair = Pair(r.TokenV3(0.5))
    lanes = (TableLane(pair.draft), TableLane(pair.target))
    choices = RandomChoices(3, "cpu")
    rejected = expected = tested = 0.0
    for _ in range(800):
        for lane in lanes:
            lane.rollback(min(lane.length, 0))
        decoder = Decoder(*lanes, pair.rule, shaper(1), choices, prompt=(0,))
        found = decoder.round(1)
        q, _, pi = pair.rows((0,))
        expected += float((pi - q).clamp(min=0).sum())
        rejected += found.kept == 0
        tested += 1
    rate = expected / tested
    assert rejected / tested == pytest.approx(rate, abs=4 * (rate * (1 - rate) / tested) ** 0.5)


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
