"""Token scores: exact log-probabilities and entropies, however the rows are grouped."""

from __future__ import annotations

import math

import pytest
import torch

from cascadellm.local.scoring import ScoreBuffer, ScoreList, score_rows


def _rows(count: int, vocab: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(count)
    rows = 4 * torch.randn((count, vocab), generator=stream)
    return rows, torch.randint(vocab, (count,), generator=stream)


def test_scores_equal_a_reference_in_double_precision() -> None:
    """Log-probability, entropy and alternatives agree with sums written out in float64."""
    rows, tokens = _rows(9)
    for row, token, score in zip(rows, tokens.tolist(), score_rows(rows, tokens, 4), strict=True):
        weights = [math.exp(x) for x in row.double().tolist()]
        law = [w / sum(weights) for w in weights]
        assert score.logprob == pytest.approx(math.log(law[token]), abs=1e-5)
        assert score.entropy == pytest.approx(-sum(x * math.log(x) for x in law), abs=1e-5)
        best = sorted(range(len(law)), key=lambda i: -law[i])[:4]
        assert best == [token_id for token_id, _ in score.top]
        assert score.top[0][1] == pytest.approx(math.log(max(law)), abs=1e-5)


def test_impossible_tokens_leave_entropy_finite() -> None:
    """A row with -inf entries, as constrained decoding makes them, has a finite entropy."""
    rows = torch.tensor([[0.0, 0.0, -math.inf]])
    (score,) = score_rows(rows, torch.tensor([1]), 2)
    assert math.log(2) == pytest.approx(score.entropy)
    assert -math.log(2) == pytest.approx(score.logprob)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("steps", [1, 15, 16, 17, 40])
def test_buffered_scores_equal_scores_at_once(batch: int, steps: int) -> None:
    """Grouping rows changes nothing, and each sequence gets its own scores in order."""
    rows, tokens = _rows(batch * steps)
    buffer = ScoreBuffer()
    lists = [ScoreList(top=3) for _ in range(batch)]
    for step in range(steps):
        part = slice(step * batch, (step + 1) * batch)
        buffer.add(rows[part], tokens[part], lists)
    buffer.flush()
    expected = score_rows(rows, tokens, 3)
    for place, scores in enumerate(lists):
        assert expected[place::batch] == scores.found


def test_each_sequence_keeps_as_many_alternatives_as_it_asked_for() -> None:
    """Sequences of one batch may differ in top_logprobs."""
    rows, tokens = _rows(2)
    lists = [ScoreList(top=1), ScoreList(top=4)]
    buffer = ScoreBuffer()
    buffer.add(rows, tokens, lists)
    buffer.flush()
    assert [1, 4] == [len(scores.found[0].top) for scores in lists]
    assert lists[0].found[0].top == score_rows(rows, tokens, 4)[0].top[:1]


def test_the_buffer_never_holds_more_than_a_few_rows() -> None:
    """Rows are dropped once they are scored, so no full-vocabulary history grows."""
    buffer, scores = ScoreBuffer(), ScoreList(top=0)
    rows, tokens = _rows(100)
    held = []
    for step in range(100):
        buffer.add(rows[step : step + 1], tokens[step : step + 1], [scores])
        held.append(len(buffer._rows))
    assert max(held) < 16
    buffer.flush()
    assert 100 == len(scores.found)


def test_no_alternatives_are_kept_when_none_are_asked_for() -> None:
    """top_logprobs=0 keeps the score itself; more than the vocabulary gives the vocabulary."""
    rows, tokens = _rows(2, vocab=5)
    assert () == score_rows(rows, tokens, 0)[0].top
    assert 5 == len(score_rows(rows, tokens, 9)[0].top)
