"""Fixtures: exact values of every rule on three pairs of rows, computed by hand or by hand-run."""

from __future__ import annotations

import math

import pytest
import torch

from cascadellm.errors import ConfigurationError
from cascadellm.local import rules as r
from cascadellm.local.rule_laws import total_variation
from cascadellm.local.verify import acceptance, residual

D64 = torch.float64
ROWS = {
    "A": ([0.50, 0.30, 0.15, 0.05], [0.25, 0.45, 0.20, 0.10]),
    "B": ([0.40, 0.35, 0.20, 0.05, 0.0], [0.20, 0.45, 0.05, 0.10, 0.20]),
    "C": ([0.45, 0.30, 0.15, 0.10], [0.0, 1.0, 0.0, 0.0]),
}
PAIRS = {name: tuple(torch.tensor(row, dtype=D64) for row in pair) for name, pair in ROWS.items()}

# critical alpha: the target below it, the draft from it on
CRITICAL = [
    (r.Chow, (0.50, 0.60, 0.55)),
    (r.Diff, (-0.05, 0.05, 0.55)),
    (r.Opt, (-0.20, 0.142857, 0.785714)),
    (r.ChowLog, (1.14212, 1.20563, 1.23535)),
    (r.DiffLog, (-0.115928, -0.177521, 1.23535)),
    (r.OptLog, (-0.463712, -0.507201, 1.76478)),
    (r.BiLDStar, (1.38629, 1.60944, math.inf)),
]

LAWS = [
    ("A", r.Lossless(), [0.25, 0.45, 0.20, 0.10], 0.75, [0, 0.6, 0.2, 0.2]),
    ("A", r.TokenV1(0.2), [0.55, 0.39, 0.04, 0.02], 0.86, [0.357143, 0.642857, 0, 0]),
    ("A", r.TokenV2(0.22), [0.55, 0.39, 0.04, 0.02], 0.86, [0.357143, 0.642857, 0, 0]),
    ("A", r.TokenV3(0.5), [0.55, 0.39, 0.04, 0.02], 0.86, [0.357143, 0.642857, 0, 0]),
    ("A", r.TokenV3(0.6), [0.5125, 0.3225, 0.16, 0.005], 0.955, [0.277778, 0.5, 0.222222, 0]),
    ("A", r.TokenV3(0.0), [0.175, 0.615, 0.14, 0.07], 0.665, [0, 0.940299, 0, 0.0597015]),
    (
        "A", r.Mentored(0.3), [0.357143, 0.385714, 0.171429, 0.0857143], 0.857143,
        [0, 0.6, 0.15, 0.25],
    ),
    (
        "A", r.Lenient(0.7), [0.357143, 0.385714, 0.178571, 0.0785714], 0.857143,
        [0, 0.6, 0.2, 0.2],
    ),
    (
        "B", r.Lossless(), [0.20, 0.45, 0.05, 0.10, 0.20], 0.65,
        [0, 0.285714, 0, 0.142857, 0.571429],
    ),
    (
        "B", r.TokenV1(0.0), [0.20, 0.45, 0.05, 0.10, 0.20], 0.65,
        [0, 0.285714, 0, 0.142857, 0.571429],
    ),
    (
        "B", r.TokenV1(0.12), [0.45, 0.4625, 0.0125, 0.025, 0.05], 0.7875,
        [0.235294, 0.529412, 0, 0, 0.235294],
    ),
    (
        "B", r.TokenV2(0.3), [0.45, 0.4625, 0.0125, 0.025, 0.05], 0.7875,
        [0.235294, 0.529412, 0, 0, 0.235294],
    ),
    (
        "B", r.TokenV3(0.6), [0.45, 0.4625, 0.0125, 0.025, 0.05], 0.7875,
        [0.235294, 0.529412, 0, 0, 0.235294],
    ),
    (
        "B", r.TokenV1(0.3), [0.41, 0.3725, 0.2025, 0.005, 0.01], 0.955,
        [0.222222, 0.5, 0.0555556, 0, 0.222222],
    ),
    (
        "B", r.TokenV2(0.2), [0.13, 0.6425, 0.0325, 0.065, 0.13], 0.5625,
        [0, 0.668571, 0, 0.0342857, 0.297143],
    ),
    (
        "B", r.TokenV3(0.0), [0.13, 0.6425, 0.0325, 0.065, 0.13], 0.5625,
        [0, 0.668571, 0, 0.0342857, 0.297143],
    ),
    (
        "B", r.TokenV3(0.8), [0.44, 0.44, 0.01, 0.07, 0.04], 0.81,
        [0.210526, 0.473684, 0, 0.105263, 0.210526],
    ),
    (
        "B", r.Mentored(0.3), [0.285714, 0.385714, 0.0714286, 0.0857143, 0.171429], 0.757143,
        [0, 0.147059, 0, 0.147059, 0.705882],
    ),
    ("B", r.Mentored(0.6), [0.4, 0.35, 0.125, 0.05, 0.075], 0.925, [0, 0, 0, 0, 1]),
    (
        "B", r.Lenient(0.7), [0.285714, 0.419388, 0.0714286, 0.0846939, 0.138776], 0.757143,
        [0, 0.285714, 0, 0.142857, 0.571429],
    ),
    (
        "B", r.Lenient(0.4), [0.4, 0.371429, 0.125, 0.0607143, 0.0428571], 0.925,
        [0, 0.285714, 0, 0.142857, 0.571429],
    ),
    ("C", r.Lossless(), [0, 1, 0, 0], 0.30, [0, 1, 0, 0]),
    *(
        ("C", rule, [0, 1, 0, 0], 0.30, [0, 1, 0, 0])
        for rule in (
            r.TokenV2(0), r.TokenV2(0.5), r.TokenV2(0.99), r.TokenV3(0), r.TokenV3(0.5),
            r.TokenV3(0.99), r.Mentored(0), r.Mentored(0.3), r.Mentored(0.9), r.Lenient(0.5),
        )
    ),
    ("C", r.TokenV1(0.6), [0.45, 0.55, 0, 0], 0.75, [0, 1, 0, 0]),
    ("C", r.TokenV1(0.88), [0.45, 0.4, 0.15, 0], 0.9, [0, 1, 0, 0]),
]  # fmt: skip

