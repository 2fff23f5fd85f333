"""LocalModel: a Hugging Face language model as a tier; torch is imported when one is built."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from cascadellm.answer import Answer, Piece
from cascadellm.errors import MissingDependencyError
from cascadellm.local.arguments import check_counts, named_path, plain_path, settings_of
from cascadellm.local.settings import Settings

if TYPE_CHECKING:
    import threading
    from types import TracebackType

    import torch
    from transformers import LogitsProcessorList

    from cascadellm.local.assemble import TextAssembler
    from cascadellm.local.chat import Prompt
    from cascadellm.local.generate import Runner
    from cascadellm.local.memory import MemoryEstimate

__all__ = ["LocalModel", "memory_estimate"]

Tools = Sequence[Mapping[str, Any]]


class LocalModel:
    """A causal or encoder-decoder language model on this machine.

    One loaded copy serves any number of cascades and concurrent callers. Greedy by default.
    Token scores are those of the model's own law (temperature 1, before any processor), for
    greedy and sampled answers alike, so a threshold keeps its meaning when sampling changes.

    Args:
        path: Folder or hub name; a leading `hf:` is allowed.
        device: `auto` (cuda, mps, cpu in this order) or a torch device.
        dtype: `auto` (float32 on a CPU, else the checkpoint's), or a torch dtype's name.
        temperature: 0 = greedy.
        max_new_tokens: Most tokens of an answer; None = all that fit the context window.
        top_k: As in `Settings`; None = what the checkpoint recommends, else off.
        top_p: The same.
        repetition_penalty: The same.
        seed: Seed of every call's own random stream; None = a fresh one per call.
        stop: Strings that end every answer.
        top_logprobs: Number of alternatives kept per token.
        chat_template_kwargs: Arguments for the chat template (`enable_thinking`, ...).
        name: Name in records; the last part of the path when not given.
        revision: Branch, tag or commit on the hub.
        quantization_config: Passed on to transformers.
        device_map: Passed on to transformers.
        trust_remote_code: Whether code from the model's folder may run.
        safetensors_only: Whether weights in other (executable) formats are refused.
        context_window: Overrides the window that the model states. Unit: tokens.
        batch_size: Most requests decoded together, of all callers; 1 = one after the other.
        batch_tokens: Most tokens that their padded cache may hold together.

    Raises:
        ConfigurationError: An argument is out of range.
        MissingDependencyError: torch or transformers is not installed.
        ModelError: The path is unknown or cannot be read.
        OutOfMemoryError: The device is too small.
    """

    def __init__(
        self,
        path: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        temperature: float = 0.0,
        max_new_tokens: int | None = 256,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        top_logprobs: int = 5,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        revision: str | None = None,
        quantization_config: Any = None,
        device_map: Any = None,
        trust_remote_code: bool = False,
        safetensors_only: bool = True,
        context_window: int | None = None,
        batch_size: int = 16,
        batch_tokens: int = 32_768,
    ) -> None:
        sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        limits = {"max_new_tokens": max_new_tokens, "top_logprobs": top_logprobs}
        settings = settings_of(stop, repetition_penalty=repetition_penalty, **sampling, **limits)
        check_counts(
            batch_size=batch_size, batch_tokens=batch_tokens, context_window=context_window
        )
        load, generate = _torch_side()
        self._path, self._name = named_path(path, name)
        options = load.LoadOptions(
            path=self._path,
            device=str(device),
            dtype=str(dtype),
            revision=revision,
            quantization_config=quantization_config,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
            safetensors_only=safetensors_only,
            context_window=context_window,
        )
        sizes = (batch_size, batch_tokens)
        self._attach(load.load(options), settings, generate, chat_template_kwargs or {}, sizes)

    def _attach(
        self,
        loaded: Any,
        settings: Settings,
        generate: Any,
        template: Mapping[str, Any],
        sizes: tuple[int, int],
    ) -> None:
        """Take a loaded model into use, with what its checkpoint recommends."""
        advice = {k: v for k, v in loaded.defaults.items() if getattr(settings, k) is None}
        self._settings = settings.override(**advice)
        self._context_window: int = loaded.context_window
        self._device: torch.device = loaded.device
        self._runner: Runner = generate.Runner(
            loaded, self._name, template, batch_size=sizes[0], batch_tokens=sizes[1]
        )

    def __repr__(self) -> str:
        state = "closed" if self._runner.closed else f"device={str(self._device)!r}"
        return f"LocalModel({self._path!r}, {state})"

    def __deepcopy__(self, memo: dict[int, Any]) -> LocalModel:
        """Return this very model: copies of a chain share one loaded copy."""
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the device; later calls raise `ModelError`, answers under way too."""
        self._runner.close()

    @property
    def model_name(self) -> str:
        """Short name of the model."""
        return self._name

    @property
    def path(self) -> str:
        """Folder or hub name that was loaded."""
        return self._path

    @property
    def context_window(self) -> int:
        """Most tokens of prompt plus answer; of the prompt alone in encoder-decoder models."""
        return self._context_window

    @property
    def module(self) -> Any:
        """The transformers model."""
        return self._runner.loaded.module

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""
        return self._runner.loaded.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model's inputs go."""
        return self._device

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompt."""
        return self._runner.loaded.is_encoder_decoder

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return self._runner.loaded.eos_ids

    @property
    def lock(self) -> threading.RLock:
        """Held during each forward pass, so that concurrent callers take turns."""
        return self._runner.lock

    def settings(self, **overrides: Any) -> Settings:
        """Return this model's settings, changed for one call; None keeps a value.

        Raises:
            ConfigurationError: A name is unknown or a value is out of range.
        """
        return self._settings.override(**overrides)

    def prompt(
        self, messages: Any, tools: Tools | None = None, settings: Settings | None = None
    ) -> Prompt:
        """Render and count a request.

        Args:
            messages: Chat dicts, or a string: one user message for a chat model, the prompt
                itself for any other model.
            tools: Tool specifications in OpenAI form.
            settings: Settings of the call; the model's own when not given.

        Raises:
            ConfigurationError: The messages are malformed.
            ContextWindowError: Prompt and `max_new_tokens` do not fit the context window.
            ModelError: There is no chat template, or it cannot express the request.
        """
        return self._runner.prompt(messages, tools, settings or self._settings)

    def encode(self, messages: Any, tools: Tools | None = None) -> torch.Tensor:
        """Return the prompt's token ids, shape (1, length), on the model's device.

        Raises:
            CascadeError: As `prompt`.
        """
        return self.prompt(messages, tools).ids.to(self._device)

    def assembler(self, prompt: Prompt, settings: Settings) -> TextAssembler:
        """Return what turns the token ids of one answer to `prompt` into an `Answer`."""
        return self._runner.assembler(prompt, settings)

    def processors(self, prompt: Prompt, settings: Settings) -> LogitsProcessorList:
        """Return transformers' processors for the rows of one answer, a grammar's mask first.

        Raises:
            ConfigurationError: A schema cannot be turned into a grammar.
            MissingDependencyError: A schema is asked for and xgrammar is not installed.
        """
        return self._runner.processors(prompt, settings)

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the mean of the model's last hidden states for each text, without a template.

        Any policy or router that takes an embedding model takes this model.

        Raises:
            ModelError: The model was closed.
        """
        from cascadellm.local.hidden import hidden_means

        return hidden_means(self._runner, texts)

    def generate(self, messages: Any, *, tools: Tools | None = None, **overrides: Any) -> Answer:
        """Answer once.

        Args:
            messages: As in `prompt`.
            tools: Tool specifications in OpenAI form.
            **overrides: Any field of `Settings`, for this call only.

        Raises:
            ConfigurationError: An argument is unknown or malformed.
            ModelError: The model cannot answer; its subclasses say why.
        """
        settings = self.settings(**overrides)
        return self._runner.answers([messages], tools, settings)[0]

    def stream(
        self, messages: Any, *, tools: Tools | None = None, **overrides: Any
    ) -> Iterator[Piece]:
        """Answer piece by piece; the last piece carries the whole answer.

        Text that may still turn into a stop string, a tag or half a character is held back, so
        the pieces' texts join to the answer's text. Closing the iterator stops the model.

        Args:
            messages: As in `prompt`.
            tools: Tool specifications in OpenAI form.
            **overrides: Any field of `Settings`, for this call only.

        Raises:
            ConfigurationError: An argument is unknown or malformed.
            ModelError: The model cannot answer; its subclasses say why.
        """
        return self._runner.pieces(messages, tools, self.settings(**overrides))

    def batch(
        self, requests: Sequence[Any], *, tools: Tools | None = None, **overrides: Any
    ) -> list[Answer]:
        """Answer many requests in padded batches of at most `batch_size`.

        Each request has its own random stream, started from the same seed, so the answers are
        those that `generate` gives one by one (up to rounding in near ties of two tokens).

        Args:
            requests: One `messages` argument each.
            tools: Tool specifications in OpenAI form, for all of them.
            **overrides: Any field of `Settings`, for this call only.

        Raises:
            ConfigurationError: An argument is unknown or malformed.
            ModelError: The model cannot answer; its subclasses say why.
        """
        settings = self.settings(**overrides)
        return self._runner.answers(requests, tools, settings)

    async def agenerate(
        self, messages: Any, *, tools: Tools | None = None, **overrides: Any
    ) -> Answer:
        """Answer once in a thread; cancelling the task stops the model within one step."""
        return (await self.abatch([messages], tools=tools, **overrides))[0]

    async def abatch(
        self, requests: Sequence[Any], *, tools: Tools | None = None, **overrides: Any
    ) -> list[Answer]:
        """Answer many requests as `batch` does, in a thread."""
        from cascadellm.local import aio

        settings = self.settings(**overrides)
        return await aio.run(lambda caller: self._runner.answers(requests, tools, settings, caller))

    def astream(
        self, messages: Any, *, tools: Tools | None = None, **overrides: Any
    ) -> AsyncIterator[Piece]:
        """Answer piece by piece from a thread; closing the iterator stops the model."""
        from cascadellm.local import aio

        settings = self.settings(**overrides)
        return aio.stream(lambda caller: self._runner.pieces(messages, tools, settings, caller))


def memory_estimate(
    path: str,
    *,
    tokens: int = 2048,
    batch_size: int = 1,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    quantization_config: Any = None,
    trust_remote_code: bool = False,
) -> MemoryEstimate:
    """Estimate the memory that a model needs, without reading its weights.

    Args:
        path: Folder or hub name, as for `LocalModel`.
        tokens: Tokens of prompt plus answer to keep in the cache.
        batch_size: Sequences decoded together.
        device: As for `LocalModel`; only its `dtype="auto"` depends on it.
        dtype: As for `LocalModel`.
        revision: Branch, tag or commit on the hub.
        quantization_config: As for `LocalModel`.
        trust_remote_code: Whether code from the model's folder may run.

    Raises:
        ModelError: There is no such model.
    """
    check_counts(tokens=tokens, batch_size=batch_size)
    load, _ = _torch_side()
    from cascadellm.local import memory

    options = load.LoadOptions(
        path=plain_path(path),
        device=str(device),
        dtype=str(dtype),
        revision=revision,
        quantization_config=quantization_config,
        trust_remote_code=trust_remote_code,
    )
    return memory.estimate(options, tokens, batch_size)


def _torch_side() -> tuple[Any, Any]:
    """Import the modules that need torch, or say which extra brings it."""
    for package in ("torch", "transformers"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingDependencyError.for_extra(package, "local") from error
    from cascadellm.local import generate, load

    return load, generate
