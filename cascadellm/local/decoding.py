"""Answers being written on one model, one token each and step; they may join and leave."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import LogitsProcessorList

from cascadellm.answer import Piece
from cascadellm.errors import ModelError
from cascadellm.local.assemble import TextAssembler
from cascadellm.local.chat import Prompt
from cascadellm.local.forward import CausalSteps, Seq2SeqSteps, Steps, decoder_start
from cascadellm.local.load import Loaded
from cascadellm.local.sampling import choose, random_stream
from cascadellm.local.scoring import ScoreBuffer, ScoreList
from cascadellm.local.settings import Settings

__all__ = ["Decoding", "Job"]


class Job:
    """One answer on its way: its text, its random stream and its scores.

    Args:
        loaded: The model.
        prompt: Fits the context window.
        settings: How to decode.
        assembler: Fresh; collects the tokens.
        chain: Fresh; processes its rows.

    Attributes:
        done: Whether nothing more will be written.
        error: Why it was given up, or None.
        gone: Whether its caller has left.
        streamed: Whether its pieces carry scores, so that each token is scored at once.
    """

    def __init__(
        self,
        loaded: Loaded,
        prompt: Prompt,
        settings: Settings,
        assembler: TextAssembler,
        chain: LogitsProcessorList,
    ) -> None:
        used = 0 if loaded.is_encoder_decoder else prompt.length
        room = loaded.context_window - used
        most = settings.max_new_tokens
        self.prompt = prompt
        self.settings = settings
        self.assembler = assembler
        self.limit = room if most is None else min(most, room)
        self.stream = random_stream(settings, loaded.device)
        self.processors = chain
        self.scores = ScoreList(settings.top_logprobs) if settings.logprobs else None
        self.error: Exception | None = None
        self.done = False
        self.gone = False
        self.streamed = False
        self._given = 0
        start = prompt.ids
        if loaded.is_encoder_decoder:
            start = torch.tensor([[decoder_start(loaded.module)]])
        self._seen = _Seen(start, self.limit, loaded.device) if self.processors else None
        # the one who decodes feeds tokens while the caller's thread reads text
        self._reading = threading.Lock()
        self._read = 0

    @property
    def size(self) -> int:
        """Most tokens that its cache will hold."""
        return self.prompt.length + self.limit

    def scaled(self, row: torch.Tensor) -> torch.Tensor:
        """Return its row, shape (1, vocab), after the processors."""
        if self._seen is None:
            return row
        return self.processors(self._seen.ids, row)  # type: ignore[arg-type]

    @property
    def unread(self) -> bool:
        """Whether tokens were written since the last look at the text."""
        return len(self.assembler.token_ids) > self._read

    def feed(self, token: int) -> bool:
        """Take the next token; True when the answer ends with it."""
        if token < 0:
            self.fail(ModelError(_NAN))
            return True
        if self._seen is not None:
            self._seen.append(token)
        with self._reading:
            ended = self.assembler.feed(token)
        return ended or len(self.assembler.token_ids) >= self.limit

    def delta(self) -> Piece:
        """Return text, and scores of tokens, that have become certain since the last call."""
        with self._reading:
            self._read = len(self.assembler.token_ids)
            piece = self.assembler.delta()
            if self.scores is None:
                return piece
            tokens = self.assembler.certain(self.scores.found, self._given)
            self._given += len(tokens)
        return replace(piece, tokens=tokens, input_tokens=self.prompt.length)

    def finish(self) -> Piece:
        """Return the last piece, which carries the answer.

        Raises:
            Exception: What stopped it.
        """
        if self.error is not None:
            raise self.error
        scores = None if self.scores is None else self.scores.found
        return self.assembler.finish(input_tokens=self.prompt.length, scores=scores)[1]

    def fail(self, error: Exception) -> None:
        """Give the answer up."""
        self.error, self.done = error, True


class Decoding:
    """A batch of jobs on one model.

    Every job has its own random stream, processors and text; only the forward pass is shared.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._steps: Steps | None = None
        self._tokens: torch.Tensor | None = None
        self._buffer = ScoreBuffer()
        self.jobs: list[Job] = []

    @property
    def open(self) -> bool:
        """Whether jobs can be added now."""
        return self._steps is None or self._steps.open

    def advance(self, new: Sequence[Job] = ()) -> None:
        """Write one token in every job, after `new` ones have joined; drop those that end."""
        rows = self._rows(new)
        self._tokens = choose(self._scaled(rows), [job.stream for job in self.jobs])
        self._score(rows)
        tokens = self._tokens.tolist()
        ended = [job for job, token in zip(self.jobs, tokens, strict=True) if job.feed(token)]
        if ended:
            # an answer counts as done once its scores are complete
            self._buffer.flush()
            for job in ended:
                job.done = True
            self.drop()

    def drop(self) -> None:
        """Let go of jobs that are done or whose callers have left."""
        alive = [i for i, job in enumerate(self.jobs) if not (job.done or job.gone)]
        if len(alive) == len(self.jobs):
            return
        places = _closed_up(alive)
        self.jobs = [self.jobs[place] for place in places]
        if not places:
            self._steps = self._tokens = None
            return
        assert self._steps is not None
        assert self._tokens is not None
        self._steps.keep(places)
        self._tokens = self._tokens[torch.tensor(places, device=self._tokens.device)]

    def _rows(self, new: Sequence[Job]) -> torch.Tensor:
        """Return the next rows: of the running jobs first, then of the new ones."""
        rows = []
        if self._steps is not None and self._tokens is not None:
            rows.append(self._steps.step(self._tokens))
        left = list(new)
        while left:
            steps = self._fresh()
            count = _alike(left) if steps.open else len(left)
            group, left = left[:count], left[count:]
            rows.append(steps.start([job.prompt.ids for job in group]))
            self.jobs = [*self.jobs, *group]
            if self._steps is None:
                self._steps = steps
            else:
                self._steps.join(steps)
        return torch.cat(rows) if len(rows) > 1 else rows[0]

    def _scaled(self, rows: torch.Tensor) -> torch.Tensor:
        if not any(job.processors for job in self.jobs):
            return rows
        parts = [job.scaled(rows[i : i + 1]) for i, job in enumerate(self.jobs)]
        return torch.cat(parts)

    def _fresh(self) -> Any:
        module = self._loaded.module
        if self._loaded.is_encoder_decoder:
            return Seq2SeqSteps(module)
        return CausalSteps(module, self._loaded.quick)

    def _score(self, rows: torch.Tensor) -> None:
        assert self._tokens is not None
        wanted = [(i, job.scores) for i, job in enumerate(self.jobs) if job.scores is not None]
        if not wanted:
            return
        lists = [scores for _, scores in wanted]
        tokens = self._tokens.clamp(min=0)
        if len(wanted) < len(self.jobs):
            places = torch.tensor([place for place, _ in wanted], device=rows.device)
            rows, tokens = rows[places], tokens[places]
        self._buffer.add(rows, tokens, lists)
        if any(job.streamed for job in self.jobs):
            # whoever watches the draft decides by the token just written
            self._buffer.flush()