# acceptance at these alphas; it is not monotone for the token rules
ALPHAS = (-1, 0, 0.1, 0.22, 0.3, 0.5, 0.6, 0.8, 1)
NOT_MONOTONE = [
    ("A", r.TokenV1, (0.75, 0.875, 0.875, 0.86, 0.86, 1, 1, 1, 1)),
    ("A", r.TokenV2, (0.75, 0.665, 0.665, 0.86, 0.955, 1, 1, 1, 1)),
    ("A", r.TokenV3, (0.75, 0.665, 0.665, 0.665, 0.665, 0.86, 0.955, 1, 1)),
    ("B", r.TokenV2, (0.65, 0.5625, 0.5625, 0.5625, 0.7875, 1, 1, 1, 1)),
    ("B", r.TokenV3, (0.65, 0.5625, 0.5625, 0.5625, 0.5625, 0.5625, 0.7875, 0.81, 1)),
]


def near(values, tolerance: float = 6e-6):
    return pytest.approx(list(values), abs=tolerance)


def test_the_fixture_rows_have_the_stated_distances() -> None:
    """Total variation and the mass that two samples share are those of the table."""
    expected = {"A": (0.25, 0.295), "B": (0.35, 0.2525), "C": (0.70, 0.30)}
    for name, (distance, match) in expected.items():
        q, p = PAIRS[name]
        assert pytest.approx(distance, abs=1e-12) == float(total_variation(p, q))
        assert pytest.approx(match, abs=1e-12) == float((p * q).sum())


@pytest.mark.parametrize(("name", "rule", "law", "kept", "rest"), LAWS, ids=str)
def test_a_rule_has_the_law_acceptance_and_residual_of_the_table(name, rule, law, kept, rest):
    """Target distribution, acceptance and residual are the stated numbers."""
    q, p = PAIRS[name]
    pi = rule.target_distribution(q, p)
    assert near(law) == pi.tolist()
    assert pytest.approx(kept, abs=6e-7) == float(acceptance(pi, q))
    assert near(rest) == residual(pi, q).tolist()


@pytest.mark.filterwarnings("ignore:Opt")
@pytest.mark.parametrize(("kind", "critical"), CRITICAL, ids=lambda x: getattr(x, "__name__", ""))
@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_a_binary_rule_switches_at_its_critical_alpha(kind, critical, name) -> None:
    """Just below the critical alpha the law is the target's, just above it the draft's."""
    q, p = PAIRS[name]
    at = critical["ABC".index(name)]
    low = 50.0 if at == math.inf else at - 0.01
    assert near(p.tolist(), 0) == kind(low).target_distribution(q, p).tolist()
    if at != math.inf:
        assert near(q.tolist(), 0) == kind(at + 0.01).target_distribution(q, p).tolist()


def test_diff_keeps_where_opt_defers() -> None:
    """In B at alpha 0.1 the distance makes the difference between the two rules."""
    q, p = PAIRS["B"]
    assert q.tolist() == r.Diff(0.1).target_distribution(q, p).tolist()
    assert p.tolist() == r.Opt(0.1).target_distribution(q, p).tolist()


@pytest.mark.parametrize(("name", "kind", "expected"), NOT_MONOTONE)
def test_acceptance_of_token_rules_is_not_monotone(name, kind, expected) -> None:
    """The counter-examples to "a larger alpha accepts more" hold."""
    q, p = PAIRS[name]
    found = [float(acceptance(kind(a).target_distribution(q, p), q)) for a in ALPHAS]
    assert near(expected, 1e-9) == found
    assert found != sorted(found)


