"""Draft steps that are left out: only where no draft could change the token, and never a score."""

from __future__ import annotations

import warnings

import pytest
import torch

from cascadellm.local import rules as r
from cascadellm.local.decode import Decoder
from cascadellm.local.rule_laws import point_mass
from cascadellm.local.streams import GreedyChoices
from tests.statistics.spec_toys import (
    Branches,
    Pair,
    Table,
    TableLane,
    distance,
    every_branch,
    random_rows,
    shaper,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    RULES = [
        r.Lossless(), r.Chow(0.3), r.Diff(-0.1), r.Diff(0.1), r.Opt(-0.2), r.Opt(0.2),
        r.ChowLog(0.5), r.DiffLog(0.1), r.OptLog(0.1), r.BiLDStar(0.4), r.BiLDStar(1.5),
        r.TokenV1(-0.3), r.TokenV1(0.2), r.TokenV2(0.0), r.TokenV2(0.4), r.TokenV3(0.0),
        r.TokenV3(0.3), r.TokenV3(0.8), r.Lenient(0.4), r.Ensemble(0.8), r.Ensemble(0.3),
        r.Mentored(0.5),
    ]  # fmt: skip
SAVING = ("Diff(alpha=-0.1)", "Opt(alpha=-0.2)", "BiLDStar", "TokenV1(alpha=-0.3)", "TokenV2",
          "TokenV3", "Lenient", "Ensemble(weight=0.8)", "Lossless", "Mentored")  # fmt: skip


def drafts(vocab: int) -> torch.Tensor:
    """Return many draft rows: flat, peaked, and certain of each token."""
    rows, more = random_rows(60, vocab, seed=3)
    certain = torch.eye(vocab, dtype=torch.float64)
    return torch.cat((rows, more, certain, 0.99 * certain + 0.01 / vocab))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_draft_that_is_ignored_could_not_have_changed_the_token(rule) -> None:
    """Where a rule says so, its greedy law is the target's token for every draft row."""
    form, ignored = rule.greedy_form, 0
    q = drafts(4)
    _, targets = random_rows(150, 4, seed=9)
    certain = 0.997 * torch.eye(4, dtype=torch.float64) + 0.00075
    for row in torch.cat((targets, certain)):
        if not form.ignores_draft(row[None]):
            continue
        ignored += 1
        p = row.expand_as(q)
        hot_q, hot_p = point_mass(q), point_mass(p)
        pi = form.target_distribution(q, p, draft_scaled=hot_q, target_scaled=hot_p)
        assert torch.equal(pi, hot_p)
    assert bool(ignored) == str(rule).startswith(SAVING)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_greedy_loop_writes_pi_whether_or_not_steps_are_left_out(rule) -> None:
    """Eight tokens on each of twelve pairs are pi's, for gamma 1, 2, 3 and 5."""
    for seed in range(12):
        pair = Pair(rule, 0, Table(seed, peak=2.5), Table(seed + 50, peak=2.5))
        ((expected, _),) = pair.product(8).items()
        for gamma in (1, 2, 3, 5):
            ((found, _),) = pair.loop_law(8, gamma).items()
            assert expected == found


class Accepting(Branches):
    """Accepts every draft that can be accepted."""

    def accept(self, ratios: torch.Tensor) -> int:
        return len(ratios)


def rounds(rule, gammas, temperature: float = 0.0):
    draft, target = Table(4, peak=2.5), Table(4, peak=2.6)
    choices = Accepting([]) if temperature else GreedyChoices()
    decoder = Decoder(
        TableLane(draft), TableLane(target), rule, shaper(temperature), choices, prompt=(0,)
    )
    return decoder, [decoder.round(gamma) for gamma in gammas], draft


@pytest.mark.parametrize("rule", [r.Lossless(), r.TokenV3(0.3)], ids=str)
def test_a_row_that_was_left_out_comes_with_the_next_draft_step(rule) -> None:
    """Every token gets the draft's row at its place, late or not, without a further step."""
    decoder, found, draft = rounds(rule, (3, 1, 2, 4, 0, 0, 2, 3))
    rows = []
    for one in found:
        if one.late is not None:
            rows += list(one.late)
        rows += [row[0] for row in one.draft_rows[: len(one.tokens)]]
    late = decoder.late_rows()
    rows += [] if late is None else list(late)
    assert len(rows) == len(decoder.tokens) - 1
    for place, row in enumerate(rows, 1):
        assert torch.equal(row, draft.logits(decoder.tokens[:place]))
    assert any(one.late is not None for one in found)
    assert decoder.late_rows() is None
    assert sum(one.draft_steps for one in found) == sum(one.drafted for one in found)


def steps_and_law(rule, temperature: float = 1.0) -> tuple[float, float, float]:
    """Return the expected draft steps of a round, their least, and the law's distance to pi^3."""
    pair = Pair(rule, temperature, Table(4, peak=2.5), Table(5, peak=2.5))
    gamma, steps, least = 2, 0.0, 0.0

    def run(choices: Branches) -> tuple[int, ...]:
        found = pair.decoder(choices, (0,)).round(gamma)
        return found.draft_steps, found.tested, found.kept, len(found.tokens)

    for (made, tested, kept, written), weight in every_branch(run):
        assert kept <= tested <= made
        assert written - kept in (0, 1)
        steps += weight * made
        least += weight * gamma
    return steps, least, distance(pair.product(3), pair.loop_law(3, gamma))


@pytest.mark.parametrize("rule", [r.TokenV2(0.1), r.TokenV3(0.3), r.TokenV3(0.0)], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_above_temperature_0_the_step_is_left_out_where_both_tokens_are_the_mode(
    rule, temperature, monkeypatch
) -> None:
    """Fewer draft steps than with the step always made, and the same law to 1e-12."""
    steps, least, away = steps_and_law(rule, temperature)
    monkeypatch.setattr(type(rule), "keeps_mode_only", lambda self, p: False)
    more, _, also = steps_and_law(rule, temperature)
    assert max(away, also) < 1e-12
    assert least <= steps < more


def test_chow_makes_the_step_in_every_fully_accepted_round() -> None:
    """Its decision reads the draft's row, so nothing can be left out."""
    pair = Pair(r.Chow(0.5), 1.0, Table(4, peak=2.5), Table(5, peak=2.5))

    def run(choices: Branches) -> tuple[int, ...]:
        found = pair.decoder(choices, (0,)).round(2)
        return found.draft_steps, len(found.tokens)

    for (made, written), _ in every_branch(run):
        assert made == (3 if written == 3 else 2)


def test_mutation_leaving_the_step_out_for_any_token_is_noticed(monkeypatch) -> None:
    """If p's token stood whatever the draft says, the law would be another one."""
    assert steps_and_law(r.TokenV3(0.3))[2] < 1e-12
    monkeypatch.setattr(
        Decoder, "_bonus", lambda self, block, p_row, p, text: self._choices.residual(p[0])
    )
    assert steps_and_law(r.TokenV3(0.3))[2] > 0.003


def test_a_rule_is_computed_only_where_the_models_differ(monkeypatch) -> None:
    """At temperature 0 a block on which both agree needs no law; one that differs does."""
    computed = []
    right = Decoder._target
    monkeypatch.setattr(
        Decoder, "_target", lambda self, *rows: computed.append(len(rows[0])) or right(self, *rows)
    )
    rounds(r.TokenV3(0.3), (3, 1, 2))
    assert not computed
    assert len(Pair(r.TokenV3(0.3), 0, Table(1), Table(2)).loop_law(8, 3)) == 1
    assert computed


def test_mutation_models_taken_to_agree_where_they_differ_are_noticed(monkeypatch) -> None:
    """If every draft were taken for the target's own, the loop would no longer write pi."""
    monkeypatch.setattr(Decoder, "_agreed", lambda self, drafts, likeliest: True)
    with pytest.raises(AssertionError):
        test_the_greedy_loop_writes_pi_whether_or_not_steps_are_left_out(r.TokenV3(0.3))


def test_mutation_a_rule_that_ignores_too_much_is_noticed(monkeypatch) -> None:
    """If V3 always left the draft out, the loop would no longer write pi."""
    monkeypatch.setattr(r.TokenV3, "ignores_draft", lambda self, p: True)
    with pytest.raises(AssertionError):
        test_the_greedy_loop_writes_pi_whether_or_not_steps_are_left_out(r.TokenV3(0.8))
    with pytest.raises(AssertionError):
        test_a_draft_that_is_ignored_could_not_have_changed_the_token(r.TokenV3(0.8))
