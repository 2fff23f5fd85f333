"""The demo pair: greedy lossless speculation is the large model, alone and in a cascade."""

from __future__ import annotations

import pytest

from cascadellm import demo
from cascadellm.cascade import Cascade
from cascadellm.local import SpeculativeCascade, SpeculativePair, rules

pytestmark = pytest.mark.skipif(
    not (demo.path("large") / "model.safetensors").exists(), reason="no demo weights in the tree"
)


@pytest.fixture(scope="module")
def models():
    with demo.load("small", max_new_tokens=60) as small, demo.load("large") as large:
        yield small, large


@pytest.fixture(scope="module")
def asked(models):
    """Questions with the tokens that the large model writes by itself, in float32."""
    questions = [one.question for one in demo.questions(3, seed=21)]
    return [(ask, written(models[1].generate(ask, max_new_tokens=60))) for ask in questions]


def written(answer):
    return answer.text, answer.finish_reason, [token.token for token in answer.tokens]


@pytest.mark.parametrize("gamma", range(1, 9))
def test_greedy_lossless_is_the_large_demo_model(models, asked, gamma) -> None:
    """Token for token, with and without streaming, for gamma 1 to 8."""
    pair = SpeculativePair(*models, rules.Lossless(), gamma)
    for ask, expected in asked:
        assert expected == written(pair.generate(ask, max_new_tokens=60))
        *pieces, last = pair.stream(ask, max_new_tokens=60)
        assert expected == written(last.answer)
        assert expected[0] == "".join(piece.text for piece in [*pieces, last])


def test_greedy_lossless_in_a_cascade_is_the_large_demo_model(models, asked) -> None:
    """The folded boundary of a cascade answers as the large model does."""
    cascade = Cascade(list(models), SpeculativeCascade(rules.Lossless(), gamma=4))
    (unit,) = cascade.units
    assert "small+large" == unit.tier.label
    for ask, expected in asked:
        assert expected == written(unit.tier.model.generate(ask, max_new_tokens=60))


def test_the_small_model_writes_most_of_a_lenient_answer(models, asked) -> None:
    """A trained pair agrees: the draft's tokens are the larger part, and both sources show."""
    pair = SpeculativePair(*models, rules.TokenV3(0.9), gamma=4, names=("small", "large"))
    spoken = [pair.generate(ask, max_new_tokens=60) for ask, _ in asked]
    kept = sum(answer.speculation["accepted"] for answer in spoken)
    assert kept > sum(answer.usage.output_tokens for answer in spoken) / 2
    assert {"small", "large"} >= {name for answer in spoken for *_, name in answer.spans}
