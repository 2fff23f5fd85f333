"""Where rules begin and end, and what the published wording gets wrong about it."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import Tensor

from cascadellm.local import rules as r
from cascadellm.local.rule_laws import entropy, keep_tokens, total_variation
from cascadellm.local.verify import acceptance, residual
from tests.statistics.spec_toys import Pair, distance, prefixes, random_rows

EXACT = 1e-12
D64 = torch.float64
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    LOSSLESS = [
        r.Chow(-1e-9), r.Chow(-1), r.Diff(-1), r.TokenV1(-1), r.TokenV2(-1), r.TokenV2(-1e-9),
        r.TokenV3(-1e-9), r.TokenV3(-1), r.ChowLog(-1e-9), r.BiLDStar(-1e-9), r.Mentored(0),
        r.Lenient(1), r.Ensemble(1),
    ]  # fmt: skip
    AT_ONE = [*LOSSLESS, r.Opt(-1.01)]
    DRAFT_ONLY = [r.Chow(1), r.Diff(1), r.TokenV1(1), r.TokenV2(1), r.TokenV3(1), r.Ensemble(0)]


def rows(temperature: float = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, p = random_rows(500, 6, seed=21)
    if temperature == 0:
        hot = [torch.nn.functional.one_hot(x.argmax(-1), 6).double() for x in (q, p)]
    else:
        hot = [(x.log() / temperature).softmax(-1) for x in (q, p)]
    return q, p, *hot


@pytest.mark.parametrize("temperature", [1, 0.5, 0])
@pytest.mark.parametrize("rule", LOSSLESS, ids=str)
def test_a_rule_that_claims_to_be_lossless_is_so_by_its_formula(rule, temperature) -> None:
    """Without the shortcut for lossless rules the formula gives the target's row."""
    assert rule.lossless
    q, p, hot_q, hot_p = rows(temperature)
    pi = rule._mix(q, p, hot_q, hot_p)
    assert (pi - hot_p).abs().max() < EXACT


@pytest.mark.parametrize("temperature", [1, 0.5])
@pytest.mark.parametrize("rule", DRAFT_ONLY, ids=str)
def test_the_other_end_is_the_drafts_row(rule, temperature) -> None:
    """Chow, Diff, V1, V2, V3 at 1 and weight 0 are the draft alone."""
    q, p, hot_q, hot_p = rows(temperature)
    pi = rule.target_distribution(q, p, draft_scaled=hot_q, target_scaled=hot_p)
    assert (pi - hot_q).abs().max() < EXACT


@pytest.mark.filterwarnings("ignore:Opt")
@pytest.mark.parametrize("rule", AT_ONE, ids=str)
def test_the_real_loop_at_the_lossless_end_is_the_target(rule) -> None:
    """The loop's law is p^2 and not q^2."""
    pair = Pair(rule)
    law = pair.loop_law(2, 2)
    assert distance(pair.product(2, which=1), law) < EXACT
    assert distance(pair.product(2, which=0), law) > 0.1


@pytest.mark.filterwarnings("ignore:Opt")
@pytest.mark.parametrize("alpha", [-1.001, 1.001])
def test_opt_ends_beyond_one_at_temperature_1_and_0(alpha) -> None:
    """There D(p, q) >= |max p - max q|: below -1 the law is p, above 1 it is q."""
    for temperature in (1, 0):
        q, p, hot_q, hot_p = rows(temperature)
        pi = r.Opt(alpha).target_distribution(q, p, draft_scaled=hot_q, target_scaled=hot_p)
        assert (pi - (hot_p if alpha < 0 else hot_q)).abs().max() < EXACT


@pytest.mark.filterwarnings("ignore:Opt")
def test_no_finite_alpha_ends_opt_between_the_temperatures() -> None:
    """At T = 0.3 critical alphas beyond 50 exist, because the scaled distance shrinks."""
    q, p = random_rows(20_000, 3, seed=5)
    hot_q, hot_p = ((x.log() / 0.3).softmax(-1) for x in (q, p))
    apart = total_variation(hot_p, hot_q).squeeze(-1)
    critical = (p.amax(-1) - q.amax(-1)) / apart.clamp(min=1e-300)
    assert critical[apart > 1e-12].abs().max() > 50
    assert not r.Opt(-50).lossless


def test_opt_at_zero_is_diff_at_zero_and_not_lossless() -> None:
    """It keeps the draft wherever the draft is at least as peaked."""
    q, p, *_ = rows()
    pi = r.Opt(0).target_distribution(q, p)
    assert torch.equal(pi, r.Diff(0).target_distribution(q, p))
    keeps = q.amax(-1) >= p.amax(-1)
    assert torch.equal(pi[keeps], q[keeps])
    assert keeps.any()
    assert not r.Opt(0).lossless


