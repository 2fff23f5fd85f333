"""Exact properties of rules and verification: enumeration in float64, to 1e-12."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cascadellm.local import rules as r
from cascadellm.local.partial import distance_bounds, matching_prefix, opt_defers
from cascadellm.local.rule_laws import entropy, total_variation
from cascadellm.local.verify import acceptance, acceptance_ratios, block_thresholds, residual
from tests.statistics.spec_toys import Law, Pair, Table, distance, prefixes, random_rows

EXACT = 1e-12
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    RULES = [
        r.Lossless(), r.Chow(0.4), r.Chow(0.6), r.Diff(0.1), r.Opt(0.2), r.Opt(0.7),
        r.ChowLog(0.8), r.DiffLog(0.1), r.OptLog(0.2), r.BiLDStar(1.0), r.TokenV1(0.3),
        r.TokenV2(0.3), r.TokenV3(0.3), r.TokenV3(0.7), r.Lenient(0.6), r.Ensemble(0.4),
        r.Mentored(0.4),
    ]  # fmt: skip
TEMPERATURES = (1, 0.5, 0)
TOKEN_RULES = [rule for rule in RULES if hasattr(rule, "keeps")]
BINARY_RULES = [rule for rule in RULES if hasattr(rule, "defers")]


def scaled_pairs(temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return q, p and their scaled rows for a few hundred random pairs."""
    q, p = random_rows(300, 5, seed=7)
    if temperature == 0:
        hot = [torch.nn.functional.one_hot(rows.argmax(-1), 5).double() for rows in (q, p)]
    else:
        hot = [(rows.log() / temperature).softmax(-1) for rows in (q, p)]
    return q, p, *hot


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_acceptance_and_residual_emit_the_target_distribution(rule, temperature) -> None:
    """The result is a law; q acc + (1 - sum q acc) residual = pi; acceptance = 1 - D(pi, q)."""
    q, p, scaled_q, scaled_p = scaled_pairs(temperature)
    pi = rule.target_distribution(q, p, draft_scaled=scaled_q, target_scaled=scaled_p)
    assert pi.min() >= 0
    assert (pi.sum(-1) - 1).abs().max() < EXACT
    kept = torch.minimum(pi, scaled_q)
    emitted = kept + (1 - kept.sum(-1, keepdim=True)) * residual(pi, scaled_q)
    assert (emitted - pi).abs().max() < EXACT
    away = total_variation(pi, scaled_q).squeeze(-1)
    assert (acceptance(pi, scaled_q) - (1 - away)).abs().max() < EXACT


def test_a_residual_of_the_wrong_rows_is_visible() -> None:
    """Mutation: norm(max(0, p - q)) does not complete V3's law."""
    q, p, *_ = scaled_pairs(1)
    pi = r.TokenV3(0.5).target_distribution(q, p)
    kept = torch.minimum(pi, q)
    wrong = kept + (1 - kept.sum(-1, keepdim=True)) * residual(p, q)
    assert (wrong - pi).abs().max() > 0.05


def test_eta_over_the_rejected_tokens_is_visible() -> None:
    """Mutation: eta = 1 - sum over *rejected* tokens is no law."""
    q, p, *_ = scaled_pairs(1)
    kept = r.TokenV3(0.5).keeps(q, p)
    eta = 1 - (q * ~kept).sum(-1, keepdim=True)
    assert ((q * kept + eta * p).sum(-1) - 1).abs().max() > 0.1


@pytest.mark.parametrize("rule", BINARY_RULES, ids=str)
def test_a_binary_rule_rejects_with_r_times_the_distance(rule) -> None:
    """P(reject) = r D(p, q) at each position."""
    q, p, scaled_q, scaled_p = scaled_pairs(0.5)
    pi = rule.target_distribution(q, p, draft_scaled=scaled_q, target_scaled=scaled_p)
    defers = rule.defers(q, p, scaled_q, scaled_p).double() * (not rule.lossless)
    expected = defers * total_variation(scaled_p, scaled_q)
    assert (1 - acceptance(pi, scaled_q) - expected.squeeze(-1)).abs().max() < EXACT


