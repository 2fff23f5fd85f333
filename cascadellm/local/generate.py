"""Answers from a loaded model: one, streamed, or many in padded batches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cascadellm.answer import Answer, Piece
from cascadellm.errors import ConfigurationError, ModelError, OutOfMemoryError
from cascadellm.local.assemble import TextAssembler
from cascadellm.local.chat import Prompt, check_room, plain_text, render
from cascadellm.local.decoding import Decoding
from cascadellm.local.detokenize import TokenTable
from cascadellm.local.load import Loaded, free, out_of_memory
from cascadellm.local.sections import TAGS, Sections, TagSections, TemplateSections
from cascadellm.local.settings import Settings

__all__ = ["CallerGoneError", "Runner"]

Tools = Sequence[Mapping[str, Any]]


class CallerGoneError(Exception):
    """The caller has gone; nobody reads this answer."""


def _never() -> bool:
    return False


class Runner:
    """Runs requests on one loaded model.

    Args:
        loaded: The model.
        name: Its name, for errors.
        template_kwargs: Arguments for every rendering of the chat template.
    """

    def __init__(self, loaded: Loaded, name: str, template_kwargs: Mapping[str, Any]) -> None:
        self.lock = threading.RLock()
        self.name = name
        self._template_kwargs = dict(template_kwargs)
        self._loaded: Loaded | None = loaded
        # fast tokenizers refuse two callers at once where their settings change
        self._tokenizing = threading.Lock()
        self._table = TokenTable(loaded.tokenizer, visible=TAGS)

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
    def closed(self) -> bool:
        """Whether the model was given back."""
        return self._loaded is None

    def close(self) -> None:
        """Give the model's memory back once the current forward pass is done."""
        with self.lock:
            device = self._loaded.device if self._loaded is not None else None
            self._loaded = None
        if device is not None:
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
        template = tokenizer.chat_template or self._template_kwargs.get("chat_template")
        raw = not template and (isinstance(messages, str) or loaded.is_encoder_decoder)
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
        template = getattr(self.loaded.tokenizer, "response_template", None)
        sections: Sections
        if template is not None:
            sections = TemplateSections(template, prompt.text, prompt.tools)
        else:
            sections = TagSections(tools=bool(prompt.tools), thinking=prompt.thinking)
        return TextAssembler(
            self._table,
            eos_ids=self.loaded.eos_ids,
            stop=settings.stop,
            sections=sections,
            special=template is not None,
        )

    def pieces(
        self,
        messages: Any,
        tools: Tools | None,
        settings: Settings,
        cancelled: Callable[[], bool] = _never,
    ) -> Iterator[Piece]:
        """Write one answer and yield its text as it becomes certain.

        Raises:
            CallerGoneError: `cancelled` said so before a step.
        """
        prompt = self.prompt(messages, tools, settings)
        assembler = self.assembler(prompt, settings)
        decoding = self._decoding([prompt], settings, [assembler])
        while self._advance(decoding, cancelled):
            piece = assembler.delta()
            if piece.text or piece.reasoning:
                yield piece
        yield assembler.finish(input_tokens=prompt.length, scores=decoding.scores(0))[1]

    def answers(
        self,
        requests: Sequence[Any],
        tools: Tools | None,
        settings: Settings,
        batch_size: int,
        cancelled: Callable[[], bool] = _never,
    ) -> list[Answer]:
        """Answer many requests in padded batches, in their own order.

        Requests of similar length share a batch, so that little is spent on padding.

        Raises:
            CallerGoneError: `cancelled` said so before a step.
        """
        prompts = [self.prompt(messages, tools, settings) for messages in requests]
        order = sorted(range(len(prompts)), key=lambda place: prompts[place].length)
        found: dict[int, Answer] = {}
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = self._batch([prompts[place] for place in places], settings, cancelled)
            found.update(zip(places, batch, strict=True))
        return [found[place] for place in range(len(prompts))]

    def _batch(
        self, prompts: list[Prompt], settings: Settings, cancelled: Callable[[], bool]
    ) -> list[Answer]:
        assemblers = [self.assembler(prompt, settings) for prompt in prompts]
        decoding = self._decoding(prompts, settings, assemblers)
        while self._advance(decoding, cancelled):
            pass
        return [
            assembler.finish(input_tokens=prompt.length, scores=decoding.scores(owner))[0]
            for owner, (prompt, assembler) in enumerate(zip(prompts, assemblers, strict=True))
        ]

    def _decoding(
        self, prompts: list[Prompt], settings: Settings, assemblers: list[TextAssembler]
    ) -> Decoding:
        return Decoding(self.loaded, prompts, settings, assemblers, self.lock)

    def _advance(self, decoding: Decoding, cancelled: Callable[[], bool]) -> bool:
        if cancelled():
            raise CallerGoneError
        device = self.loaded.device
        try:
            return decoding.advance()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            decoding.release()
            free(device)
            raise OutOfMemoryError(
                f"{self.name} ran out of memory on {device} while answering "
                f"({str(error).splitlines()[0][:200]}); shorten the prompt, lower max_new_tokens "
                "or batch_size, or compare cascadellm.local.memory_estimate with what is free"
            ) from error

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
