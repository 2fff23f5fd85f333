"""A padded batch of answers being written, one token per sequence and step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch

from cascadellm.local.assemble import RowScore, TextAssembler
from cascadellm.local.chat import Prompt
from cascadellm.local.forward import (
    CausalSteps,
    Seq2SeqSteps,
    Steps,
    decoder_start,
    left_pad,
    right_pad,
)
from cascadellm.local.load import Loaded
from cascadellm.local.sampling import choose, processors, random_stream
from cascadellm.local.scoring import ScoreBuffer
from cascadellm.local.settings import Settings

__all__ = ["Decoding"]


class Decoding:
    """A batch of prompts on one model; each sequence leaves the batch when its answer ends.

    Every sequence has its own random stream and text; only the model's forward pass is shared.
    The lock is held for one forward pass at a time, so other calls take turns with this one.

    Args:
        loaded: The model.
        prompts: One per sequence; they all fit the context window.
        settings: How to decode, the same for all.
        assemblers: One per sequence, fresh.
        lock: Guards the model.
    """

    def __init__(
        self,
        loaded: Loaded,
        prompts: Sequence[Prompt],
        settings: Settings,
        assemblers: Sequence[TextAssembler],
        lock: AbstractContextManager[object],
    ) -> None:
        count = len(prompts)
        self._device = loaded.device
        self._lock = lock
        self._assemblers = list(assemblers)
        self._live = list(range(count))
        self._limits = [_limit(loaded, prompt, settings) for prompt in prompts]
        self._streams = [random_stream(settings, loaded.device) for _ in prompts]
        self._processors = processors(settings, loaded.device)
        self._scores = ScoreBuffer(count, settings.top_logprobs) if settings.logprobs else None
        self._tokens: torch.Tensor | None = None
        ids = [prompt.ids for prompt in prompts]
        self._steps: Steps
        if loaded.is_encoder_decoder:
            self._steps = Seq2SeqSteps(loaded.module)
            self._input = right_pad(ids, pad=0)
            seen = [torch.tensor([[decoder_start(loaded.module)]]) for _ in ids]
        else:
            longest = max(i.shape[1] for i in ids)
            self._steps = CausalSteps(loaded.module, longest + max(self._limits), loaded.quick)
            self._input = left_pad(ids, pad=0)
            seen = ids
        room = max(self._limits)
        self._seen = _Seen(seen, room, self._device) if self._processors else None

    def advance(self) -> bool:
        """Write one token in every live sequence; False when all answers have ended.

        Raises:
            ModelError: The model returned NaN.
        """
        if not self._live:
            return False
        rows = self._rows()
        scaled = rows
        if self._seen is not None:
            scaled = self._processors(self._seen.view(), rows)  # type: ignore[arg-type]
        tokens = choose(scaled, [self._streams[owner] for owner in self._live])
        if self._scores is not None:
            self._scores.add(rows, tokens, self._live)
        staying = [
            place
            for place, token in enumerate(tokens.tolist())
            if not self._feed(self._live[place], token)
        ]
        self._tokens = tokens
        if self._seen is not None:
            self._seen.append(tokens)
        if len(staying) < len(self._live):
            self._leave(staying)
        return bool(self._live)

    def scores(self, owner: int) -> list[RowScore] | None:
        """Return the scores of one sequence's tokens; None when they are switched off."""
        if self._scores is None:
            return None
        return self._scores.of(owner, len(self._assemblers[owner].token_ids))

    def release(self) -> None:
        """Drop cache and rows; nothing more is written."""
        self._live, self._tokens = [], None
        self._steps.release()

    def _rows(self) -> torch.Tensor:
        with self._lock:
            if self._tokens is not None:
                return self._steps.step(self._tokens)
            ids, mask = self._input
            return self._steps.start(
                ids.to(self._device), None if mask is None else mask.to(self._device)
            )

    def _feed(self, owner: int, token: int) -> bool:
        """Hand a token to its answer; True when the answer ends with it."""
        assembler = self._assemblers[owner]
        return assembler.feed(token) or len(assembler.token_ids) >= self._limits[owner]

    def _leave(self, staying: list[int]) -> None:
        """Drop ended sequences, so that the others do not pay for them."""
        self._live = [self._live[place] for place in staying]
        if not staying:
            return
        rows = torch.tensor(staying, device=self._device)
        assert self._tokens is not None
        self._tokens = self._tokens[rows]
        self._steps.keep(rows)
        if self._seen is not None:
            self._seen.keep(rows)


class _Seen:
    """Tokens seen so far per sequence, for processors that read them.

    Prompts are padded with their own first token: what is seen twice counts once.
    """

    def __init__(self, prompts: Sequence[torch.Tensor], room: int, device: torch.device) -> None:
        self._length = max(ids.shape[1] for ids in prompts)
        columns = self._length + room
        self._ids = torch.empty((len(prompts), columns), dtype=torch.int64, device=device)
        for row, ids in enumerate(prompts):
            start = self._length - ids.shape[1]
            self._ids[row, :start] = ids[0, 0]
            self._ids[row, start : self._length] = ids[0]

    def view(self) -> torch.Tensor:
        return self._ids[:, : self._length]

    def append(self, tokens: torch.Tensor) -> None:
        self._ids[:, self._length] = tokens
        self._length += 1

    def keep(self, rows: torch.Tensor) -> None:
        self._ids = self._ids[rows]


def _limit(loaded: Loaded, prompt: Prompt, settings: Settings) -> int:
    """Return the most tokens that this answer may have."""
    used = 0 if loaded.is_encoder_decoder else prompt.length
    room = loaded.context_window - used
    return room if settings.max_new_tokens is None else min(settings.max_new_tokens, room)
