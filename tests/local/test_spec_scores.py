"""Token scores and candidates of a pair: those of pi, whichever draft steps were left out."""

from __future__ import annotations

import pytest
import torch

from cascadellm.local import LocalModel, SequentialPair, SpeculativePair, rules
from tests.local.spec_models import noisy_copy
from tests.local.tiny_models import tiny_llama, tiny_t5

ASKS = ["Hi", "What is 2 + 3?", "Tell me about rain."]
RULES = [
    rules.TokenV3(0.3), rules.TokenV2(0.2), rules.Lenient(0.6), rules.Ensemble(0.8),
    rules.BiLDStar(1.0), rules.Diff(0.1), rules.Chow(0.4),
]  # fmt: skip


@pytest.fixture(scope="module", params=["causal", "t5"])
def models(request, tmp_path_factory):
    base = tmp_path_factory.mktemp("scored")
    if request.param == "causal":
        large, noise = tiny_llama(base / "large", layers=2, width=64, seed=1), 0.02
    else:
        large, noise = tiny_t5(base / "large", layers=2, seed=2), 0.001
    found = [
        LocalModel(path, max_new_tokens=30)
        for path in (noisy_copy(large, base / "small", noise=noise), large)
    ]
    yield found
    for model in found:
        model.close()


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_scores_do_not_depend_on_gamma_or_on_steps_left_out(models, rule) -> None:
    """At temperature 0 tokens, log-probabilities and entropies are the sequential baseline's."""
    slow = SequentialPair(*models, rule)
    for ask in ASKS:
        own = slow.generate(ask)
        for gamma in (1, 3, 6):
            for limit in (7, 30):
                answer = SpeculativePair(*models, rule, gamma).generate(ask, max_new_tokens=limit)
                assert limit >= len(answer.tokens)
                for ours, theirs in zip(answer.tokens, own.tokens[:limit], strict=True):
                    assert theirs.token == ours.token
                    # Chow's baseline has no target row where it kept the draft
                    if not isinstance(rule, rules.Chow):
                        assert theirs.logprob == pytest.approx(ours.logprob, abs=2e-3)
                        assert theirs.entropy == pytest.approx(ours.entropy, abs=2e-3)


@pytest.mark.parametrize("rule", [rules.Lossless(), rules.TokenV3(0.3)], ids=str)
def test_every_token_shows_both_models_candidates(models, rule) -> None:
    """The draft's candidates are those of its own row, where its step came later too."""
    pair = SpeculativePair(*models, rule, 3)
    answer = pair.generate(ASKS[1])
    ids = models[1].encode(ASKS[1])
    entries = answer.speculation["tokens"]
    assert all(ours and theirs for _, _, ours, theirs in entries)
    if models[0].is_encoder_decoder:
        return
    decoder = pair._runner.decoder(models[1].prompt(ASKS[1]), pair.settings())
    while len(decoder.tokens) < ids.shape[1] + len(entries):
        decoder.round(3)
    with torch.inference_mode():
        rows = models[0].module(torch.tensor([decoder.tokens])).logits[0].softmax(-1)
    for place, (_, _, ours, _) in enumerate(entries):
        best = rows[ids.shape[1] + place - 1].topk(3).values.tolist()
        assert best == pytest.approx([prob for _, prob in ours], abs=2e-3)


def test_greedy_answers_of_a_token_rule_ask_the_draft_no_more_than_lossless_does(models) -> None:
    """With confident models the token after a block costs V3 no step but the last answer's."""
    lossless = SpeculativePair(*models, rules.Lossless(), 3).generate(ASKS[0], logprobs=False)
    found = SpeculativePair(*models, rules.TokenV3(0.0), 3).generate(ASKS[0], logprobs=False)
    assert lossless.text == found.text
    assert lossless.speculation["draft_steps"] == found.speculation["draft_steps"]
