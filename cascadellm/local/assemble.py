"""From token ids to an answer: text that is safe to show, stop strings, parts, who wrote what."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from cascadellm.answer import Answer, Part, Piece, TokenScore, Usage
from cascadellm.local.detokenize import TokenTable
from cascadellm.local.sections import Sections, StopStrings, TagSections

__all__ = ["RowScore", "TextAssembler"]


@dataclass(frozen=True, slots=True)
class RowScore:
    """Score of one written token.

    Attributes:
        logprob: Log-probability of the token. Unit: nats.
        entropy: Entropy of the row it was taken from. Unit: nats.
        top: Likeliest alternatives as (token id, logprob), best first.
    """

    logprob: float
    entropy: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class _Segment:
    """Characters of the raw text that share a part; `shown` = their place in the answer."""

    start: int
    end: int
    part: Part
    shown: int | None


class TextAssembler:
    """Builds one answer from token ids, fed one by one in order.

    The cut (end-of-turn token, stop string) falls on the same token however the ids were
    grouped by the decoder. Without stop strings nothing is turned into text before `delta`
    or `finish` asks for it.

    Args:
        table: Token texts of the model's tokenizer.
        eos_ids: Tokens that end the answer.
        stop: Strings that end the answer; a special token's text counts as that token.
        sections: How the text is split; by default everything is answer or `<think>` block.
        special: Whether the sections read special tokens too (a tokenizer's own template).
    """

    def __init__(
        self,
        table: TokenTable,
        *,
        eos_ids: Collection[int],
        stop: Sequence[str] = (),
        sections: Sections | None = None,
        special: bool = False,
    ) -> None:
        ending = {text: found for text in stop if (found := table.id_of(text)) is not None}
        self._table = table
        self._eos_ids = frozenset(eos_ids) | frozenset(ending.values())
        self._silent = frozenset() if special else table.hidden | self._eos_ids
        self._decoder = table.decoder()
        self._stop = StopStrings([text for text in stop if text not in ending])
        self._eager = len(ending) < len(stop)
        self._sections = sections if sections is not None else TagSections(tools=False)
        self._writer = _Writer()
        self._sources: list[str | None] = []
        self._ends: list[int] = []
        self._raw_length = 0
        self._sent = (0, 0)
        self.token_ids: list[int] = []
        self.ended = False

    def feed(self, token_id: int, source: str | None = None) -> bool:
        """Take the next token.

        Args:
            token_id: The token.
            source: Name of the model that wrote it, for `Answer.spans`.

        Returns:
            Whether the answer has ended; tokens after this one are not part of it.
        """
        if self.ended:
            return True
        self.token_ids.append(token_id)
        self._sources.append(source)
        self.ended = token_id in self._eos_ids
        if self._eager:
            self._read()
            self.ended = self.ended or self._stop.hit
        return self.ended

    def delta(self) -> Piece:
        """Return the text that has become certain since the last call."""
        self._read()
        return self._unsent()

    def certain(self, scores: Sequence[RowScore], since: int) -> tuple[TokenScore, ...]:
        """Return the scored tokens from `since` on whose part of the answer is certain."""
        place = count = 0
        for end in self._ends[: len(scores)]:
            if max(end, place + 1) > self._writer.written:
                break
            place, count = end, count + 1
        if count <= since:
            return ()
        return self._scored(self.token_ids[:count], scores[:count], self._ends[:count])[since:]

    def finish(
        self,
        *,
        input_tokens: int,
        scores: Sequence[RowScore] | None = None,
        speculation: Mapping[str, Any] | None = None,
    ) -> tuple[Answer, Piece]:
        """End the answer after the tokens fed so far.

        Args:
            input_tokens: Length of the prompt in tokens.
            scores: One score per token fed, or None.
            speculation: Counters of a token-level cascade.

        Returns:
            The answer, and the last piece: text not sent before, with the answer on it.
        """
        self._read()
        if not self._stop.hit:
            rest = self._decoder.flush()
            self._raw_length += len(rest)
            if self._ends and rest:
                self._ends[-1] = self._raw_length
            safe = self._stop.feed(rest) + self._stop.flush()
            self._writer.write(self._sections.feed(safe))
        self._writer.write(self._sections.finish())
        self._writer.close()
        answer = self._answer(input_tokens, scores, speculation)
        last = self._unsent()
        return answer, Piece(text=last.text, reasoning=last.reasoning, answer=answer)

    def _read(self) -> None:
        """Turn the tokens not read yet into text and pass on what is certain."""
        safe = []
        for token_id in self.token_ids[len(self._ends) :]:
            text = "" if token_id in self._silent else self._decoder.feed(token_id)
            self._raw_length += len(text)
            self._ends.append(self._raw_length)
            safe.append(self._stop.feed(text))
        self._writer.write(self._sections.feed("".join(safe)))

    def _unsent(self) -> Piece:
        text, reasoning = self._writer.text, self._writer.reasoning
        piece = Piece(text=text[self._sent[0] :], reasoning=reasoning[self._sent[1] :])
        self._sent = (len(text), len(reasoning))
        return piece

    def _answer(
        self,
        input_tokens: int,
        scores: Sequence[RowScore] | None,
        speculation: Mapping[str, Any] | None,
    ) -> Answer:
        calls = tuple(self._sections.calls)
        reason = "length" if not self.ended else "tool_calls" if calls else "stop"
        return Answer(
            text=self._writer.text,
            tokens=None if scores is None else self._token_scores(scores),
            tool_calls=calls,
            usage=Usage(input_tokens, len(self.token_ids)),
            finish_reason=reason,
            reasoning=self._writer.reasoning or None,
            spans=self._spans() if any(self._sources) else None,
            speculation=speculation,
        )

    def _token_scores(self, scores: Sequence[RowScore]) -> tuple[TokenScore, ...]:
        assert len(scores) == len(self.token_ids), (len(scores), len(self.token_ids))
        return self._scored(self.token_ids, scores, self._ends)

    def _scored(
        self, token_ids: Sequence[int], scores: Sequence[RowScore], ends: Sequence[int]
    ) -> tuple[TokenScore, ...]:
        text = self._table.text
        parts = self._writer.parts(ends)
        return tuple(
            TokenScore(
                text(token_id),
                score.logprob,
                tuple((text(other), logprob) for other, logprob in score.top),
                score.entropy,
                "other" if token_id in self._table.hidden else part,
            )
            for token_id, score, part in zip(token_ids, scores, parts, strict=True)
        )

    def _spans(self) -> tuple[tuple[int, int, str], ...]:
        spans: list[tuple[int, int, str]] = []
        ranges = self._writer.shown(self._ends)
        for (start, end), source in zip(ranges, self._sources, strict=True):
            if start == end or source is None:
                continue
            joins = spans and spans[-1][1:] == (start, source)
            spans.append((spans.pop()[0] if joins else start, end, source))
        return tuple(spans)


class _Writer:
    """Writes answer and reasoning, without the space around blocks, and remembers where."""

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

    def parts(self, ends: Sequence[int]) -> list[Part]:
        """Return the part of each token, given where its text ends in the raw text.

        A token without text of its own (the first bytes of a character) belongs where
        the next character does.
        """
        found: list[Part] = []
        for _, _, segments in self._walk(ends):
            touched = {segment.part for segment in segments}
            found.append(next((part for part in _RANK if part in touched), "other"))
        return found

    def shown(self, ends: Sequence[int]) -> list[tuple[int, int]]:
        """Return which characters of the answer each token wrote."""
        result = []
        for start, end, segments in self._walk(ends):
            spans = [
                (s.shown + max(start, s.start) - s.start, s.shown + min(end, s.end) - s.start)
                for s in segments
                if s.shown is not None and start < end
            ]
            result.append((spans[0][0], spans[-1][1]) if spans else (0, 0))
        return result

    def _walk(self, ends: Sequence[int]) -> Iterator[tuple[int, int, list[_Segment]]]:
        """Yield each token's range in the raw text with the segments that it touches."""
        first = start = 0
        for end in ends:
            last = max(end, start + 1)
            while first < len(self._segments) and self._segments[first].end <= start:
                first += 1
            touched = []
            for segment in islice(self._segments, first, None):
                if segment.start >= last:
                    break
                touched.append(segment)
            yield start, end, touched
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


_RANK: tuple[Part, ...] = ("arguments", "answer", "reasoning")