@pytest.mark.parametrize("rule", TOKEN_RULES, ids=str)
def test_two_executions_of_a_token_rule_agree_and_the_coupling_rejects_less(rule) -> None:
    """Keep iff v in A, else draw from p: this has the same law and rejects at least as often."""
    q, p, *_ = scaled_pairs(1)
    kept = rule.keeps(q, p)
    pi = rule.target_distribution(q, p)
    naive = q * kept + (q * ~kept).sum(-1, keepdim=True) * p
    assert (naive - pi).abs().max() < EXACT
    eta = (q * ~kept).sum(-1, keepdim=True)
    formula = ((q - eta * p).clamp(min=0) * ~kept).sum(-1)
    assert (1 - acceptance(pi, q) - formula).abs().max() < EXACT
    assert ((q * ~kept).sum(-1) - formula).min() > -EXACT


def test_the_third_execution_is_another_law() -> None:
    """Mutation: "v in A, else the exact p/q test" is not V3."""
    q, p, *_ = scaled_pairs(1)
    rule = r.TokenV3(0.5)
    kept = rule.keeps(q, p)
    accepted = torch.where(kept, q, torch.minimum(p, q))
    third = accepted + (1 - accepted.sum(-1, keepdim=True)) * residual(p, q)
    away = total_variation(third, rule.target_distribution(q, p))
    assert away.mean() > 0.03
    assert away.max() > 0.1


class Recursion:
    """The law of the first tokens by recursion over prefixes, from verify's own functions."""

    def __init__(self, pair: Pair, length: int) -> None:
        self.length = length
        self.rows = {key: pair.rows(key) for key in prefixes(pair.draft.vocab, length)}

    def law(self, gamma: int, bonus: str = "pi", excess: Callable | None = None) -> Law:
        self._bonus, self._gamma = bonus, gamma
        self._excess = excess or (lambda q, p, pi: residual(pi, q))
        self.out: Law = {}
        self.rejections = 0.0
        self._walk((0,), gamma, 1.0)
        return self.out

    def _walk(self, prefix: tuple[int, ...], left: int, weight: float) -> None:
        if weight == 0:
            return
        if len(prefix) > self.length:
            self.out[prefix] = self.out.get(prefix, 0.0) + weight
            return
        q, p, pi = self.rows[prefix]
        if left == 0 and self._bonus == "none":
            self._walk(prefix, self._gamma, weight)
            return
        if left == 0 and self._bonus != "pi":
            for v, prob in enumerate((p if self._bonus == "p" else q).tolist()):
                self._walk((*prefix, v), self._gamma, weight * prob)
            return
        tokens = torch.arange(len(q))
        ratios = acceptance_ratios(tokens, pi.expand(len(q), -1), q.expand(len(q), -1))
        kept = q * ratios.nan_to_num(posinf=1.0).clamp(max=1)
        rejected = float(1 - kept.sum())
        self.rejections += weight * rejected
        after = max(left - 1, 0) if left else self._gamma
        for v, prob in enumerate(kept.tolist()):
            self._walk((*prefix, v), after, weight * prob)
        if rejected > 1e-15:
            for v, prob in enumerate(self._excess(q, p, pi).tolist()):
                self._walk((*prefix, v), self._gamma, weight * rejected * prob)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_law_of_four_tokens_is_the_product_for_every_gamma(rule, temperature) -> None:
    """Enumerated laws equal pi^4 for gamma 1, 2, 3, 5, with no bonus and with bonus ~ pi."""
    pair = Pair(rule, temperature)
    expected = pair.product(4)
    walk = Recursion(pair, 4)
    for gamma, bonus in itertools.product((1, 2, 3, 5), ("pi", "none")):
        assert distance(expected, walk.law(gamma, bonus)) < EXACT