def _alike(jobs: Sequence[Job]) -> int:
    """Return how many of the first prompts are read together without much padding."""
    lengths = [job.prompt.length for job in jobs]
    shortest = longest = lengths[0]
    for count, length in enumerate(lengths):
        shortest, longest = min(shortest, length), max(longest, length)
        if longest > 1.5 * shortest + 8:
            return count
    return len(jobs)


def _closed_up(alive: Sequence[int]) -> list[int]:
    """Return the places in an order in which the last ones fill the gaps, so that few move."""
    count = len(alive)
    movers = iter([place for place in alive if place >= count])
    staying = set(alive)
    return [place if place in staying else next(movers) for place in range(count)]


class _Seen:
    """The tokens that a job's processors read: the prompt and what was written."""

    def __init__(self, start: torch.Tensor, room: int, device: torch.device) -> None:
        self._length = start.shape[1]
        self._all = torch.empty((1, self._length + room), dtype=torch.int64, device=device)
        self._all[:, : self._length] = start

    @property
    def ids(self) -> torch.Tensor:
        return self._all[:, : self._length]

    def append(self, token: int) -> None:
        self._all[0, self._length] = token
        self._length += 1


_NAN = (
    "the model returned NaN as a next-token score; load it with another dtype "
    "(dtype='float32' or 'bfloat16')"
)
