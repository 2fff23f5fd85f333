"""Sampling: transformers' own processors, the right law, and a private random stream."""

from __future__ import annotations

import torch
from scipy import stats

from cascadellm.local import LocalModel, Settings
from cascadellm.local.sampling import choose, processors, random_stream


def test_processors_follow_the_order_of_generate(llama: LocalModel) -> None:
    """The chain is the one that `generate` builds from the same settings."""
    settings = Settings(temperature=0.7, top_k=9, top_p=0.8, repetition_penalty=1.3)
    config = llama.module.generation_config
    config = type(config)(
        **{**config.to_dict(), "do_sample": True, "temperature": 0.7, "top_k": 9, "top_p": 0.8},
    )
    config.repetition_penalty = 1.3
    theirs = llama.module._get_logits_processor(config, input_ids_seq_length=4)
    ours = processors(settings)
    assert [type(step).__name__ for step in theirs] == [type(step).__name__ for step in ours]
    rows = torch.randn((2, 50), generator=torch.Generator().manual_seed(1))
    seen = torch.tensor([[1, 2, 3, 4], [5, 5, 5, 6]])
    assert torch.equal(theirs(seen, rows.clone()), ours(seen, rows.clone()))


def test_greedy_uses_the_repetition_penalty_only() -> None:
    """Settings that cannot change the likeliest token add no work."""
    assert [] == processors(Settings(top_k=3, top_p=0.5, repetition_penalty=1.0))
    names = [type(s).__name__ for s in processors(Settings(repetition_penalty=1.1, top_k=3))]
    assert ["RepetitionPenaltyLogitsProcessor"] == names
    assert [] == processors(Settings(temperature=1.0, top_k=0, top_p=1.0))


def test_samples_follow_the_law_of_the_row() -> None:
    """Ten thousand draws fit softmax of the row; a law of half the temperature does not fit."""
    row = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5])
    stream = torch.Generator().manual_seed(11)
    drawn = choose(row.repeat(10_000, 1), [stream] * 10_000)
    counts = torch.bincount(drawn, minlength=5).numpy()
    law = torch.softmax(row.double(), 0).numpy()
    assert stats.chisquare(counts, law * 10_000).pvalue > 0.001
    sharp = torch.softmax(row.double() * 2, 0).numpy()
    assert stats.chisquare(counts, sharp * 10_000).pvalue < 1e-12


def test_a_seeded_stream_neither_reads_nor_moves_torchs_own() -> None:
    """Equal seeds draw equal tokens, whatever the global stream does, and leave it alone."""
    rows = torch.zeros((1, 100))
    settings = Settings(temperature=1.0, seed=5)

    def draws() -> list[int]:
        stream = random_stream(settings, "cpu")
        return [int(choose(rows, [stream])) for _ in range(20)]

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = draws()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert first == draws()
    fresh = {tuple(int(choose(rows, [s])) for _ in range(5)) for s in _streams(4)}
    assert 4 == len(fresh)


def _streams(count: int) -> list[torch.Generator | None]:
    return [random_stream(Settings(temperature=1.0), "cpu") for _ in range(count)]


def test_each_row_may_have_its_own_stream() -> None:
    """A greedy row stays greedy beside a sampled one."""
    rows = torch.zeros((2, 50))
    rows[0, 7] = 1.0
    stream = torch.Generator().manual_seed(3)
    assert 7 == int(choose(rows, [None, stream])[0])


def test_a_row_with_nan_has_no_token() -> None:
    """NaN is never chosen silently, and the row beside it is not touched."""
    rows = torch.tensor([[0.0, float("nan"), 1.0], [0.0, 3.0, 1.0]])
    assert [-1, 1] == choose(rows, [None, None]).tolist()
    assert -1 == choose(rows, [torch.Generator(), torch.Generator()]).tolist()[0]