HALF = (PAIRS["A"][0] ** 2, PAIRS["A"][1] ** 2)
SCALED_Q, SCALED_P = (row / row.sum() for row in HALF)
CONVENTION = [
    (r.Chow(0.45), SCALED_P.tolist(), 0.513481, [0, 0.814525, 0.134302, 0.0511732]),
    (
        r.TokenV2(0.22), [0.698521, 0.290607, 0.00869754, 0.00217439], 0.942379,
        [0.235849, 0.764151, 0, 0],
    ),
    (r.Opt(-0.17), SCALED_P.tolist(), 0.513481, [0, 0.814525, 0.134302, 0.0511732]),
]  # fmt: skip
WRONG = [
    (r.Chow(0.45), SCALED_Q.tolist()),
    (r.TokenV2(0.22), [0.149489, 0.730920, 0.0956730, 0.0239182]),
]


def test_the_scaled_rows_of_the_convention_fixture() -> None:
    """At temperature 1/2 the rows of A are those of the table."""
    assert near([0.684932, 0.246575, 0.0616438, 0.00684932]) == SCALED_Q.tolist()
    assert near([0.198413, 0.642857, 0.126984, 0.0317460]) == SCALED_P.tolist()
    assert pytest.approx(0.486519, abs=1e-6) == float(total_variation(SCALED_P, SCALED_Q))


@pytest.mark.parametrize(("rule", "law", "kept", "rest"), CONVENTION, ids=str)
def test_unscaled_rows_decide_and_scaled_rows_are_mixed(rule, law, kept, rest) -> None:
    """Criteria read temperature 1, the mixture and OPT's distance the scaled rows."""
    q, p = PAIRS["A"]
    pi = rule.target_distribution(q, p, draft_scaled=SCALED_Q, target_scaled=SCALED_P)
    assert near(law) == pi.tolist()
    assert pytest.approx(kept, abs=1e-6) == float(acceptance(pi, SCALED_Q))
    assert near(rest) == residual(pi, SCALED_Q).tolist()


@pytest.mark.parametrize(("rule", "wrong"), WRONG, ids=str)
def test_deciding_on_scaled_rows_is_visible(rule, wrong) -> None:
    """Mutation: with scaled criteria the fixture gives another law."""
    assert near(wrong) == rule.target_distribution(SCALED_Q, SCALED_P).tolist()
    right = next(law for fixture, law, *_ in CONVENTION if fixture == rule)
    assert near(right) != rule.target_distribution(SCALED_Q, SCALED_P).tolist()


def test_the_distance_of_opt_is_that_of_the_scaled_rows() -> None:
    """Mutation: with the unscaled distance OPT(-0.17) would keep the draft."""
    q, p = PAIRS["A"]
    unscaled = q.max() < p.max() + 0.17 * total_variation(p, q)
    scaled = q.max() < p.max() + 0.17 * total_variation(SCALED_P, SCALED_Q)
    assert (False, True) == (bool(unscaled), bool(scaled))


BAD = [
    (r.Chow, math.nan), (r.Chow, 1.5), (r.Diff, -1.5), (r.Opt, math.inf), (r.OptLog, -math.inf),
    (r.TokenV1, 2), (r.TokenV2, -2), (r.TokenV3, "0.3"), (r.TokenV3, True), (r.Lenient, 0),
    (r.Lenient, 1.1), (r.Ensemble, -0.1), (r.Ensemble, 1.1), (r.Mentored, 1), (r.Mentored, -0.1),
    (r.BiLDStar, math.inf), (r.ChowLog, None), (r.DiffLog, math.nan),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), BAD)
def test_a_parameter_out_of_range_is_refused(kind, value) -> None:
    """Infinite, missing or out-of-range parameters fail where the rule is built."""
    with pytest.raises(ConfigurationError, match=rf"{kind.__name__}\(.*must be a number"):
        kind(value)


def test_opt_warns_at_high_alpha() -> None:
    """OPT says that an over-confident draft costs quality."""
    with pytest.warns(UserWarning, match="over-confident"):
        r.Opt(0.5)


def test_rules_are_values() -> None:
    """Rules compare, hash, print, and survive their config."""
    for rule in (r.TokenV3(), r.Lossless(), r.Lenient(0.5), r.Ensemble(0.2), r.Diff(-1)):
        again = r.rule_from_config(rule.to_config())
        assert rule == again
        assert hash(rule) == hash(again)
        assert repr(rule) == repr(again)
    assert r.TokenV3(0.3) == r.TokenV3()
    assert {"type": "TokenV3", "alpha": 0.3} == r.TokenV3().to_config()
    with pytest.raises(ConfigurationError, match="one of BiLDStar"):
        r.rule_from_config({"type": "Nothing"})
    with pytest.raises(ConfigurationError, match="does not take"):
        r.rule_from_config({"type": "TokenV3", "beta": 1})