def test_without_bonus_the_expected_rejections_do_not_depend_on_gamma() -> None:
    """E[rejections] = sum over t of E_pi D(pi_t, q_t)."""
    pair = Pair(r.TokenV3(0.5))
    walk = Recursion(pair, 4)
    expected = 0.0
    for n in range(4):
        for prefix, weight in pair.product(n).items():
            q, _, pi = pair.rows(prefix)
            expected += weight * float(total_variation(pi, q))
    for gamma in (1, 2, 3, 5):
        walk.law(gamma, "none")
        assert pytest.approx(expected, abs=EXACT) == walk.rejections


@pytest.mark.parametrize("bonus", ["p", "q"])
def test_a_wrong_bonus_is_visible(bonus) -> None:
    """Mutation: a bonus from the target's or the draft's row depends on gamma and misses pi."""
    pair = Pair(r.TokenV3(0.5))
    walk = Recursion(pair, 4)
    laws = [walk.law(gamma, bonus) for gamma in (1, 3)]
    assert distance(pair.product(4), laws[0]) > 0.02
    assert distance(*laws) > 0.02


def test_a_wrong_residual_is_visible_in_the_law() -> None:
    """Mutation: the residual of p - q misses pi^4."""
    pair = Pair(r.TokenV3(0.5))
    law = Recursion(pair, 4).law(2, excess=lambda q, p, pi: residual(p, q))
    assert distance(pair.product(4), law) > 0.01


LOSSLESS = [
    r.Chow(-0.01), r.Diff(-1), r.TokenV1(-1), r.TokenV2(-1), r.TokenV2(-0.01), r.TokenV3(-0.01),
    r.Opt(-1.01), r.Mentored(0), r.Lenient(1), r.Ensemble(1), r.ChowLog(-0.1), r.BiLDStar(-0.1),
]  # fmt: skip
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    DRAFT_ONLY = [
        r.Chow(1), r.Diff(1), r.TokenV1(1), r.TokenV2(1), r.TokenV3(1), r.Opt(1.01), r.Ensemble(0)
    ]  # fmt: skip


@pytest.mark.parametrize("rule", LOSSLESS, ids=str)
def test_the_lossless_end_is_the_target_alone(rule) -> None:
    """At its lossless end a rule has the law p^n; swapping the models would give q^n."""
    pair = Pair(rule)
    law = Recursion(pair, 3).law(2)
    assert distance(pair.product(3, which=1), law) < EXACT
    assert distance(pair.product(3, which=0), law) > 0.1


@pytest.mark.parametrize("rule", DRAFT_ONLY, ids=str)
def test_the_other_end_is_the_draft_alone(rule) -> None:
    """At its other end a rule has the law q^n, at every temperature of the token rules."""
    pair = Pair(rule)
    law = Recursion(pair, 3).law(2)
    assert distance(pair.product(3, which=0), law) < EXACT
    assert distance(pair.product(3, which=1), law) > 0.1


def test_no_finite_alpha_is_claimed_lossless_for_opt() -> None:
    """At 0 < T < 1 OPT's critical alpha is unbounded, so it never claims to be lossless."""
    assert not r.Opt(-1000).lossless
    q, p = PAIR_OF_CLOSE_ROWS
    sharp_q, sharp_p = ((row.log() / 0.3).softmax(-1) for row in (q, p))
    pi = r.Opt(-3).target_distribution(q, p, draft_scaled=sharp_q, target_scaled=sharp_p)
    assert sharp_q.tolist() == pi.tolist()


PAIR_OF_CLOSE_ROWS = (
    torch.tensor([0.90, 0.06, 0.04], dtype=torch.float64),
    torch.tensor([0.84, 0.10, 0.06], dtype=torch.float64),
)


