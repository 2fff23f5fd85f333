"""Batches for training: tokenized conversations and pure recall, sorted into few shapes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from cascadellm.demo.train_text import conversation, render

Row = tuple[list[int], list[int]]
"""Token ids, and for each whether it is to be predicted (0 or 1)."""
Batch = tuple[Tensor, Tensor, Tensor]
"""Ids (batch, time), flat positions whose next token counts, and those next tokens."""
TOKENS = 2048
LENGTHS = (64, 128, 192, 256, 320, 384, 512, 640)
_FIRST = 9 + 256
# Below stand the special tokens and the single bytes: nothing that recall should be about.


class Writer:
    """Turns conversations into rows of token ids.

    Args:
        folder: A folder with tokenizer.json.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.size: int = self.tokenizer.get_vocab_size()

    def row(self, segments: list[tuple[str, bool]]) -> Row:
        """Tokenize the segments of one conversation."""
        ids: list[int] = []
        marks: list[int] = []
        coded = self.tokenizer.encode_batch([text for text, _ in segments])
        for piece, (_, own) in zip(coded, segments, strict=True):
            ids += piece.ids
            marks += [int(own)] * len(piece.ids)
        return ids, marks

    def pairs(self) -> list[tuple[int, int]]:
        """Pairs of tokens that are one word without and with a space before it."""
        vocabulary = self.tokenizer.get_vocab()
        return [
            (at, vocabulary["Ġ" + text])
            for text, at in vocabulary.items()
            if "Ġ" + text in vocabulary
        ]


def recall(rng: Random, size: int, ease: float) -> Row:
    """Write random tokens some of which can be told from what stood before.

    Args:
        rng: Source of randomness.
        size: Size of the vocabulary.
        ease: 1 for the shortest lists, 0 for the longest.
    Returns: A row in which only tokens that are determined count.
    """
    kind = rng.randrange(4)
    most = 6 + int((1 - ease) * 26)
    if kind == 0:
        part = [rng.randrange(_FIRST, size) for _ in range(rng.randint(8, 2 * most))]
        return part * 3, [0] * (len(part) + 1) + [1] * (2 * len(part) - 1)
    count = rng.randint(4, most)
    gap = [rng.randrange(_FIRST, size) for _ in range(rng.randint(0, 4))]
    keys = [[k] for k in rng.sample(range(_FIRST, size), count)]
    lead: list[int] = []
    if kind == 2:
        first, second = (rng.sample(range(_FIRST, size), 2 + count // 3) for _ in range(2))
        link = rng.randrange(_FIRST, size)
        every = [[a, link, b] for a in first for b in second]
        keys = rng.sample(every, min(count, len(every)))
        lead = [rng.randrange(_FIRST, size)]
    values = [[rng.randrange(_FIRST, size) for _ in range(rng.choice((1, 1, 2)))] for _ in keys]
    stop = rng.randrange(_FIRST, size)
    ids: list[int] = []
    marks: list[int] = []
    for turn in range(3):
        for at in rng.sample(range(len(keys)), len(keys)):
            known = turn > 0
            ids += [*lead, *keys[at], *gap, *values[at], stop]
            marks += [0] * (len(lead) + len(keys[at])) + [int(known)] * len(gap)
            marks += [int(known)] * (len(values[at]) + 1)
    return ids, marks


def batch(rows: list[Row], length: int) -> Batch:
    """Pad rows to one length and list the positions that count."""
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    marks = torch.zeros(len(rows), length, dtype=torch.bool)
    for at, (tokens, own) in enumerate(rows):
        ids[at, : len(tokens)] = torch.tensor(tokens)
        marks[at, : len(own)] = torch.tensor(own, dtype=torch.bool)
    flat = marks.flatten().nonzero()[:, 0]
    return ids, flat - 1, ids.flatten()[flat]


def batches(
    writer: Writer,
    seed: int,
    part: int,
    share: float,
    ease: float,
    mixture: dict[str, int],
) -> Iterator[Batch]:
    """Yield the batches of one part of the endless training text.

    Args:
        writer: Tokenizer.
        seed: Seed of the whole text.
        part: Which part; parts are independent, so training resumes at any.
        share: Share of recall among the tokens, 0 to 1.
        ease: Of the recall.
        mixture: Relative share of each kind of conversation.
    """
    rng = Random(f"text|{seed}|{part}")
    rows: list[Row] = []
    while len(rows) < 400:
        if rng.random() < share:
            rows.append(recall(rng, writer.size, ease))
        else:
            rows.append(writer.row(render(*conversation(rng, mixture)[1])))
    groups: dict[int, list[Row]] = {}
    ready: list[Batch] = []
    for row in rows:
        length = next((n for n in LENGTHS if n >= len(row[0])), 0)
        if not length:
            continue
        group = groups.setdefault(length, [])
        group.append(row)
        if len(group) == max(1, TOKENS // length):
            ready.append(batch(group, length))
            groups[length] = []
    rng.shuffle(ready)
    yield from ready