def test_chow_at_zero_keeps_a_rounded_certainty() -> None:
    """In float32 a maximum rounds to 1, so only alpha < 0 is lossless."""
    logits = torch.tensor([0.0, -18.0, -18.5])
    q, p = logits.softmax(-1), torch.tensor([0.2, 0.5, 0.3])
    assert q.max() == 1.0
    assert float(logits.double().softmax(-1).max()) < 1
    assert torch.equal(r.Chow(0).target_distribution(q, p), q)
    assert torch.equal(r.Chow(-1e-6).target_distribution(q, p), p)
    assert not r.Chow(0).lossless


def test_chow_is_the_draft_alone_from_one_minus_one_over_the_vocabulary_on() -> None:
    """No row's maximum is below 1 / V, and below that alpha the flattest row defers."""
    q, p, *_ = rows()
    flat = torch.full((1, 6), 1 / 6, dtype=D64)
    whole = torch.cat((q, flat))
    targets = torch.cat((p, p[:1]))
    assert torch.equal(r.Chow(1 - 1 / 6 + EXACT).target_distribution(whole, targets), whole)
    below = r.Chow(1 - 1 / 6 - 1e-6).target_distribution(whole, targets)
    assert torch.equal(below[-1], p[0])


def test_v1_is_lossless_exactly_where_nothing_is_kept() -> None:
    """A is empty, and the law p, iff alpha < max p - max q."""
    q, p, *_ = rows()
    gap = p.amax(-1) - q.amax(-1)
    for alpha in (-0.3, 0.0, 0.2):
        rule = r.TokenV1(alpha)
        empty = ~rule.keeps(q, p).any(-1)
        assert torch.equal(empty, alpha < gap)
        pi = rule.target_distribution(q, p)
        assert (pi - p)[empty].abs().max() < EXACT
        assert (pi - p)[~empty].abs().amax(-1).min() > 0


def test_v2_and_v3_at_zero_keep_the_mode_and_reject_more_than_lossless() -> None:
    """A = {argmax p}: pi = q(v*) delta + (1 - q(v*)) p, which is not p above temperature 0."""
    q, p, *_ = rows()
    best = p.argmax(-1, keepdim=True)
    mode = torch.zeros_like(p).scatter(-1, best, 1.0)
    weight = q.gather(-1, best)
    expected = weight * mode + (1 - weight) * p
    for rule in (r.TokenV2(0), r.TokenV3(0)):
        assert not rule.lossless
        pi = rule.target_distribution(q, p)
        assert (pi - expected).abs().max() < EXACT
        assert total_variation(pi, p).mean() > 0.03
        more = acceptance(p, q) - acceptance(pi, q)
        # not everywhere: a draft that agrees on the mode is rejected less
        assert (more > 1e-9).double().mean() > 0.5
        assert more.min() < -0.1


def test_mentored_goes_to_the_draft_where_the_target_holds_its_tokens() -> None:
    """As alpha approaches 1 the law approaches q, unless p(v) = 0 < q(v)."""
    q, p, *_ = rows()
    away = [
        float(total_variation(r.Mentored(a).target_distribution(q, p), q).max())
        for a in (0.9, 0.99, 0.9999, 1 - 1e-9)
    ]
    assert away == sorted(away, reverse=True)
    assert away[-1] < 1e-6
    missing = torch.tensor([[0.0, 0.6, 0.4]], dtype=D64)
    pi = r.Mentored(1 - 1e-9).target_distribution(q[:1, :3].softmax(-1), missing)
    assert pi[0, 0] == 0


def test_mentored_is_the_best_law_for_its_divergence() -> None:
    """No other law has more of acceptance - mu KL(p || pi), with the mu that belongs to it."""
    stream = torch.Generator().manual_seed(3)
    for q, p in zip(*random_rows(40, 5, seed=31), strict=True):
        alpha = 0.4
        pi = r.Mentored(alpha).target_distribution(q, p)
        capped = torch.minimum(q, p / (1 - alpha))
        lifted = pi > capped + 1e-9
        if not bool(lifted.any()):
            continue
        beta = float((p / pi)[lifted].mean())
        assert beta >= 1
        mu = 1 / (beta - 1 + alpha)

        def worth(law: Tensor, q: Tensor = q, p: Tensor = p, mu: float = mu) -> Tensor:
            return acceptance(law, q) - mu * (p * (p / law).log()).sum(-1)

        noise = torch.rand(400, 5, generator=stream, dtype=D64)
        others = noise / noise.sum(-1, keepdim=True)
        steps = torch.logspace(-4, 0, 400, dtype=D64)[:, None]
        for rivals in (others, (1 - steps) * pi + steps * others):
            assert (worth(rivals) - worth(pi)).max() < EXACT


def test_equal_models_are_kept_by_every_rule_but_the_truncating_ones() -> None:
    """Where p = q the law is q; token rules keep A and draw the rest again."""
    q, *_ = rows()
    for rule in (r.Lossless(), r.Chow(0.3), r.Diff(0.1), r.Lenient(0.4), r.Mentored(0.6)):
        pi = rule.target_distribution(q, q)
        assert (pi - q).abs().max() < EXACT
        assert (residual(pi, q).sum(-1) - 1).abs().max() < EXACT