def test_greedy_forms() -> None:
    """At T = 0: OPT = Diff in tokens, V3 = greedy lenience, V3(0) and lossless = target."""
    q, p, hot_q, hot_p = scaled_pairs(0)

    def tokens(rule):
        form = rule.greedy_form
        pi = form.target_distribution(q, p, draft_scaled=hot_q, target_scaled=hot_p)
        assert (pi.amax(-1) - 1).abs().max() < EXACT
        return pi.argmax(-1).tolist()

    target, draft = p.argmax(-1).tolist(), q.argmax(-1).tolist()
    for alpha in (-0.2, 0.0, 0.1, 0.25):
        assert tokens(r.Diff(alpha)) == tokens(r.Opt(alpha))
    for lenience in (0.2, 0.5, 0.9):
        keep = p.gather(-1, q.argmax(-1, keepdim=True)) >= lenience * p.amax(-1, keepdim=True)
        expected = [d if k else t for d, t, k in zip(draft, target, keep.tolist(), strict=True)
                    for k in k]  # fmt: skip
        assert expected == tokens(r.Lenient(lenience))
        assert expected == tokens(r.TokenV3(1 - lenience))
    assert target == tokens(r.TokenV3(0)) == tokens(r.Lossless()) == tokens(r.Mentored(0.5))
    assert draft == tokens(r.TokenV3(1)) == tokens(r.Chow(1))
    assert (0.3 * p + 0.7 * q).argmax(-1).tolist() == tokens(r.Ensemble(0.3))


@pytest.mark.filterwarnings("ignore:Opt")
@pytest.mark.parametrize(
    ("kind", "grid"),
    [
        (r.Chow, torch.linspace(-1, 1, 21)), (r.Diff, torch.linspace(-1, 1, 21)),
        (r.Opt, torch.linspace(-1.1, 1.1, 23)), (r.Mentored, torch.linspace(0, 0.95, 20)),
        (r.Lenient, torch.linspace(1, 0.05, 20)),
    ],
)  # fmt: skip
def test_rejection_never_rises_with_alpha_where_that_holds(kind, grid) -> None:
    """Per context, Chow, Diff, OPT, mentored and lenience reject less as they trust more."""
    q, p, *_ = scaled_pairs(1)
    kept = torch.stack([acceptance(kind(a).target_distribution(q, p), q) for a in grid.tolist()])
    assert kept.diff(dim=0).min() > -EXACT


def test_opt_minimises_its_objective() -> None:
    """Given the plug-in losses, OPT's decision has the least Lagrangian in every context."""
    q, p, *_ = scaled_pairs(1)
    for alpha in (0.0, 0.1, 0.25):
        keep = 1 - q.amax(-1)
        defer = 1 - p.amax(-1) + alpha * total_variation(p, q).squeeze(-1)
        best = torch.minimum(keep, defer)
        decided = r.Opt(alpha).defers(q, p, q, p).squeeze(-1)
        assert (torch.where(decided, defer, keep) - best).abs().max() < EXACT


def test_the_regret_of_plug_in_opt_is_bounded() -> None:
    """Regret <= |E loss(q) - (1 - max q)| + |E loss(p) - (1 - max p)| under any true law."""
    q, p, *_ = scaled_pairs(1)
    truth, _ = random_rows(300, 5, seed=8)
    alpha = 0.1
    loss_q = 1 - truth.gather(-1, q.argmax(-1, keepdim=True)).squeeze(-1)
    loss_p = 1 - truth.gather(-1, p.argmax(-1, keepdim=True)).squeeze(-1)
    defer = loss_p + alpha * total_variation(p, q).squeeze(-1)
    decided = r.Opt(alpha).defers(q, p, q, p).squeeze(-1)
    regret = torch.where(decided, defer, loss_q) - torch.minimum(defer, loss_q)
    bound = (loss_q - (1 - q.amax(-1))).abs() + (loss_p - (1 - p.amax(-1))).abs()
    assert (regret - bound).max() < EXACT
    assert regret.max() > 0.1


