"""Growing drafts: hold a stream back until its watcher stops it or commits to it.

Every performer that can stream uses one `Gate` per watched call, so that all of them take
the same decision after the same token.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, closing
from dataclasses import replace
from typing import Any, Generic, TypeVar

from cascadellm.answer import Answer, Piece, TokenScore, Usage
from cascadellm.effects import Call, Shown, Verdict, Watch

__all__ = ["STOPPED", "Gate", "Growing", "cut_short", "is_watched"]

_log = logging.getLogger("cascadellm")

STOPPED = "stopped"
"""`finish_reason` of a draft that was stopped; such a draft is never accepted."""

P = TypeVar("P")


def is_watched(source: Any) -> bool:
    """Return whether something relayed is a call with a watcher."""
    return isinstance(source, Call) and source.watch is not None


class Growing:
    """The answer so far, grown from a local model's pieces."""

    def __init__(self) -> None:
        self._text = ""
        self._reasoning = ""
        self._tokens: list[TokenScore] = []
        self._input_tokens: int | None = None

    def __call__(self, piece: Piece) -> Answer:
        """Add a piece; return the answer so far."""
        if piece.answer is not None:
            return piece.answer
        self._text += piece.text
        self._reasoning += piece.reasoning
        self._tokens += piece.tokens
        if piece.input_tokens is not None:
            self._input_tokens = piece.input_tokens
        usage = None
        if self._input_tokens is not None and self._tokens:
            usage = Usage(self._input_tokens, len(self._tokens))
        return Answer(
            self._text,
            tokens=tuple(self._tokens) or None,
            usage=usage,
            reasoning=self._reasoning or None,
        )


def cut_short(answer: Answer | None) -> Answer:
    """Return the part of an answer that was there when it was stopped."""
    return replace(answer if answer is not None else Answer(""), finish_reason=STOPPED)


class Gate(Generic[P]):
    """Passes the pieces of one watched call.

    Consume `through` (or `athrough`): nothing comes out before the watcher commits, then the
    held pieces and all later ones. When it stops the draft, the source is closed and the
    iteration ends. Afterwards `result()` is what the effect returns.

    Args:
        watch: The watcher; None = pass nothing, watch nothing.
        grow: From a piece to the whole answer so far; called once per piece, in order.
        lazy: Call `grow` only until the verdict, where it is costly; the finished answer is
            then handed to `result`.
    """

    def __init__(
        self, watch: Watch | None, grow: Callable[[P], Answer], *, lazy: bool = False
    ) -> None:
        self._lazy = lazy
        self._watch = watch
        self._grow = grow
        self._held: list[P] = []
        self.answer: Answer | None = None
        self.verdict: Verdict = "go_on" if watch is not None else "enough"

    @property
    def shown(self) -> bool:
        """Whether pieces have come out."""
        return self.verdict == "commit"

    def through(self, pieces: Iterator[P]) -> Iterator[P]:
        """Yield what may be shown."""
        with closing(_closable(pieces)):
            for piece in pieces:
                yield from self._pass(piece)
                if self.verdict == "stop":
                    return

    async def athrough(self, pieces: AsyncIterator[P]) -> AsyncGenerator[P]:
        """Async twin of `through`."""
        async with aclosing(_aclosable(pieces)):
            async for piece in pieces:
                for shown in self._pass(piece):
                    yield shown
                if self.verdict == "stop":
                    return

    def _pass(self, piece: P) -> list[P]:
        if self.verdict == "go_on" or not self._lazy:
            self.answer = self._grow(piece)
        if self.verdict == "commit":
            return [piece]
        if self.verdict == "go_on" and self.answer is not None:
            self.verdict = self._ask(self.answer)
        if self.verdict == "commit":
            held, self._held = [*self._held, piece], []
            return held
        if self.verdict == "go_on":
            self._held.append(piece)
        return []

    def _ask(self, answer: Answer) -> Verdict:
        assert self._watch is not None
        # a whole answer is decided by the policy's last moment, not shown by this one
        whole = answer.finish_reason is not None
        try:
            verdict = self._watch(answer)
        except Exception:
            # a watcher that breaks decides nothing; the finished answer is decided as ever
            _log.warning("the watcher of a growing draft failed", exc_info=True)
            return "enough"
        return "enough" if whole and verdict != "go_on" else verdict

    def result(self, whole: Answer | None = None) -> Answer | Shown:
        """Return the answer, `Shown` when it was committed to.

        Args:
            whole: The finished answer, where the caller builds a better one than `grow`.
        """
        if self.verdict == "stop":
            return cut_short(self.answer)
        answer = whole if whole is not None else self.answer
        assert answer is not None, "a stream must yield at least one piece"
        return Shown(answer) if self.shown else answer

    def answered(self, whole: Answer | None = None) -> Answer:
        """Return the answer for a caller to whom nothing is shown before its end."""
        result = self.result(whole)
        return result.answer if isinstance(result, Shown) else result


class _Closer:
    """Something to close where a source has nothing to close."""

    def close(self) -> None:
        """Do nothing."""

    async def aclose(self) -> None:
        """Do nothing."""


def _closable(pieces: Any) -> Any:
    return pieces if hasattr(pieces, "close") else _Closer()


def _aclosable(pieces: Any) -> Any:
    return pieces if hasattr(pieces, "aclose") else _Closer()
