"""The two texts of an answer, and which token wrote which part of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cascadellm.answer import Part

__all__ = ["PartWriter"]

_RANK: tuple[Part, ...] = ("arguments", "answer", "reasoning")


@dataclass(frozen=True, slots=True)
class _Segment:
    """Characters of the raw text that share a part; `shown` = their place in the answer."""

    start: int
    end: int
    part: Part
    shown: int | None


class PartWriter:
    """Writes answer and reasoning, without the space around blocks, and remembers where.

    Attributes:
        text: The answer so far.
        reasoning: The reasoning block so far.
    """

    def __init__(self) -> None:
        self.text = ""
        self.reasoning = ""
        self._segments: list[_Segment] = []
        self._at = 0
        self._part: Part = "answer"
        self._space = ""
        self._trim = False

    @property
    def written(self) -> int:
        """Length of the raw text whose part is certain."""
        return self._at

    def write(self, chunks: Sequence[tuple[Part, str]]) -> None:
        """Take chunks in the order of the raw text."""
        for part, text in chunks:
            if part != self._part:
                self._turn(part)
            if part in ("answer", "reasoning"):
                self._write_words(text)
            else:
                self._note(text, part)

    def close(self) -> None:
        """End the text: space at the end of an answer belongs to it."""
        if self._part == "answer" and not self._trim:
            self._show(self._space)
        else:
            self._note(self._space, "other")
        self._space = ""

    def parts(self, ends: Sequence[int], start: int = 0) -> list[Part]:
        """Return the part of each token, given where its text ends in the raw text.

        A token without text of its own (the first bytes of a character) belongs where
        the next character does.

        Args:
            ends: End of each token's text.
            start: Where the first token's text begins.
        """
        found: list[Part] = []
        for _, _, segments in self._walk(ends, start):
            touched = {segment.part for segment in segments}
            found.append(next((part for part in _RANK if part in touched), "other"))
        return found

    def shown(self, ends: Sequence[int]) -> list[tuple[int, int]]:
        """Return which characters of the answer each token wrote."""
        result = []
        for start, end, segments in self._walk(ends, 0):
            spans = [
                (s.shown + max(start, s.start) - s.start, s.shown + min(end, s.end) - s.start)
                for s in segments
                if s.shown is not None and start < end
            ]
            result.append((spans[0][0], spans[-1][1]) if spans else (0, 0))
        return result

    def _walk(self, ends: Sequence[int], start: int) -> Iterator[tuple[int, int, list[_Segment]]]:
        """Yield each token's range in the raw text with the segments that it touches."""
        first = bisect_right(self._segments, start, key=lambda segment: segment.end)
        for end in ends:
            last = max(end, start + 1)
            while first < len(self._segments) and self._segments[first].end <= start:
                first += 1
            behind = first
            while behind < len(self._segments) and self._segments[behind].start < last:
                behind += 1
            yield start, end, self._segments[first:behind]
            start = end

    def _turn(self, part: Part) -> None:
        """Leave a part: the space before a block and after it belongs to neither side."""
        self._note(self._space, "other")
        self._space = ""
        self._trim = True
        self._part = part

    def _write_words(self, text: str) -> None:
        if self._trim:
            words = text.lstrip()
            self._note(text[: len(text) - len(words)], "other")
            if not words:
                return
            self._trim, text = False, words
        text = self._space + text
        words = text.rstrip()
        self._show(words)
        self._space = text[len(words) :]

    def _show(self, text: str) -> None:
        if self._part == "reasoning":
            self.reasoning += text
            self._note(text, "reasoning")
        else:
            self._note(text, "answer", len(self.text))
            self.text += text

    def _note(self, text: str, part: Part, shown: int | None = None) -> None:
        if text:
            self._segments.append(_Segment(self._at, self._at + len(text), part, shown))
            self._at += len(text)