def test_lenience_never_exceeds_target_over_l() -> None:
    """The law is <= p / l pointwise, and acceptance is sum min(q, p / l)."""
    q, p, *_ = scaled_pairs(1)
    for lenience in (1.0, 0.7, 0.3, 0.05):
        pi = r.Lenient(lenience).target_distribution(q, p)
        assert (pi - p / lenience).max() < EXACT
        expected = torch.minimum(q, p / lenience).sum(-1)
        assert (acceptance(pi, q) - expected).abs().max() < EXACT


def test_mentored_accepts_the_capped_draft_and_handles_infinite_beta() -> None:
    """Acceptance is sum min(q, p / (1 - alpha)), beta >= 1, and pi = q where the cap is idle."""
    q, p, *_ = scaled_pairs(1)
    for alpha in (0.0, 0.3, 0.8, 0.99):
        pi = r.Mentored(alpha).target_distribution(q, p)
        capped = torch.minimum(q, p / (1 - alpha))
        assert (acceptance(pi, q) - capped.sum(-1)).abs().max() < EXACT
        lifted = pi > capped + 1e-9
        assert not bool(((pi / p)[lifted] > 1 + 1e-9).any())
    near, _ = random_rows(50, 5, seed=9)
    close = 0.9 * near + 0.1 / 5
    free = (near <= close / 0.5).all(-1)
    pi = r.Mentored(0.5).target_distribution(near, close)
    assert free.any()
    assert (pi - near)[free].abs().max() < 1e-15


def block_law(pair: Pair, gamma: int) -> tuple[float, float]:
    """Return the expected accepted tokens of one block: by blocks, and token by token."""
    blocks = tokens = 0.0
    rows = {key: pair.rows(key) for key in prefixes(pair.draft.vocab, gamma)}
    for drafts in itertools.product(range(pair.draft.vocab), repeat=gamma):
        contexts = [rows[(0, *drafts[:i])] for i in range(gamma)]
        q = torch.stack([c[0] for c in contexts])
        pi = torch.stack([c[2] for c in contexts])
        ratios = acceptance_ratios(torch.tensor(drafts), pi, q)
        weight = math.prod(float(q[i, d]) for i, d in enumerate(drafts))
        h, _ = block_thresholds(ratios, pi, q)
        later = 1.0
        for i in reversed(range(gamma)):
            blocks += weight * later * float(h[i]) * (i + 1)
            later *= 1 - float(h[i])
        tokens += weight * float(ratios.clamp(max=1).cumprod(0).sum())
    return blocks, tokens


BLOCK_RULES = [r.Lossless(), r.TokenV3(0.5), r.Opt(0.2), r.Mentored(0.3)]


@pytest.mark.parametrize("rule", BLOCK_RULES, ids=str)
def test_blocks_never_accept_fewer_tokens(rule) -> None:
    """Expected accepted length: blocks >= tokens, equal at gamma 1, more somewhere."""
    gains = []
    for seed in range(4):
        pair = Pair(rule, draft=Table(10 + seed), target=Table(20 + seed))
        for gamma in (1, 2, 3):
            blocks, tokens = block_law(pair, gamma)
            gains.append(blocks - tokens)
            assert gains[-1] > -EXACT
            if gamma == 1:
                assert abs(gains[-1]) < EXACT
    if rule.lossless:
        assert max(gains) > 0.01


SAMPLES = [
    (
        [0.5, 0.3, 0.15, 0.05], [0.25, 0.45, 0.20, 0.10], 0.295,
        [0.177305, 0.446809, 0.241135, 0.134752],
    ),
    (
        [0.40, 0.35, 0.20, 0.05, 0], [0.20, 0.45, 0.05, 0.10, 0.20], 0.2525,
        [0.160535, 0.391304, 0.0535117, 0.12709, 0.267559],
    ),
    ([0.45, 0.30, 0.15, 0.10], [0, 1, 0, 0], 0.30, [0, 1, 0, 0]),
]  # fmt: skip


