"""Faults planted in rules and loop: each must turn a named check of these rooms red."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cascadellm.local import rule_laws
from cascadellm.local import rules as r
from cascadellm.local.decode import Decoder
from cascadellm.local.verify import residual
from tests.statistics import (
    test_spec_endpoints as ends,
)
from tests.statistics import (
    test_spec_fixtures as fixtures,
)
from tests.statistics import (
    test_spec_law as law,
)
from tests.statistics import (
    test_spec_loop as loop,
)
from tests.statistics.spec_toys import Pair, distance

V3 = r.TokenV3(0.5)
BINARY = [kind for kind, _ in fixtures.CRITICAL]
TOKEN = [r.TokenV1, r.TokenV2, r.TokenV3]


def red(check: Callable[..., None], *arguments: Any) -> None:
    """Assert that a check fails."""
    with pytest.raises(AssertionError):
        check(*arguments)


def v3_on_a(alpha: float) -> tuple[Any, ...]:
    """Return the fixture of V3 on the first pair of rows."""
    return next(row for row in fixtures.LAWS if row[:2] == ("A", r.TokenV3(alpha)))


def bonus_of_target(self, block, p_row, scaled_p, text):
    return self._choices.residual(scaled_p[0])


def bonus_of_draft(self, block, p_row, scaled_p, text):
    self._propose(block, text)


@pytest.mark.parametrize("wrong", [bonus_of_target, bonus_of_draft])
def test_a_bonus_of_p_or_q(wrong, monkeypatch) -> None:
    """The law misses pi, and it depends on gamma."""
    monkeypatch.setattr(Decoder, "_bonus", wrong)
    red(loop.test_the_loop_has_the_law_of_the_rule, V3, False)
    pair = Pair(V3)
    assert distance(pair.loop_law(3, 1), pair.loop_law(3, 2)) > 0.02


def test_the_third_execution_in_the_loop(monkeypatch) -> None:
    """Keeping v in A, else the exact p/q test, is another law."""

    def target(self, q_rows, p_rows, q, p):
        self._kept = self._rule.keeps(q_rows.softmax(-1), p_rows.softmax(-1))
        return p

    def accept(self, drafts, p, q):
        at = torch.tensor(drafts).unsqueeze(-1)
        ratios = torch.where(self._kept.gather(-1, at), 1.0, p.gather(-1, at) / q.gather(-1, at))
        count = self._choices.accept(ratios.squeeze(-1))
        return count, None if count == len(drafts) else residual(p[count], q[count])

    monkeypatch.setattr(Decoder, "_target", target)
    monkeypatch.setattr(Decoder, "_accept", accept)
    red(loop.test_the_loop_has_the_law_of_the_rule, V3, False)


def test_a_residual_of_p_minus_q_in_verification(monkeypatch) -> None:
    """The law of a single step is no longer pi."""
    right = law.residual
    monkeypatch.setattr(law, "residual", lambda pi, q: right(law.scaled_pairs(1)[3], q))
    red(law.test_acceptance_and_residual_emit_the_target_distribution, V3, 1)


def test_eta_summed_over_the_rejected_tokens(monkeypatch) -> None:
    """The law does not sum to 1, and no fixture of a token rule holds."""

    def wrong(kept, q, p):
        return q * kept + (1 - (q * ~kept).sum(-1, keepdim=True)) * p

    monkeypatch.setattr(rule_laws, "keep_tokens", wrong)
    red(law.test_acceptance_and_residual_emit_the_target_distribution, V3, 1)
    red(fixtures.test_a_rule_has_the_law_acceptance_and_residual_of_the_table, *v3_on_a(0.5))


@pytest.mark.parametrize("kind", BINARY, ids=lambda kind: kind.__name__)
@pytest.mark.filterwarnings("ignore:Opt")
def test_a_flipped_binary_criterion(kind, monkeypatch) -> None:
    """The law is the target's on the wrong side of the critical alpha."""
    right = kind.defers
    monkeypatch.setattr(kind, "defers", lambda self, *rows: ~right(self, *rows))
    critical = dict(fixtures.CRITICAL)[kind]
    red(fixtures.test_a_binary_rule_switches_at_its_critical_alpha, kind, critical, "A")


