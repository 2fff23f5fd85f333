"""Answers from a loaded model: one, streamed, or many in padded batches."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import LogitsProcessorList

from cascadellm.answer import Answer, Piece
from cascadellm.errors import (
    ConfigurationError,
    MissingDependencyError,
    ModelError,
    OutOfMemoryError,
)
from cascadellm.local.assemble import TextAssembler
from cascadellm.local.batch import Caller, SharedBatch
from cascadellm.local.chat import Prompt, check_room, plain_text, render
from cascadellm.local.constrain import Grammars
from cascadellm.local.decoding import Job
from cascadellm.local.detokenize import TokenTable
from cascadellm.local.families import VISIBLE, sections_for
from cascadellm.local.load import Loaded, free, out_of_memory
from cascadellm.local.sampling import processors
from cascadellm.local.settings import Settings

__all__ = ["CallerGoneError", "Runner"]

Tools = Sequence[Mapping[str, Any]]
_log = logging.getLogger(__name__)


class CallerGoneError(Exception):
    """The caller has gone; nobody reads this answer."""


class Runner:
    """Runs requests on one loaded model.

    Args:
        loaded: The model.
        name: Its name, for errors.
        template_kwargs: Arguments for every rendering of the chat template.
        batch_size: Most requests decoded together.
        batch_tokens: Most tokens that their padded cache may hold together.
    """

    def __init__(
        self,
        loaded: Loaded,
        name: str,
        template_kwargs: Mapping[str, Any],
        *,
        batch_size: int = 16,
        batch_tokens: int = 32_768,
    ) -> None:
        self.lock = threading.RLock()
        self.name = name
        self._template_kwargs = dict(template_kwargs)
        self._loaded: Loaded | None = loaded
        self._grammars: Grammars | None = None
        # fast tokenizers refuse two callers at once where their settings change
        self._tokenizing = threading.Lock()
        self._batch = SharedBatch(
            lambda: self.loaded, self.lock, jobs=batch_size, tokens=batch_tokens
        )
        self._table = TokenTable(loaded.tokenizer, visible=VISIBLE)

    @property
    def loaded(self) -> Loaded:
        """The model.

        Raises:
            ModelError: It was closed.
        """
        if self._loaded is None:
            raise ModelError(f"{self.name} is closed; build a new LocalModel to use it again")
        return self._loaded

    @property
    def _template(self) -> str:
        """The chat template in use; empty if there is none."""
        given = self._template_kwargs.get("chat_template")
        return str(given or self.loaded.tokenizer.chat_template or "")

    @property
    def closed(self) -> bool:
        """Whether the model was given back."""
        return self._loaded is None

    def close(self) -> None:
        """Give the model's memory back once the current forward pass is done."""
        with self.lock:
            device = self._loaded.device if self._loaded is not None else None
            self._loaded = None
        if device is not None:
            self._batch.close()
            free(device)

    def prompt(self, messages: Any, tools: Tools | None, settings: Settings) -> Prompt:
        """Render and count a request.

        Raises:
            ConfigurationError: The messages are malformed.
            ContextWindowError: Prompt and answer do not fit the context window.
            ModelError: There is no chat template, or it cannot express the request.
        """
        loaded = self.loaded
        tokenizer = loaded.tokenizer
        raw = not self._template and (isinstance(messages, str) or loaded.is_encoder_decoder)
        if raw:
            text = plain_text(messages)
        else:
            text = render(tokenizer, messages, tools, self._template_kwargs, self.name)
        self._check_tools(text, tools)
        with self._tokenizing:
            encoded = tokenizer(text, add_special_tokens=raw, return_tensors="pt", verbose=False)
        ids = encoded.input_ids
        if ids.shape[1] == 0:
            raise ConfigurationError(f"the prompt for {self.name} is empty; pass some text")
        check_room(
            self.name,
            ids.shape[1],
            settings.max_new_tokens,
            loaded.context_window,
            shared=not loaded.is_encoder_decoder,
        )
        return Prompt(ids=ids.long(), text=text, tools=tuple(tools or ()))

    def assembler(self, prompt: Prompt, settings: Settings) -> TextAssembler:
        """Return a fresh assembler for one answer to this prompt."""
        declared = getattr(self.loaded.tokenizer, "response_template", None)
        return TextAssembler(
            self._table,
            eos_ids=self.loaded.eos_ids,
            stop=settings.stop,
            sections=sections_for(
                self._template, declared, prompt.text, prompt.tools, thinking=prompt.thinking
            ),
            special=declared is not None,
        )

    def processors(self, prompt: Prompt, settings: Settings) -> LogitsProcessorList:
        """Return fresh processors for the rows of one answer, the grammar's mask first.

        Raises:
            ConfigurationError: A schema cannot be compiled.
            MissingDependencyError: A schema is asked for and xgrammar is not installed.
        """
        chain = processors(settings, self.loaded.device)
        if settings.response_schema is None and not (settings.constrain_tools and prompt.tools):
            return chain
        start = 1 if self.loaded.is_encoder_decoder else prompt.length
        declared = getattr(self.loaded.tokenizer, "response_template", None)
        try:
            grammars = self._grammar_source()
            mask = grammars.processor(prompt, settings, self._template, declared, start)
        except (ConfigurationError, MissingDependencyError) as error:
            if settings.constrain == "must":
                raise
            _log.info("%s answers without constraints: %s", self.name, error)
            return chain
        return chain if mask is None else LogitsProcessorList([mask, *chain])

    def _grammar_source(self) -> Grammars:
        if self._grammars is None:
            loaded = self.loaded
            width = loaded.module.config.get_text_config().vocab_size
            hidden = self._table.hidden
            self._grammars = Grammars(loaded.tokenizer, width, loaded.eos_ids, hidden)
        return self._grammars

    def pieces(
        self, messages: Any, tools: Tools | None, settings: Settings, caller: Caller | None = None
    ) -> Iterator[Piece]:
        """Write one answer and yield its text as it becomes certain.

        Raises:
            CallerGoneError: The caller left.
        """
        caller = caller or Caller()
        job = self._job(messages, tools, settings)
        job.streamed = True
        self._batch.submit(caller, [job])
        with self._waiting(caller):
            while not job.done:
                self._batch.wait(caller, lambda: job.done or job.unread, each_step=True)
                if caller():
                    raise CallerGoneError
                if job.done:
                    break
                piece = job.delta()
                if piece.text or piece.reasoning or piece.tokens:
                    yield piece
            last = job.finish()
        yield last

    def answers(
        self,
        requests: Sequence[Any],
        tools: Tools | None,
        settings: Settings,
        caller: Caller | None = None,
    ) -> list[Answer]:
        """Answer many requests, decoded together, in their own order.

        Raises:
            CallerGoneError: The caller left.
        """
        caller = caller or Caller()
        jobs = [self._job(messages, tools, settings) for messages in requests]
        # prompts of similar length start together, so that little is spent on padding
        self._batch.submit(caller, sorted(jobs, key=lambda job: job.size))
        with self._waiting(caller):
            self._batch.wait(caller, lambda: all(job.done for job in jobs), each_step=False)
            if caller():
                raise CallerGoneError
            pieces = [job.finish() for job in jobs]
        return [piece.answer for piece in pieces if piece.answer is not None]

    def _job(self, messages: Any, tools: Tools | None, settings: Settings) -> Job:
        prompt = self.prompt(messages, tools, settings)
        assembler, chain = self.assembler(prompt, settings), self.processors(prompt, settings)
        return Job(self.loaded, prompt, settings, assembler, chain)

    @contextmanager
    def _waiting(self, caller: Caller) -> Iterator[None]:
        """Withdraw what is unfinished when the caller stops waiting, and explain lack of memory."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            # frames of the failed step hold its tensors
            traceback.clear_frames(error.__traceback__)
            free(self.loaded.device)
            raise OutOfMemoryError(
                f"{self.name} ran out of memory on {self.loaded.device} while answering "
                f"({str(error).splitlines()[0][:200]}); shorten the prompt, lower max_new_tokens "
                "or batch_size, or compare cascadellm.local.memory_estimate with what is free"
            ) from error
        finally:
            if not all(job.done for job in caller.jobs):
                self._batch.leave(caller)

    def _check_tools(self, text: str, tools: Tools | None) -> None:
        """Refuse a template that drops tools silently: the model would never see them."""
        for tool in tools or ():
            function = tool.get("function", tool) if isinstance(tool, Mapping) else None
            name = function.get("name") if isinstance(function, Mapping) else None
            if not isinstance(name, str):
                raise ConfigurationError(
                    "a tool must be a dict in OpenAI form: {'type': 'function', 'function': "
                    f"{{'name': ..., 'parameters': ...}}}}, got {tool!r:.200}"
                )
            if name not in text:
                raise ModelError(
                    f"the chat template of {self.name} does not show tool {name!r} to the model; "
                    "use a model whose template supports tools, or ask without tools"
                )
