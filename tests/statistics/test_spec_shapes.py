"""Rules are pure functions of rows: any leading shape, float32 as well, inputs left alone."""

from __future__ import annotations

import warnings

import pytest
import torch

from cascadellm.local import rules as r
from cascadellm.local.verify import acceptance, residual
from tests.statistics.spec_toys import random_rows

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    RULES = [
        r.Lossless(), r.Chow(0.4), r.Diff(0.1), r.Opt(0.3), r.ChowLog(1.0), r.DiffLog(0.1),
        r.OptLog(0.2), r.BiLDStar(1.0), r.TokenV1(0.3), r.TokenV2(0.3), r.TokenV3(0.5),
        r.Lenient(0.6), r.Ensemble(0.4), r.Mentored(0.4), r.Mentored(0.97),
    ]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_leading_dimensions_are_rows_of_their_own(rule) -> None:
    """One row, a matrix and a block of matrices give the same laws, and nothing is changed."""
    q, p = random_rows(12, 7, seed=2)
    hot_q, hot_p = ((x.log() / 0.7).softmax(-1) for x in (q, p))
    before = [x.clone() for x in (q, p, hot_q, hot_p)]
    flat = rule.target_distribution(q, p, draft_scaled=hot_q, target_scaled=hot_p)
    shaped = rule.target_distribution(
        *(x.reshape(2, 3, 2, 7) for x in (q, p)),
        draft_scaled=hot_q.reshape(2, 3, 2, 7),
        target_scaled=hot_p.reshape(2, 3, 2, 7),
    )
    assert torch.equal(flat.reshape(2, 3, 2, 7), shaped)
    for i in range(12):
        one = rule.target_distribution(q[i], p[i], draft_scaled=hot_q[i], target_scaled=hot_p[i])
        assert torch.equal(flat[i], one)
    assert all(map(torch.equal, before, (q, p, hot_q, hot_p)))
    plain = rule.target_distribution(q, p)
    same = rule.target_distribution(q, p, draft_scaled=q, target_scaled=p)
    assert torch.equal(plain, same)


@pytest.mark.parametrize("sharpness", [1.0, 8.0])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_float32_rows_of_a_large_vocabulary_stay_near_the_exact_law(rule, sharpness) -> None:
    """Over fifty thousand words float32 is within 2e-5 of float64 in total variation."""
    stream = torch.Generator().manual_seed(1)
    base = sharpness * torch.randn(6, 50_000, generator=stream)
    q, p = ((base + torch.randn(6, 50_000, generator=stream)).softmax(-1) for _ in range(2))
    pi = rule.target_distribution(q, p)
    exact = rule.target_distribution(q.double(), p.double())
    assert torch.float32 == pi.dtype
    assert pi.min() >= 0
    assert (pi.double() - exact).abs().sum(-1).max() / 2 < 2e-5
    kept = acceptance(pi, q)
    assert (kept.double() - acceptance(exact, q.double())).abs().max() < 2e-5
    assert bool(residual(pi, q).isfinite().all())
