"""Token ids to text, one by one, without ever splitting a character."""

from __future__ import annotations

import codecs
from functools import cache
from typing import Any, Protocol

__all__ = ["TextDecoder", "TokenTable"]

_BROKEN = "\ufffd"
# a character has at most four bytes; what is still broken after more is no character
_MOST_HELD = 6


class TextDecoder(Protocol):
    """Turns one sequence of token ids into text, as far as it is certain."""

    def feed(self, token_id: int) -> str:
        """Return the characters that this token completes."""

    def flush(self) -> str:
        """Return what is left when the sequence ends here."""


class TokenTable:
    """The texts of a tokenizer's tokens; made once per model, read by every call.

    Args:
        tokenizer: A transformers tokenizer.
        visible: Special tokens whose text matters to the reader (tags), kept in texts.

    Attributes:
        hidden: Ids of special tokens, which never appear in a text.
    """

    def __init__(self, tokenizer: Any, visible: tuple[str, ...] = ()) -> None:
        self.tokenizer = tokenizer
        self._byte_level = _is_byte_level(tokenizer)
        self._texts: dict[int, str] = {}
        self._bytes: dict[int, bytes] = {}
        self._added: dict[int, str] = {i: str(t) for i, t in tokenizer.added_tokens_decoder.items()}
        kept = {i for i, text in self._added.items() if text in visible}
        self.hidden = frozenset(tokenizer.all_special_ids) - kept

    def text(self, token_id: int) -> str:
        """Return the text of one token alone; an unfinished character shows as U+FFFD."""
        text = self._texts.get(token_id)
        if text is None:
            if self._byte_level:
                text = self.raw(token_id).decode("utf-8", "replace")
            else:
                text = self._piece(token_id).replace("\u2581", " ")
            self._texts[token_id] = text
        return text

    def raw(self, token_id: int) -> bytes:
        """Return the bytes of one token of a byte-level vocabulary."""
        found = self._bytes.get(token_id)
        if found is None:
            piece = self._piece(token_id)
            table = _byte_of_character()
            # added tokens stand as they are, the others are spelled in stand-in characters
            if token_id in self._added or not table.keys() >= set(piece):
                found = piece.encode()
            else:
                found = bytes(table[character] for character in piece)
            self._bytes[token_id] = found
        return found

    def id_of(self, text: str) -> int | None:
        """Return the id of the special token with exactly this text, or None."""
        for token_id, known in self._added.items():
            if known == text and token_id in self.hidden:
                return token_id
        return None

    def decoder(self) -> TextDecoder:
        """Return a decoder for one new sequence."""
        return _ByteDecoder(self) if self._byte_level else _WindowDecoder(self.tokenizer)

    def _piece(self, token_id: int) -> str:
        # models pad their vocabulary: ids beyond the tokenizer's have no text
        piece: str | None = self.tokenizer.convert_ids_to_tokens(token_id)
        return piece or ""


class _ByteDecoder:
    """Joins the bytes of byte-level tokens; a character appears when its last byte does."""

    def __init__(self, table: TokenTable) -> None:
        self._raw = table.raw
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def feed(self, token_id: int) -> str:
        return self._decode(self._raw(token_id))

    def flush(self) -> str:
        return self._decode(b"", True)


class _WindowDecoder:
    """Decodes the newest tokens with the ones before them as context.

    Vocabularies of other kinds decode a token differently at the start of a text, so
    the text of a token is what it adds to the text of its context.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0
        self._shown = ""

    def feed(self, token_id: int) -> str:
        self._ids.append(token_id)
        text = self._decode(self._ids)
        if text.endswith(_BROKEN) and len(self._ids) - self._context < _MOST_HELD:
            return ""
        return self._advance(text)

    def flush(self) -> str:
        return self._advance(self._decode(self._ids))

    def _advance(self, text: str) -> str:
        new = text[len(self._shown) :]
        self._ids = self._ids[self._context :]
        self._context = len(self._ids)
        self._shown = self._decode(self._ids)
        return new

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return type(getattr(backend, "decoder", None)).__name__ == "ByteLevel"


@cache
def _byte_of_character() -> dict[str, int]:
    """Return the byte that each printable stand-in of byte-level vocabularies means."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    table.update({chr(256 + rank): byte for rank, byte in enumerate(others)})
    return table
