"""Scores: their values on known laws, missing inputs, monotony."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadellm import (
    Answer,
    ConfigurationError,
    Score,
    TokenScore,
    margin,
    mean_entropy,
    mean_logprob,
    min_logprob,
    quantile_logprob,
    sum_logprob,
)
from cascadellm.scores import SCORES, score_from_config

LOGPROBS = st.lists(st.floats(-20, 0, allow_nan=False), min_size=1, max_size=12)
OVER_LOGPROBS = [mean_logprob, sum_logprob, min_logprob, quantile_logprob(0.3)]


def answer(*logprobs: float) -> Answer:
    """Return an answer with these token log-probabilities."""
    return Answer("x", tokens=tuple(TokenScore("x", value) for value in logprobs))


def law(*probabilities: float) -> TokenScore:
    """Return a token with a full next-token law."""
    top = tuple((str(i), math.log(p)) for i, p in enumerate(probabilities))
    entropy = -sum(p * math.log(p) for p in probabilities)
    return TokenScore("0", top[0][1], top=top, entropy=entropy)


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (mean_logprob, -2.0),
        (sum_logprob, -6.0),
        (min_logprob, -3.0),
        (quantile_logprob(0), -3.0),
        (quantile_logprob(0.5), -2.0),
        (quantile_logprob(1), -1.0),
        (quantile_logprob(0.25), -2.5),
    ],
)
def test_score_when_logprobs_are_known(score: Score, expected: float) -> None:
    """Each score equals its definition on -1, -2, -3."""
    assert score(answer(-1, -2, -3)) == pytest.approx(expected)


def test_entropy_and_margin_when_the_law_is_known() -> None:
    """Entropy and margin equal their closed forms: ln 4 and 0, and a sharp law's."""
    uniform, sharp = law(0.25, 0.25, 0.25, 0.25), law(0.9, 0.1)
    both = Answer("x", tokens=(uniform, sharp))
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))

    assert mean_entropy(Answer("x", tokens=(uniform,))) == pytest.approx(-math.log(4))
    assert mean_entropy(both) == pytest.approx(-(math.log(4) + entropy) / 2)
    assert margin(both) == pytest.approx((0 + 0.8) / 2)


@pytest.mark.parametrize("score", [*SCORES.values(), quantile_logprob(0.5)])
@pytest.mark.parametrize(
    "given_", [Answer("x"), Answer("x", tokens=()), answer(math.nan), answer(-1, math.nan)]
)
def test_score_when_tokens_are_missing(score: Score, given_: Answer) -> None:
    """No tokens, or a token without a number, is missing: never a number."""
    assert None is score(given_)


@pytest.mark.parametrize("score", [mean_entropy, margin])
def test_score_when_alternatives_are_missing(score: Score) -> None:
    """One token without entropy or alternatives makes the score missing, not approximate."""
    assert None is score(Answer("x", tokens=(law(0.5, 0.5), TokenScore("x", -1))))


@pytest.mark.parametrize("score", OVER_LOGPROBS)
@given(logprobs=LOGPROBS, place=st.integers(0, 11), gain=st.floats(0, 5))
def test_score_when_a_token_gets_likelier(
    score: Score, logprobs: list[float], place: int, gain: float
) -> None:
    """No score falls when a token's log-probability rises."""
    better = list(logprobs)
    index = place % len(better)
    better[index] = min(0.0, better[index] + gain)
    before, after = score(answer(*logprobs)), score(answer(*better))

    assert before is not None
    assert after is not None
    assert after >= before - 1e-9


@given(logprobs=LOGPROBS)
def test_score_when_ordered_by_level(logprobs: list[float]) -> None:
    """Quantiles rise with their level, from the minimum to the maximum."""
    values = [quantile_logprob(level)(answer(*logprobs)) for level in (0, 0.25, 0.5, 0.75, 1)]

    assert values == sorted(v for v in values if v is not None)
    assert (min(logprobs), max(logprobs)) == (values[0], values[-1])


def test_score_when_logprobs_are_infinite() -> None:
    """A token of probability zero gives minus infinity, which no finite threshold accepts."""
    assert -math.inf == mean_logprob(answer(-1, -math.inf))
    assert -math.inf == quantile_logprob(0.5)(answer(-math.inf, -math.inf))


@pytest.mark.parametrize("level", [-0.1, 1.1, "half", None])
def test_quantile_when_the_level_is_out_of_range(level: Any) -> None:
    """A level outside [0, 1] is refused."""
    with pytest.raises(ConfigurationError, match=r"level in \[0, 1\]"):
        quantile_logprob(level)


@pytest.mark.parametrize("score", [*SCORES.values(), quantile_logprob(0.25)])
def test_score_when_written_and_read(score: Score) -> None:
    """A score survives its config, equal and with the same hash."""
    again = score_from_config(score.to_config())

    assert score == again
    assert hash(score) == hash(again)
    assert repr(score) == score.name


def test_score_when_the_config_is_unknown() -> None:
    """An unknown name lists the known ones."""
    with pytest.raises(ConfigurationError, match="unknown score 'confidence'; known: margin"):
        score_from_config({"type": "confidence"})


def test_score_when_compared() -> None:
    """Scores of one name and other functions differ; a score differs from everything else."""
    mine = Score("mine", lambda a: 1.0)

    assert mine != Score("mine", lambda a: 1.0)
    assert mine == mine
    assert mine != "mine"
    assert None is Score("nan", lambda a: math.nan)(Answer(""))


@pytest.mark.parametrize("score", [*SCORES.values()])
def test_score_when_its_range_is_stated(score: Score) -> None:
    """Each score names its unit and bounds that its values keep."""
    value = score(Answer("x", tokens=(law(0.6, 0.4), law(0.99, 0.01))))

    assert score.unit in ("nats", "probability")
    assert value is not None
    assert score.low <= value <= score.high