def test_quality_distance_adds_up_over_positions() -> None:
    """D(pi^n, p^n) <= sum over t of E_pi D(pi_t, p_t)."""
    for rule in (r.TokenV3(0.5), r.Diff(0.1), r.Lenient(0.5), r.Ensemble(0.3)):
        pair = Pair(rule)
        bound = 0.0
        for n in range(3):
            for prefix, weight in pair.product(n).items():
                _, p, pi = pair.rows(prefix)
                bound += weight * float(total_variation(pi, p))
        assert 0.01 < distance(pair.product(3), pair.product(3, which=1)) <= bound + EXACT


@pytest.mark.filterwarnings("ignore:Opt")
def test_no_set_of_decisions_is_cheaper_and_better_than_opts() -> None:
    """Over all 2^10 ways to defer at ten contexts, none costs less and loses less than OPT."""
    q, p = random_rows(10, 4, seed=12)
    apart = total_variation(p, q).squeeze(-1)
    loss_q, loss_p = 1 - q.amax(-1), 1 - p.amax(-1)
    ways = torch.tensor(list(itertools.product((0.0, 1.0), repeat=10)), dtype=D64)
    cost = ways @ apart
    loss = ways @ loss_p + (1 - ways) @ loss_q
    beaten = {"Diff": 0, "Chow": 0}
    for alpha in torch.linspace(0, 0.9, 19).tolist():
        for kind in (r.Opt, r.Diff, r.Chow):
            own = kind(alpha).defers(q, p, q, p).squeeze(-1).double()
            mine = (float(own @ apart), float(own @ loss_p + (1 - own) @ loss_q))
            better = bool(((cost <= mine[0] + 1e-9) & (loss < mine[1] - 1e-9)).any())
            if kind is r.Opt:
                assert not better, alpha
            else:
                beaten[kind.__name__] += better
    assert min(beaten.values()) > 0


TYPICAL = [
    ("A", 0.3, 0.8, 0.227367, [True, True, False, False], r.TokenV3(0.5)),
    ("A", 0.3, 0.5, 0.142104, [True, True, True, False], r.TokenV3(0.6)),
    ("B", 0.3, 0.5, 0.125394, [True, True, False, False, True], r.TokenV3(0.6)),
    ("B", 0.3, 0.8, 0.200630, [False, True, False, False, False], r.TokenV3(0)),
    ("C", 0.3, 0.8, 0.3, [False, True, False, False], r.TokenV3(0)),
]
PAIRS = {
    "A": ([0.50, 0.30, 0.15, 0.05], [0.25, 0.45, 0.20, 0.10]),
    "B": ([0.40, 0.35, 0.20, 0.05, 0.0], [0.20, 0.45, 0.05, 0.10, 0.20]),
    "C": ([0.45, 0.30, 0.15, 0.10], [0.0, 1.0, 0.0, 0.0]),
}


@pytest.mark.parametrize(("name", "most", "share", "limit", "kept", "same"), TYPICAL)
def test_typical_acceptance_is_one_more_token_rule(name, most, share, limit, kept, same) -> None:
    """Keeping p(v) > min(eps, delta exp(-H(p))) has the law of the kept set."""
    q, p = (torch.tensor(row, dtype=D64) for row in PAIRS[name])
    found = min(most, share * float((-entropy(p)).exp()))
    assert pytest.approx(limit, abs=1e-6) == found
    assert kept == (p > found).tolist()
    law = keep_tokens(p > found, q, p)
    assert (law - same.target_distribution(q, p)).abs().max() < EXACT


def test_top_k_rows_miss_exactly_the_tail() -> None:
    """D(p, renormalised top-k of p) is the mass outside the list."""
    _, p, *_ = rows()
    for k in (1, 2, 4):
        top = p.topk(k, dim=-1)
        listed = torch.zeros_like(p).scatter(-1, top.indices, top.values)
        cut = listed / listed.sum(-1, keepdim=True)
        tail = 1 - listed.sum(-1)
        assert (total_variation(p, cut).squeeze(-1) - tail).abs().max() < EXACT


def test_only_the_kept_mass_grows_with_alpha() -> None:
    """Sum of q over A never falls, although acceptance may."""
    q, p, *_ = rows()
    falls = 0
    for kind in (r.TokenV1, r.TokenV2, r.TokenV3):
        mass, kept = [], []
        for alpha in torch.linspace(-1, 1, 41).tolist():
            rule = kind(alpha)
            mass.append((q * rule.keeps(q, p)).sum(-1))
            kept.append(acceptance(rule.target_distribution(q, p), q))
        assert torch.stack(mass).diff(dim=0).min() > -EXACT
        falls += bool(torch.stack(kept).diff(dim=0).min() < -1e-3)
    assert 3 == falls


def test_the_rules_endpoints_do_not_depend_on_the_prefix() -> None:
    """At every prefix of the toy a lossless rule has the target's row."""
    pair = Pair(r.TokenV3(-0.1))
    for prefix in prefixes(3, 2):
        _, p, pi = pair.rows(prefix)
        assert torch.equal(p, pi)
