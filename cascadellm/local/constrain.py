"""Answers and tool calls that fit a JSON schema by construction, through xgrammar.

A token that would leave the grammar gets probability 0 before any other processor reads the row.
Scores of the answer stay those of the model's own law, so a forced token shows as improbable.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor

from cascadellm.errors import ConfigurationError, MissingDependencyError, ModelError
from cascadellm.local.chat import Prompt
from cascadellm.local.forms import answer_form
from cascadellm.local.settings import Settings

__all__ = ["GrammarProcessor", "Grammars"]

_CACHE_BYTES = 64 * 2**20
_KERNELS = (torch.float32, torch.float16, torch.bfloat16)


class Grammars:
    """Compiles and keeps the grammars of one model.

    Args:
        tokenizer: The model's tokenizer.
        width: Number of logits per row, padding ids included.
        eos_ids: Tokens that end an answer.
        hidden: Special tokens whose text is never shown; none but `eos_ids` fits a grammar.

    Raises:
        MissingDependencyError: xgrammar is not installed.
    """

    def __init__(
        self, tokenizer: Any, width: int, eos_ids: frozenset[int], hidden: Collection[int] = ()
    ) -> None:
        try:
            import xgrammar
        except ImportError as error:
            raise MissingDependencyError.for_extra("xgrammar", "structured") from error
        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=width, stop_token_ids=sorted(eos_ids)
        )
        self._width = width
        self._hidden = tuple(sorted(set(hidden) - eos_ids))
        self._compiler = xgrammar.GrammarCompiler(info, cache_limit_bytes=_CACHE_BYTES)
        self._matcher: Any = xgrammar.GrammarMatcher
        self._compiling = threading.Lock()

    def processor(
        self, prompt: Prompt, settings: Settings, template: str, declared: Any, start: int
    ) -> GrammarProcessor | None:
        """Return a fresh processor for one answer, None where nothing is constrained.

        Args:
            prompt: What is answered.
            settings: Says which parts are constrained.
            template: The chat template, which tells how tool calls are written.
            declared: The tokenizer's own `response_template`, or None.
            start: Length of the text before the answer, as processors see it.

        Raises:
            ConfigurationError: A schema cannot be compiled, or the form of tool calls is unknown.
        """
        form = answer_form(prompt, settings, template, declared)
        if form is None:
            return None
        try:
            with self._compiling:
                grammar = self._compiler.compile_structural_tag(
                    {"type": "structural_tag", "format": form}
                )
        except Exception as error:
            short = " ".join(str(error).split())[:300]
            raise ConfigurationError(
                f"xgrammar cannot turn the schema into a grammar ({short}); simplify "
                "response_schema or the tools' parameters, or ask without constraints"
            ) from error
        return GrammarProcessor(self._matcher(grammar), self._width, start, self._hidden)


class GrammarProcessor(LogitsProcessor):
    """Gives tokens outside the grammar probability 0.

    It follows the text from call to call, also backwards, so rows may be asked for in the
    order of a draft that is verified and shortened.

    Args:
        matcher: An xgrammar matcher, at the start of the answer.
        width: Number of logits per row that the grammar knows.
        start: Length of the text before the answer.
        hidden: Tokens that are never written, whatever the grammar makes of their text.
    """

    def __init__(self, matcher: Any, width: int, start: int, hidden: Sequence[int] = ()) -> None:
        import xgrammar

        self._matcher = matcher
        self._start = start
        self._written: list[int] = []
        self._width = width
        self._mask = xgrammar.allocate_token_bitmask(1, width)
        self._shown = torch.full_like(self._mask, -1)
        for token in hidden:
            self._shown[0, token // 32] &= _without(token % 32)
        self._apply = xgrammar.apply_token_bitmask_inplace

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the row, shape (1, vocab), that follows `input_ids`, shape (1, length)."""
        self._follow(input_ids[0, self._start :].tolist())
        if self._matcher.is_terminated():
            return scores
        self._matcher.fill_next_token_bitmask(self._mask)
        self._mask &= self._shown
        known = min(self._width, scores.shape[-1])
        if scores.device.type != "cpu" or scores.dtype not in _KERNELS:
            # packed until it is on the device; xgrammar's kernels there need further packages
            allowed = torch.zeros_like(scores, dtype=torch.bool)
            allowed[:, :known] = _bits(self._mask.to(scores.device), known)
            return scores.masked_fill(~allowed, float("-inf"))
        masked = scores.clone()
        self._apply(masked, self._mask, vocab_size=known)
        masked[:, known:] = float("-inf")
        return masked

    def _follow(self, text: Sequence[int]) -> None:
        """Bring the matcher to the end of this text."""
        same = 0
        for ours, token in zip(self._written, text, strict=False):
            if ours != token:
                break
            same += 1
        if same < len(self._written):
            self._matcher.rollback(len(self._written) - same)
            del self._written[same:]
        for token in text[same:]:
            if self._matcher.is_terminated():
                return
            if not self._matcher.accept_token(token):
                raise ModelError(
                    f"token {token} does not fit the grammar of this answer; processors must be "
                    "applied to every row that tokens are taken from"
                )
            self._written.append(token)


def _without(bit: int) -> int:
    """Return a signed 32-bit number in which only this bit is 0."""
    return ~(1 << bit) if bit < 31 else 2**31 - 1


def _bits(mask: torch.Tensor, count: int) -> torch.Tensor:
    """Return a packed mask, shape (1, words), as booleans, shape (1, count)."""
    places = torch.arange(32, dtype=torch.int32, device=mask.device)
    return ((mask.unsqueeze(-1) >> places) & 1).bool().flatten(1)[:, :count]
