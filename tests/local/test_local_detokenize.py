"""Token ids to text: the same text as the tokenizer's own, and no character is ever split."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cascadellm.local.detokenize import TokenTable
from tests.local.tiny_models import tiny_tokenizer


def _spaced_tokenizer() -> Any:
    """Return a tokenizer that marks spaces with U+2581 and falls back to bytes."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "\u2581to", "be", "or"]
    backend = Tokenizer(models.BPE(vocab={w: n for n, w in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def _one_by_one(table: TokenTable, ids: list[int]) -> list[str]:
    decoder = table.decoder()
    return [*(decoder.feed(token_id) for token_id in ids), decoder.flush()]


def test_text_equals_the_tokenizers_own_for_any_bytes() -> None:
    """Joined pieces equal the tokenizer's decoding, for random and broken byte sequences."""
    tokenizer = tiny_tokenizer(("word", "\u65e5\u672c"))
    table = TokenTable(tokenizer)
    rng = random.Random(5)
    for _ in range(50):
        ids = [rng.randrange(len(tokenizer)) for _ in range(40)]
        assert tokenizer.decode(ids) == "".join(_one_by_one(table, ids))


def test_an_added_word_keeps_its_letters() -> None:
    """Added tokens stand as they are, also where their letters are stand-ins for bytes."""
    tokenizer = tiny_tokenizer(("\u00e9t\u00e9",))
    word = tokenizer.convert_tokens_to_ids("\u00e9t\u00e9")
    assert ["\u00e9t\u00e9", ""] == _one_by_one(TokenTable(tokenizer), [word])


@pytest.mark.parametrize("text", ["caf\u00e9 \u20ac5", "\U0001f600 ok", "\u65e5\u672c"])
def test_a_character_appears_with_its_last_byte(text: str) -> None:
    """No piece holds half a character."""
    tokenizer = tiny_tokenizer()
    pieces = _one_by_one(TokenTable(tokenizer), tokenizer(text).input_ids)
    assert text == "".join(pieces)
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_unfinished_character_shows_at_the_end_only() -> None:
    """A sequence that ends inside a character ends with U+FFFD, as the tokenizer says."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer("a\u20ac").input_ids[:-1]
    pieces = _one_by_one(TokenTable(tokenizer), ids)
    assert ["a", "", "", "\ufffd"] == pieces


def test_text_of_a_spaced_vocabulary_keeps_its_spaces() -> None:
    """Where decoding depends on the place in the text, pieces still join to the whole."""
    tokenizer = _spaced_tokenizer()
    table = TokenTable(tokenizer)
    names = ["\u2581to", "\u2581", "be", "\u2581to", "<0xE2>", "<0x82>", "<0xAC>", "or"]
    ids = tokenizer.convert_tokens_to_ids(names)
    pieces = _one_by_one(table, ids)
    assert "to be to\u20acor" == "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert " to" == table.text(ids[0])


def test_bytes_that_never_become_a_character_are_shown_after_a_while() -> None:
    """Endless broken bytes do not hold back the text for ever."""
    tokenizer = _spaced_tokenizer()
    broken = tokenizer.convert_tokens_to_ids(["<0xFF>"] * 20)
    decoder = TokenTable(tokenizer).decoder()
    assert any(decoder.feed(token_id) for token_id in broken)


def test_padding_ids_beyond_the_tokenizer_have_no_text() -> None:
    """Ids of a padded vocabulary decode to nothing instead of failing."""
    tokenizer = tiny_tokenizer()
    table = TokenTable(tokenizer)
    assert "" == table.text(len(tokenizer) + 7)
    assert "" == table.decoder().feed(len(tokenizer) + 7)


def test_special_tokens_are_hidden_and_tags_are_not() -> None:
    """Special tokens never appear; tags that the reader needs do, special or not."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    tag, end = tokenizer.convert_tokens_to_ids(["<think>", "<|im_end|>"])
    assert tag not in TokenTable(tokenizer, visible=("<think>",)).hidden
    assert tag in TokenTable(tokenizer).hidden
    assert end == TokenTable(tokenizer).id_of("<|im_end|>")
    assert TokenTable(tokenizer).id_of("<nothing>") is None
