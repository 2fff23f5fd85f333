"""`compare`: distances with closed forms, and predictions that follow the formulas."""

from __future__ import annotations

import math

import pytest
import torch

from cascadellm.errors import ConfigurationError
from cascadellm.local import LocalModel, compare, difference, rules
from cascadellm.local.adaptive import AdaptiveGamma, FixedGamma, expected_tokens, predicted_gain
from cascadellm.local.difference import divergences
from tests.local.spec_models import noisy_copy
from tests.local.tiny_models import tiny_llama, tiny_t5


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    base = tmp_path_factory.mktemp("compare")
    large = LocalModel(tiny_llama(base / "large", layers=3, width=32, seed=1))
    yield LocalModel(noisy_copy(large.path, base / "small")), large
    large.close()


def test_divergences_have_their_closed_forms() -> None:
    """Total variation, KL and JS of two known rows; equal rows give 0, disjoint ones 1."""
    p = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], dtype=torch.float64)
    q = torch.tensor([[0.25, 0.25, 0.5], [0.2, 0.3, 0.5], [0.0, 1.0, 0.0]], dtype=torch.float64)
    distance, kl, js = divergences(q, p)
    assert pytest.approx([0.5, 0.0, 1.0]) == distance.tolist()
    assert [pytest.approx(math.log(2)), 0.0, math.inf] == kl.tolist()
    assert pytest.approx(math.log(2)) == float(js[2])


def test_a_model_compared_with_itself_agrees_everywhere(models) -> None:
    """Distances are 0, agreement and acceptance 1."""
    found = compare(models[1], models[1], ["Hi"], max_new_tokens=8)
    assert pytest.approx(0, abs=1e-6) == found.total_variation
    assert pytest.approx(0, abs=1e-6) == found.kl
    assert (1.0, 1.0) == (found.agreement, found.acceptance)
    assert found.best_gamma in found.speedup


def test_a_noisy_copy_is_somewhere_between(models) -> None:
    """At temperature 0 acceptance is agreement; a lenient rule accepts more at T = 1."""
    plain = compare(*models, ["Hi", "And you?"], max_new_tokens=12)
    assert plain.agreement == plain.acceptance
    assert 0 < plain.total_variation < 1
    strict = compare(*models, ["Hi"], temperature=1.0, max_new_tokens=12)
    loose = compare(
        *models, ["Hi"], temperature=1.0, max_new_tokens=12, rule=rules.Lenient(0.3), gammas=[2]
    )
    assert strict.acceptance == pytest.approx(1 - strict.total_variation, abs=1e-9)
    assert loose.acceptance > strict.acceptance
    assert {2} == set(loose.speedup)


def test_the_prediction_knows_which_steps_are_left_out(models, monkeypatch) -> None:
    """At temperature 0 V3(0) drafts what lossless drafts; above it less than Chow, which has none
    to spare.
    """
    extra: list[float] = []
    right = difference._extra_steps
    monkeypatch.setattr(
        difference, "_extra_steps", lambda *given: extra.append(right(*given)) or extra[-1]
    )
    for rule, temperature in (
        (rules.TokenV3(0.0), 0.0), (rules.TokenV3(0.9999), 0.0), (rules.Chow(0.3), 1.0),
        (rules.Lossless(), 1.0), (rules.TokenV3(0.0), 1.0),
    ):  # fmt: skip
        compare(*models, ["Hi"], rule=rule, temperature=temperature, max_new_tokens=8, gammas=[1])
    assert extra[0] == extra[3] == 0
    assert extra[1] > 0
    assert 1 == extra[2]
    assert 0 < extra[4] < 1


def test_an_encoder_decoder_pair_is_compared(tmp_path) -> None:
    """A T5 pair is measured like any other, and acceptance under V3 is in range."""
    large = LocalModel(tiny_t5(tmp_path / "large", seed=2))
    small = LocalModel(noisy_copy(large.path, tmp_path / "small", noise=0.001))
    found = compare(
        small, large, ["Hi", "And you?"], rule=rules.TokenV3(0.3), temperature=1.0,
        max_new_tokens=10, gammas=[1, 4],
    )  # fmt: skip
    assert 0 < found.total_variation < 1
    assert 0 < found.acceptance <= 1
    assert {1, 4} == set(found.speedup) == set(found.verify_s)
    assert min(found.speedup.values()) > 0


def test_the_predictions_are_those_of_the_formulas() -> None:
    """Expected tokens and gains at the published points of the tables."""
    assert pytest.approx(3.68928) == expected_tokens(0.8, 5)
    assert 4 == expected_tokens(1.0, 3)
    assert pytest.approx(3.09208, abs=1e-5) == predicted_gain(0.8, 8, 0.05, lossless=True)
    assert pytest.approx(3.07366, abs=1e-5) == predicted_gain(0.8, 8, 0.05, lossless=False)
    for rate, cost in ((0.5, 0.1), (0.8, 0.25)):
        gain = predicted_gain(rate, 1, cost, lossless=True)
        assert pytest.approx((1 + rate) / (1 + cost)) == gain


TABLE = [(0.5, 0.02, 4), (0.8, 0.02, 11), (0.8, 0.05, 8), (0.9, 0.10, 10), (0.9, 0.25, 6)]


@pytest.mark.parametrize(("rate", "cost", "best"), TABLE)
def test_adaptive_gamma_finds_the_best_gamma_of_the_table(rate, cost, best) -> None:
    """Fed with constant acceptance and cost, it chooses the table's optimum."""
    chooser = AdaptiveGamma(lossless=True)
    assert 5 == chooser.next()
    for turn in range(400):
        kept = 100 * rate
        chooser.record(
            tested=100, kept=int(kept), steps=10, draft_s=10 * cost, verify_s=1.0,
            verified=3 + turn % 3,
        )  # fmt: skip
    assert best == chooser.next()


def test_adaptive_gamma_drafts_little_where_nothing_is_accepted() -> None:
    """Without acceptance the shortest draft wins; a fixed gamma stays what it is."""
    chooser = AdaptiveGamma(lossless=False)
    for _ in range(100):
        chooser.record(tested=1, kept=0, steps=5, draft_s=0.5, verify_s=1.0, verified=6)
    assert 1 == chooser.next()
    fixed = FixedGamma(7)
    fixed.record(tested=1, kept=0, steps=5, draft_s=0.5, verify_s=1.0, verified=6)
    assert 7 == fixed.next()


def test_bad_arguments_are_refused(models) -> None:
    """No prompts, a bare string or a gamma of 0 are errors at once."""
    for prompts in ([], "Hi"):
        with pytest.raises(ConfigurationError, match="prompts must be a list"):
            compare(*models, prompts)
    with pytest.raises(ConfigurationError, match="gammas must be"):
        compare(*models, ["Hi"], gammas=[0])
