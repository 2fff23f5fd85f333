"""A pair under a grammar: the law of the two masked models, enumerated in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList

from cascadellm.errors import ModelError
from cascadellm.local import rules as r
from cascadellm.local.constrain import GrammarProcessor
from cascadellm.local.decode import Decoder
from cascadellm.local.rows import Shaper
from cascadellm.local.sequential import SequentialDecoder
from tests.statistics.spec_toys import (
    Branches,
    Law,
    Pair,
    Table,
    TableLane,
    distance,
    every_branch,
    shaper,
)

xgrammar = pytest.importorskip("xgrammar")

EXACT = 1e-12
RULES = [
    r.Lossless(), r.Chow(0.5), r.Diff(0.1), r.Opt(0.2), r.TokenV1(0.3), r.TokenV2(0.3),
    r.TokenV3(0.5), r.Lenient(0.6), r.Ensemble(0.4), r.Mentored(0.4), r.ChowLog(0.7),
]  # fmt: skip
# long enough that no text of these tests ends; the fourth token is the end token
PATTERN = "(a[bc]|b[ac]|ca){4,5}"
AFTER = {0: (1, 2), 1: (0, 2), 2: (0,)}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def grammar() -> Any:
    """The pattern, compiled over the letters a, b, c and an end token."""
    info = xgrammar.TokenizerInfo(["a", "b", "c", "<end>"], vocab_size=4, stop_token_ids=[3])
    return xgrammar.GrammarCompiler(info).compile_regex(PATTERN)


def permitted(prefix: Sequence[int]) -> tuple[int, ...]:
    """Return what the pattern lets follow a prefix, whose first token is the prompt."""
    written = prefix[1:]
    return AFTER[written[-1]] if len(written) % 2 else (0, 1, 2)


@dataclass
class MaskedPair(Pair):
    """Two tables under the pattern; the reference masks by hand, the loop by xgrammar."""

    grammar: Any = None
    draft: Table = field(default_factory=lambda: Table(1, vocab=4))
    target: Table = field(default_factory=lambda: Table(2, vocab=4))

    def shaper(self) -> Shaper:
        """Return a shaper with a fresh matcher."""
        plain = shaper(self.temperature)
        mask = GrammarProcessor(xgrammar.GrammarMatcher(self.grammar), 4, 1)
        return Shaper.of(LogitsProcessorList([mask, *plain.processors]), greedy=plain.greedy)

    def decoder(self, choices: Branches, prefix: Sequence[int]) -> Decoder:
        return Decoder(
            TableLane(self.draft), TableLane(self.target), self.rule, self.shaper(),
            choices, prompt=prefix, block=self.block,
        )  # fmt: skip

    def rows(self, prefix: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        forbidden = [token not in permitted(prefix) for token in range(4)]
        logits = [
            table.logits(prefix).masked_fill(torch.tensor(forbidden), float("-inf"))
            for table in (self.draft, self.target)
        ]
        shape = shaper(self.temperature)
        q, p = (shape.scaled(row[None], prefix, len(prefix))[0] for row in logits)
        rule = self.rule.greedy_form if self.temperature == 0 else self.rule
        pi = rule.target_distribution(
            logits[0].softmax(-1), logits[1].softmax(-1), draft_scaled=q, target_scaled=p
        )
        return q, p, pi


@pytest.mark.parametrize("block", [False, True], ids=["tokens", "blocks"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_masked_loop_has_the_law_of_the_masked_models(rule, block, grammar) -> None:
    """At several temperatures and gammas, three tokens follow the rule on the masked rows."""
    for temperature, gamma in ((1, 1), (1, 2), (0.5, 2), (0, 3)):
        pair = MaskedPair(rule, temperature, block=block, grammar=grammar)
        assert distance(pair.product(3), pair.loop_law(3, gamma)) < EXACT


def test_a_lossless_pair_is_the_masked_target(grammar) -> None:
    """With `Lossless` the law is the masked target's alone, and not the free target's."""
    pair = MaskedPair(r.Lossless(), grammar=grammar)
    law = pair.loop_law(3, 2)
    assert distance(pair.product(3, which=1), law) < EXACT
    free = Pair(r.Lossless(), draft=pair.draft, target=pair.target)
    assert distance(free.product(3, which=1), law) > 0.1


@pytest.mark.parametrize("rule", [r.Lossless(), r.TokenV3(0.5)], ids=str)
def test_the_matcher_is_rolled_back_with_rejected_drafts(rule, grammar) -> None:
    """Several rounds on one matcher keep the law, whatever was drafted and thrown away."""
    pair = MaskedPair(rule, grammar=grammar)

    def run(choices: Branches) -> tuple[int, ...]:
        decoder = pair.decoder(choices, (0,))
        while len(decoder.tokens) < 4:
            decoder.round(2)
        return tuple(decoder.tokens[:4])

    law: Law = {}
    for tokens, weight in every_branch(run):
        law[tokens] = law.get(tokens, 0.0) + weight
    assert distance(pair.product(3), law) < EXACT


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_masked_sequential_baseline_has_the_same_law(rule, grammar) -> None:
    """One token after the other under the mask is the same law."""
    pair = MaskedPair(rule, grammar=grammar)

    def run(choices: Branches) -> tuple[int, ...]:
        decoder = SequentialDecoder(
            TableLane(pair.draft), TableLane(pair.target), rule, pair.shaper(), choices, prompt=(0,)
        )
        for _ in range(2):
            decoder.round()
        return tuple(decoder.tokens)

    law: Law = {}
    for tokens, weight in every_branch(run):
        law[tokens] = law.get(tokens, 0.0) + weight
    assert distance(pair.product(2), law) < EXACT


def _unmasked_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Decoder._propose

    def wrong(self, block, text):
        mask = self._shaper.mask
        object.__setattr__(self._shaper, "mask", None)
        try:
            return right(self, block, text)
        finally:
            object.__setattr__(self._shaper, "mask", mask)

    monkeypatch.setattr(Decoder, "_propose", wrong)


class HandMask(GrammarProcessor):
    """The pattern without a matcher, so that it says nothing about texts outside of it."""

    def __init__(self) -> None:
        pass

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        prefix = input_ids[0].tolist()
        keep = permitted(prefix) if prefix[-1] != 3 else (0,)
        forbidden = [token not in keep for token in range(scores.shape[-1])]
        return scores.masked_fill(torch.tensor(forbidden), float("-inf"))


def test_mutation_only_the_target_is_masked(monkeypatch, grammar) -> None:
    """Drafts from the free law leave the grammar, which the matcher and the law both show."""
    pair = MaskedPair(r.Ensemble(0.4), grammar=grammar)
    assert distance(pair.product(1), pair.loop_law(1, 1)) < EXACT
    _unmasked_drafts(monkeypatch)
    for rule in (r.Ensemble(0.4), r.Lossless()):
        with pytest.raises(ModelError, match="does not fit the grammar"):
            MaskedPair(rule, grammar=grammar).loop_law(1, 1)
    monkeypatch.setattr(
        MaskedPair, "shaper", lambda self: Shaper(LogitsProcessorList(), False, HandMask())
    )
    assert distance(pair.product(1), pair.loop_law(1, 1)) > 0.01


def test_mutation_the_matcher_is_not_rolled_back(monkeypatch, grammar) -> None:
    """A matcher that keeps rejected drafts masks the wrong tokens."""
    pair = MaskedPair(r.TokenV3(0.5), grammar=grammar)

    def forward_only(self, text):
        for token in text[len(self._written) :]:
            self._matcher.accept_token(token)
            self._written.append(token)

    monkeypatch.setattr(GrammarProcessor, "_follow", forward_only)
    try:
        wrong = distance(pair.product(3), pair.loop_law(3, 2))
    except ModelError:
        wrong = 1.0
    assert wrong > 0.01


def test_mutation_rules_decide_on_free_rows(monkeypatch, grammar) -> None:
    """At temperature 0 a mixture of free rows would write what the grammar forbids."""
    pairs = [
        MaskedPair(r.Ensemble(0.5), 0, Table(seed, 4), Table(seed + 9, 4), grammar=grammar)
        for seed in range(4)
    ]
    assert max(distance(pair.product(1), pair.loop_law(1, 1)) for pair in pairs) < EXACT
    right = Decoder._target

    def free(self, q_rows, p_rows, q, p):
        lanes = (self._draft_lane, self._target_lane)
        rows = [lane._table.logits(self.tokens)[None] for lane in lanes]
        return right(self, *rows, q, p)

    monkeypatch.setattr(Decoder, "_target", free)
    assert max(distance(pair.product(1), pair.loop_law(1, 1)) for pair in pairs) > 0.5
