"""From token ids to an answer: text that is safe to show, stop strings, parts, who wrote what."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cascadellm.answer import Answer, Piece, TokenScore, Usage
from cascadellm.local.detokenize import TokenTable
from cascadellm.local.sections import Sections, StopStrings, TagSections
from cascadellm.local.writer import PartWriter

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
        self._writer = PartWriter()
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
        count, last = since, min(len(self._ends), len(scores))
        place = self._ends[since - 1] if since else 0
        while count < last and max(self._ends[count], place + 1) <= self._writer.written:
            place, count = self._ends[count], count + 1
        return self._scored(slice(since, count), scores) if count > since else ()

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
        return self._scored(slice(0, len(scores)), scores)

    def _scored(self, which: slice, scores: Sequence[RowScore]) -> tuple[TokenScore, ...]:
        text = self._table.text
        start = self._ends[which.start - 1] if which.start else 0
        parts = self._writer.parts(self._ends[which], start)
        return tuple(
            TokenScore(
                text(token_id),
                score.logprob,
                tuple((text(other), logprob) for other, logprob in score.top),
                score.entropy,
                "other" if token_id in self._table.hidden else part,
            )
            for token_id, score, part in zip(
                self.token_ids[which], scores[which], parts, strict=True
            )
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