@pytest.mark.parametrize("kind", TOKEN, ids=lambda kind: kind.__name__)
def test_a_flipped_token_criterion(kind, monkeypatch) -> None:
    """The draft's end of the rule is not the draft, and its lossless end not the target."""
    right = kind.keeps
    monkeypatch.setattr(kind, "keeps", lambda self, *rows: ~right(self, *rows))
    red(ends.test_the_other_end_is_the_drafts_row, kind(1), 1)
    red(ends.test_a_rule_that_claims_to_be_lossless_is_so_by_its_formula, kind(-1), 1)


@pytest.mark.parametrize("kind", [*BINARY[:4], *TOKEN], ids=lambda kind: kind.__name__)
def test_swapped_rows(kind, monkeypatch) -> None:
    """With q and p exchanged the fixtures of no rule hold."""
    right = kind.target_distribution

    def swapped(self, q, p, *, draft_scaled=None, target_scaled=None):
        return right(self, p, q, draft_scaled=target_scaled, target_scaled=draft_scaled)

    monkeypatch.setattr(kind, "target_distribution", swapped)
    rows = [row for row in fixtures.LAWS if isinstance(row[1], kind)]
    if rows:
        red(fixtures.test_a_rule_has_the_law_acceptance_and_residual_of_the_table, *rows[0])
    else:
        critical = dict(fixtures.CRITICAL)[kind]
        red(fixtures.test_a_binary_rule_switches_at_its_critical_alpha, kind, critical, "B")


def strict_chow(self, q, p, scaled_q, scaled_p):
    return q.amax(-1, keepdim=True) <= 1 - self.alpha


def strict_diff(self, q, p, scaled_q, scaled_p):
    return q.amax(-1, keepdim=True) <= p.amax(-1, keepdim=True) - self.alpha


TIES = [
    (r.Chow, "defers", strict_chow),
    (r.Diff, "defers", strict_diff),
    (r.TokenV1, "keeps", lambda self, q, p: q > p.amax(-1, keepdim=True) - self.alpha),
    (r.TokenV2, "keeps", lambda self, q, p: p > p.amax(-1, keepdim=True) - self.alpha),
    (r.TokenV3, "keeps", lambda self, q, p: p > (1 - self.alpha) * p.amax(-1, keepdim=True)),
]


@pytest.mark.parametrize(("kind", "name", "wrong"), TIES, ids=lambda x: getattr(x, "__name__", ""))
def test_ties_that_defer(kind, name, wrong, monkeypatch) -> None:
    """A one-hot draft under Chow(0), and criteria met exactly, would go to the large model."""
    monkeypatch.setattr(kind, name, wrong)
    red(law.test_ties_keep_the_draft)


def test_a_claim_to_be_lossless_at_zero(monkeypatch) -> None:
    """V3(0) taken for lossless misses its fixture."""
    monkeypatch.setattr(r.TokenV3, "lossless", property(lambda self: self.alpha <= 0))
    red(fixtures.test_a_rule_has_the_law_acceptance_and_residual_of_the_table, *v3_on_a(0.0))


def unlimited_beta() -> None:
    """Assert that mentored decoding is q itself where q <= p / (1 - alpha) everywhere."""
    q = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)
    p = torch.tensor([[0.3, 0.3, 0.4]], dtype=torch.float64)
    pi = r.Mentored(0.5).target_distribution(q, p)
    assert (pi - q).abs().max() < 1e-15


def test_a_capped_beta_of_mentored_decoding(monkeypatch) -> None:
    """With beta at most 1e6 a token that the draft excludes keeps 4e-7 of the mass."""
    unlimited_beta()
    right = rule_laws.mentored
    monkeypatch.setattr(
        rule_laws, "mentored", lambda q, p, alpha: right(q, p, alpha).maximum(p / 1e6)
    )
    red(unlimited_beta)
