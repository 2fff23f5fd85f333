"""A T5 pair for translating spelled-out numbers and dates from English to German.

The text is generated with num2words; both models are trained from scratch on the CPU. The
draft is a one-layer model, so it is often wrong where the large one is right.

    python benchmarks/t5_pair.py FOLDER [--minutes 4] [--threads 1]
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from num2words import num2words
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

MONTHS = (
    ("January", "Januar"), ("February", "Februar"), ("March", "März"), ("April", "April"),
    ("May", "Mai"), ("June", "Juni"), ("July", "Juli"), ("August", "August"),
    ("September", "September"), ("October", "Oktober"), ("November", "November"),
    ("December", "Dezember"),
)  # fmt: skip
SIZES = {
    "draft": {"d_model": 24, "d_kv": 6, "d_ff": 48, "num_layers": 1, "num_decoder_layers": 1},
    "target": {"d_model": 80, "d_kv": 20, "d_ff": 160, "num_layers": 2, "num_decoder_layers": 3},
}
BATCH = 32


@dataclass(frozen=True, slots=True)
class Phrase:
    """An English phrase and its German translation."""

    english: str
    german: str


def phrase(rng: random.Random) -> Phrase:
    """Return a random phrase: a number, an ordinal, a year or a date."""
    kind = rng.random()
    number = int(10 ** rng.uniform(0.5, 4))
    if kind < 0.35:
        return Phrase(_words(number), num2words(number, lang="de"))
    if kind < 0.55:
        small = number % 1_000 + 1
        return Phrase(_words(small, "ordinal"), "der " + num2words(small, lang="de", to="ordinal"))
    year, day, (month, monat) = rng.randint(1100, 2099), rng.randint(1, 28), rng.choice(MONTHS)
    spoken = _words(year, "year"), num2words(year, lang="de", to="year")
    if kind < 0.7:
        return Phrase(f"the year {spoken[0]}", f"das Jahr {spoken[1]}")
    place = _words(day, "ordinal"), num2words(day, lang="de", to="ordinal")
    return Phrase(f"the {place[0]} of {month} {spoken[0]}", f"der {place[1]} {monat} {spoken[1]}")


def phrases(count: int, seed: int, *, apart_from: frozenset[str] = frozenset()) -> list[Phrase]:
    """Return different phrases; those in `apart_from` are left out."""
    rng = random.Random(seed)
    found: dict[str, Phrase] = {}
    while len(found) < count:
        one = phrase(rng)
        if one.english not in apart_from:
            found.setdefault(one.english, one)
    return list(found.values())


def held_out(count: int, seed: int = 9) -> list[Phrase]:
    """Return phrases that the training text does not hold."""
    return phrases(count, seed, apart_from=frozenset(p.english for p in training_text()))


def training_text() -> list[Phrase]:
    """Return the phrases that the models are trained on."""
    return phrases(12_000, 1)


def _words(number: int, to: str = "cardinal") -> str:
    return str(num2words(number, to=to)).replace(",", "").replace(" and ", " ")


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer of 512 tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        model_max_length=256,
    )


def train(folder: Path, minutes: float, seed: int = 0) -> None:
    """Train both models and save them as `draft` and `target` in the folder."""
    data = training_text()
    tokenizer = make_tokenizer([p.english for p in data] + [p.german for p in data])
    for role, share in (("draft", 0.06), ("target", 0.94)):
        torch.manual_seed(seed)
        config = T5Config(
            vocab_size=512, num_heads=4, dropout_rate=0.0, feed_forward_proj="gated-gelu",
            tie_word_embeddings=False, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
            **SIZES[role],
        )  # fmt: skip
        model = T5ForConditionalGeneration(config)
        fit(model, tokenizer, data, minutes * share, role)
        model.generation_config = GenerationConfig(
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=1
        )
        model.save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)


def fit(model: Any, tokenizer: Any, data: list[Phrase], minutes: float, role: str) -> None:
    """Train for so much processor time, with a warm-up and a cosine that follows it."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    begun, step, rng = time.process_time(), 0, random.Random(3)
    size = sum(weight.numel() for weight in model.parameters())
    while (done := (time.process_time() - begun) / (60 * minutes)) < 1:
        rate = min(1.0, (step + 1) / 100) * 0.5 * (1 + torch.cos(torch.tensor(3.1416 * done)))
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * float(rate) + 1e-5
        loss = _loss(model, tokenizer, rng.sample(data, BATCH))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        if step % 100 == 0:
            print(f"{role} ({size:,} parameters) step {step} loss {loss.item():.4f}", flush=True)


def _loss(model: Any, tokenizer: Any, batch: list[Phrase]) -> torch.Tensor:
    source = tokenizer([p.english for p in batch], padding=True, return_tensors="pt")
    labels = tokenizer([p.german + "</s>" for p in batch], padding=True, return_tensors="pt")
    wanted = labels.input_ids.masked_fill(labels.attention_mask == 0, -100)
    loss: torch.Tensor = model(
        input_ids=source.input_ids, attention_mask=source.attention_mask, labels=wanted
    ).loss
    return loss


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options.folder, options.minutes)
