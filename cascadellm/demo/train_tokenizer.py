"""Train the tokenizer of the demo models and write its files."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from cascadellm.demo import facts, words
from cascadellm.demo.train_text import conversation, render

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKS = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<tools>",
    "</tools>",
)
_SPLIT = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_POOLS = (
    words.NAMES,
    words.PLACES,
    words.CAPITALS,
    words.RIVERS,
    words.JOBS,
    words.COLORS,
    words.PETS,
    words.ITEMS,
    words.OBJECTS,
    words.BOXES,
)


def build(folder: Path, size: int, seed: int = 1) -> None:
    """Train a byte-level BPE on generated text and save it with the chat template.

    Args:
        folder: Where the files go.
        size: Number of tokens.
        seed: Seed of the generated text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*SPECIAL, *MARKS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed), trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False) for text in MARKS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",  # noqa: S106  a mark, no secret
        pad_token="<|endoftext|>",  # noqa: S106
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    fast.chat_template = (Path(__file__).parent / "chat_template.jinja").read_text()
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    if not (folder / "chat_template.jinja").exists():
        shutil.copy(Path(__file__).parent / "chat_template.jinja", folder)


def _corpus(seed: int) -> list[str]:
    rng = Random(seed)
    texts = ["".join(text for text, _ in render(*conversation(rng)[1])) for _ in range(1500)]
    # Words of the pools must become single tokens, at the start of a line and after a space.
    pool = [word for words_ in _POOLS for word in words_]
    nouns = " ".join(facts.RELATIONS)
    return [*texts, *[f"{word}\n {word}" for word in pool for _ in range(60)], *[nouns] * 60]