@pytest.mark.parametrize(("draft", "target", "accepted", "rest"), SAMPLES, ids="ABC")
def test_sampler_match_has_the_target_law(draft, target, accepted, rest) -> None:
    """Keeping drafts that equal the target's samples emits p^n and accepts sum p q."""
    q, p = (torch.tensor(row, dtype=torch.float64) for row in (draft, target))
    law, kept, rejected = torch.zeros_like(p), 0.0, torch.zeros_like(p)
    for x, y, z in itertools.product(range(len(p)), repeat=3):
        weight = float(q[x] * p[y] * p[z])
        emitted = matching_prefix([x], [y, z])
        law[emitted[0]] += weight
        kept += weight * (len(emitted) == 2)
        rejected[emitted[0]] += weight * (len(emitted) == 1)
    assert (law - p).abs().max() < EXACT
    assert pytest.approx(accepted, abs=EXACT) == kept
    assert pytest.approx(rest, abs=1e-6) == (rejected / rejected.sum()).tolist()


def test_degenerate_rows_never_divide_by_zero() -> None:
    """Zeros in q, p = q, one-hot rows, -inf logits: every law is finite and sums to 1."""
    spike = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    zero = torch.tensor([0.6, 0.4, 0.0], dtype=torch.float64)
    full = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    masked = torch.tensor([1.0, float("-inf"), 0.5], dtype=torch.float64).softmax(-1)
    rows = [spike, zero, full, masked, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)]
    for rule, q, p in itertools.product(RULES, rows, rows):
        pi = rule.target_distribution(q, p)
        rest = residual(pi, q)
        assert bool(pi.isfinite().all()), (rule, q, p)
        assert abs(float(pi.sum()) - 1) < EXACT
        assert abs(float(rest.sum()) - 1) < EXACT
        # token rules sharpen even p = q: what stands outside A is drawn again
        if q is p and rule not in TOKEN_RULES:
            assert (pi - q).abs().max() < 1e-15
            assert float(acceptance(pi, q)) == pytest.approx(1, abs=1e-15)
    assert entropy(spike).item() == 0


def test_ties_keep_the_draft() -> None:
    """A criterion that is met exactly keeps the small model; strict tests would defer."""
    spike = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    other = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    assert spike.tolist() == r.Chow(0.0).target_distribution(spike, other).tolist()
    even_q = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    even_p = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
    for rule in (r.Chow(0.5), r.Diff(0.0), r.Opt(0.0), r.DiffLog(0.0)):
        assert even_q.tolist() == rule.target_distribution(even_q, even_p).tolist()
    assert r.TokenV2(0.25).keeps(even_q, even_p).tolist() == [True, True, True]
    assert r.TokenV3(0.5).keeps(even_q, even_p).tolist() == [True, True, True]
    assert r.TokenV1(0.25).keeps(even_q, even_p).tolist() == [True, True, True]


def test_top_k_rows_bound_the_distance_and_withhold_open_decisions() -> None:
    """The interval holds D(p, q); OPT decides only where both ends agree, and then rightly."""
    q, p = random_rows(200, 8, seed=3)
    withheld = decided = 0
    for draft, target in zip(q, p, strict=True):
        top = target.topk(3)
        listed = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        low, high = distance_bounds(listed, draft.tolist())
        exact = float(total_variation(target, draft))
        assert low - EXACT <= exact <= high + EXACT
        for alpha in (-0.4, 0.1, 0.4):
            decision = opt_defers(alpha, listed, draft.tolist())
            gap = float(target.max() - draft.max())
            if decision is None:
                withheld += 1
            else:
                decided += 1
                assert decision == (gap > alpha * exact)
    assert withheld > 10
    assert decided > 300


def test_sampler_match_refuses_a_wrong_number_of_samples() -> None:
    """One target sample per draft and one after is what the step needs."""
    with pytest.raises(ValueError, match="2 drafts need 3 target samples, got 2"):
        matching_prefix([1, 2], [1, 2])
