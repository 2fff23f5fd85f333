"""Answers from two loaded models that decode together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Literal

from cascadellm.answer import Answer, Piece
from cascadellm.errors import ConfigurationError, OutOfMemoryError
from cascadellm.local.adaptive import AdaptiveGamma, FixedGamma, GammaChooser
from cascadellm.local.assemble import TextAssembler
from cascadellm.local.cache import new_cache
from cascadellm.local.chat import Prompt, check_room
from cascadellm.local.decode import Decoder, Round
from cascadellm.local.detokenize import TokenTable
from cascadellm.local.forward import decoder_start
from cascadellm.local.generate import CallerGoneError
from cascadellm.local.lanes import CausalLane, Seq2SeqLane
from cascadellm.local.load import free, out_of_memory
from cascadellm.local.model import LocalModel
from cascadellm.local.quick import QuickForward
from cascadellm.local.record import PairRecord
from cascadellm.local.rows import Shaper
from cascadellm.local.rule_base import Rule
from cascadellm.local.sequential import SequentialDecoder
from cascadellm.local.settings import Settings
from cascadellm.local.streams import choices_for
from cascadellm.local.vocabulary import check_pair, common_width

__all__ = ["PairRunner"]

Tools = Sequence[Mapping[str, Any]]
_QUICK_BLOCK = 32


def _never() -> bool:
    return False


class PairRunner:
    """Runs requests on two loaded models; arguments as in `SpeculativePair`."""

    def __init__(
        self,
        draft: LocalModel,
        target: LocalModel,
        rule: Rule,
        *,
        gamma: int | Literal["adaptive"],
        block: bool,
        names: tuple[str, str] | None,
        candidates: int,
    ) -> None:
        if not isinstance(candidates, int) or candidates < 0:
            raise ConfigurationError(f"candidates must be a whole number >= 0, got {candidates!r}")
        check_pair(draft, target)
        self.draft, self.target, self.rule, self.gamma = draft, target, rule, gamma
        self.names = names or (draft.model_name, target.model_name)
        self.context_window = min(draft.context_window, target.context_window)
        self.sequential = False
        self._block = block
        self._table = TokenTable(target.tokenizer)
        self._candidates = candidates
        self._width = common_width(draft, target)
        # always in one order, so that two pairs of the same models cannot wait for each other
        self._locks = [model.lock for model in sorted((draft, target), key=id)]
        self._chooser: GammaChooser = (
            AdaptiveGamma(lossless=rule.lossless) if gamma == "adaptive" else FixedGamma(gamma)
        )
        self._quick: list[QuickForward | None] = [None, None]
        with self._both():
            for model in (draft, target):
                # refuses a cache that cannot take drafts back
                new_cache(model.module, model.model_name)
        if target.is_encoder_decoder:
            self._start_token()
        else:
            with self._both():
                self._quick = [QuickForward.of(m.module, _QUICK_BLOCK) for m in (draft, target)]

    def close(self) -> None:
        """Close both models."""
        self._quick = [None, None]
        self.draft.close()
        self.target.close()

    def answer(
        self,
        messages: Any,
        tools: Tools | None,
        settings: Settings,
        cancelled: Callable[[], bool] = _never,
    ) -> Answer:
        """Answer once.

        Raises:
            CallerGoneError: `cancelled` said so before a round.
        """
        work = _Work(self, messages, tools, settings)
        while work.advance(cancelled):
            pass
        return work.finish().answer  # type: ignore[return-value]

    def pieces(
        self,
        messages: Any,
        tools: Tools | None,
        settings: Settings,
        cancelled: Callable[[], bool] = _never,
    ) -> Iterator[Piece]:
        """Write one answer and yield its text as tokens are accepted.

        Raises:
            CallerGoneError: `cancelled` said so before a round.
        """
        work = _Work(self, messages, tools, settings)
        while work.advance(cancelled):
            piece = work.delta()
            if piece.text or piece.reasoning or piece.tokens:
                yield piece
        yield work.finish()

    def prompt(self, messages: Any, tools: Tools | None, settings: Settings) -> Prompt:
        """Render and count a request as the target does; it must fit the draft's window too.

        Raises:
            CascadeError: As `LocalModel.prompt`.
        """
        prompt = self.target.prompt(messages, tools, settings)
        if self.draft.context_window < self.target.context_window:
            check_room(
                self.draft.model_name,
                prompt.length,
                settings.max_new_tokens,
                self.draft.context_window,
                shared=not self.target.is_encoder_decoder,
            )
        return prompt

    def decoder(self, prompt: Prompt, settings: Settings) -> Decoder | SequentialDecoder:
        """Return a fresh decoder for one answer."""
        device = self.target.device
        # one grammar masks the rows of both models, and is taken back with rejected drafts
        shaper = Shaper.of(self.target.processors(prompt, settings), greedy=settings.greedy)
        choices = choices_for(settings, device)
        lanes: tuple[Any, ...]
        if self.target.is_encoder_decoder:
            start = [self._start_token()]
            lanes = tuple(
                Seq2SeqLane(model.module, model.model_name, self._width, prompt.ids)
                for model in (self.draft, self.target)
            )
        else:
            start = prompt.ids[0].tolist()
            lanes = tuple(
                CausalLane(model.module, model.model_name, self._width, quick)
                for model, quick in zip((self.draft, self.target), self._quick, strict=True)
            )
        small, large = lanes
        if self.sequential:
            return SequentialDecoder(small, large, self.rule, shaper, choices, prompt=start)
        return Decoder(
            small, large, self.rule, shaper, choices, prompt=start,
            eos_ids=self.target.eos_ids, block=self._block,
        )  # fmt: skip

    def record(self, settings: Settings) -> PairRecord:
        """Return an empty record for one answer."""
        return PairRecord(
            self.rule,
            None if self.sequential else self.gamma,
            top=settings.top_logprobs if settings.logprobs else None,
            candidates=self._candidates if settings.logprobs else 0,
            text=self._table.text,
        )

    def run(self, decoder: Decoder | SequentialDecoder, room: int, *, first: bool) -> Round:
        """Run one round that emits at most `room` tokens.

        Raises:
            OutOfMemoryError: The device ran out of memory.
            ModelError: A model was closed, or returned NaN.
        """
        gamma = min(self._chooser.next(), room - 1)
        with self._ready():
            begun = time.perf_counter()
            found = decoder.round(gamma)
            total = time.perf_counter() - begun
        # the first round reads the prompt, which says nothing about the next ones
        if not first:
            self._chooser.record(
                tested=found.tested, kept=found.kept, steps=found.draft_steps,
                draft_s=found.draft_s, verify_s=max(0.0, total - found.draft_s),
                verified=0 if found.target_rows is None else len(found.target_rows),
            )  # fmt: skip
        return found

    def settle(self, decoder: Decoder | SequentialDecoder, record: PairRecord) -> None:
        """Bring the rows that the scores of the last tokens still need.

        Raises:
            OutOfMemoryError: As `run`.
        """
        if record.owes and isinstance(decoder, Decoder):
            with self._ready():
                record.settle(decoder.late_rows())

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """Hold both models, and say what to do where memory runs out."""
        try:
            with self._both():
                yield
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            free(self.target.device)
            raise OutOfMemoryError(
                f"{'+'.join(self.names)} ran out of memory on {self.target.device} while "
                "answering; shorten the prompt or lower max_new_tokens"
            ) from error

    @contextmanager
    def _both(self) -> Iterator[None]:
        with ExitStack() as stack:
            for lock in self._locks:
                stack.enter_context(lock)
            # a closed model raises here
            _ = self.draft.module, self.target.module
            yield

    def _start_token(self) -> int:
        ours, theirs = (decoder_start(model.module) for model in (self.draft, self.target))
        if ours != theirs:
            raise ConfigurationError(
                f"the decoders start with different tokens ({ours} and {theirs}); use two "
                "encoder-decoder models of one family"
            )
        return theirs


class _Work:
    """One answer being written."""

    def __init__(
        self, runner: PairRunner, messages: Any, tools: Tools | None, settings: Settings
    ) -> None:
        self._runner = runner
        self._prompt = runner.prompt(messages, tools, settings)
        self.assembler: TextAssembler = runner.target.assembler(self._prompt, settings)
        used = 0 if runner.target.is_encoder_decoder else self._prompt.length
        room = runner.context_window - used
        most = settings.max_new_tokens
        self._limit = room if most is None else min(most, room)
        self._record = runner.record(settings)
        self._decoder: Decoder | SequentialDecoder | None = None
        self._settings = settings
        self._given = 0

    def advance(self, cancelled: Callable[[], bool]) -> bool:
        """Run one round; False when the answer has ended."""
        if cancelled():
            raise CallerGoneError
        if self._decoder is None:
            self._decoder = self._runner.decoder(self._prompt, self._settings)
        written = self.assembler.token_ids
        found = self._runner.run(self._decoder, self._limit - len(written), first=not written)
        before = len(written)
        draft_name, target_name = self._runner.names
        for place, token in enumerate(found.tokens):
            if self.assembler.feed(token, draft_name if place < found.kept else target_name):
                break
        self._record.add(found, len(written) - before)
        return not self.assembler.ended and len(written) < self._limit

    def delta(self) -> Piece:
        """Return text, and scores of tokens, that have become certain since the last call."""
        piece = self.assembler.delta()
        if not self._settings.logprobs:
            return piece
        tokens = self.assembler.certain(self._record.scores, self._given)
        self._given += len(tokens)
        return replace(piece, tokens=tokens, input_tokens=self._prompt.length)

    def finish(self) -> Piece:
        """End the answer and return the last piece, which carries it."""
        if self._decoder is not None:
            self._runner.settle(self._decoder, self._record)
        scores, speculation = self._record.close(self.assembler.token_ids)
        return self.assembler.finish(
            input_tokens=self._prompt.length, scores=scores, speculation=speculation
        )[1]
