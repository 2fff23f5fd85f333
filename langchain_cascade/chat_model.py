"""CascadeLLM: a cascade of models as one LangChain chat model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_, itemgetter
from typing import Any, Literal

from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr

from langchain_cascade import identity
from langchain_cascade.calls import BOUND
from langchain_cascade.engine import Engine
from langchain_cascade.feedback import give_feedback
from langchain_cascade.flow import CascadeFlow
from langchain_cascade.structured import structured_output

__all__ = ["CascadeLLM"]

_ENGINE = (
    "on_tier_error",
    "on_exhausted",
    "deadline_s",
    "handlers",
    "tier_callbacks",
    "trace_logprobs",
    "trace_feedback",
    "feedback_loop",
)

_SOURCES = itemgetter("tiers", "policy", *_ENGINE)


class CascadeLLM(CascadeFlow):
    """Tiers, cheap to costly, with one deferral policy per boundary, as one chat model.

    The record of each call stands in `response_metadata["cascade"]`. Calls of tiers are child
    runs of the cascade's run; `usage_metadata` is that of the tier that answered.

    Args:
        tiers: Chat models or other Runnables, `LocalModel`s, `Tier`s, or strings: `hf:<name>`
            for a local model, else what LangChain's `init_chat_model` knows.
        policy: One policy for all boundaries or one per boundary; a policy's config is
            accepted too. A single tier needs none.
        on_tier_error: `escalate` past a tier that raises, or `raise`.
        on_exhausted: When the last tier fails: `raise` its error, or give the `best` draft.
        deadline_s: Seconds for the whole call; None = no limit.
        handlers: Event handlers (see `cascadellm.events`).
        tier_callbacks: Whether callbacks see the tiers' runs.
        trace_logprobs: Whether LangSmith gets the tiers' logprobs, 0.5 kB per token.
        trace_feedback: Whether LangSmith gets the score as feedback, one request per call.
        feedback_loop: Who is told what becomes of answers; see `feedback`.
        stop: Strings that end the answer, unless a call gives its own.
        temperature: Accepted and not passed on, as are `max_tokens`, `timeout`,
            `max_retries`, `api_key` and `streaming`; set these on the tiers.

    Raises:
        ConfigurationError: The arguments describe no cascade.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    tiers: Any = Field(repr=False, exclude=True)
    policy: Any = Field(default=None, exclude=True)
    on_tier_error: Literal["escalate", "raise"] = "escalate"
    on_exhausted: Literal["raise", "best"] = "raise"
    deadline_s: float | None = None
    handlers: Any = Field(default=(), repr=False, exclude=True)
    tier_callbacks: bool = True
    trace_logprobs: bool = True
    trace_feedback: bool = False
    feedback_loop: Any = Field(default=None, repr=False, exclude=True)
    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    temperature: float | None = None
    max_tokens: int | None = None
    timeout: float | None = None
    max_retries: int | None = None
    api_key: SecretStr | None = Field(default=None, repr=False, exclude=True)
    streaming: bool | None = None

    _engine: Engine | None = PrivateAttr(default=None)
    _built_from: tuple[Any, ...] = PrivateAttr(default=())

    def __init__(self, tiers: Any = (), policy: Any = None, **options: Any) -> None:
        if "stop" in options:
            options.setdefault("stop_sequences", options.pop("stop"))
        # built before pydantic validates, which would turn our errors into its own
        engine = Engine(tiers, policy, **{k: options[k] for k in _ENGINE if k in options})
        super().__init__(**{**options, "tiers": engine.tiers, "policy": policy})
        self._engine, self._built_from = engine, self._sources()

    def _sources(self) -> tuple[Any, ...]:
        return _SOURCES(self.__dict__)  # type: ignore[no-any-return]

    @property
    def engine(self) -> Engine:
        """The engine, rebuilt when a field was changed."""
        private: Any = self.__pydantic_private__
        engine: Engine | None = private["_engine"]
        if engine is not None and all(map(is_, self._sources(), private["_built_from"])):
            return engine
        tiers, policy, *options = sources = self._sources()
        engine = Engine(tiers, policy, **dict(zip(_ENGINE, options, strict=True)))
        private["_engine"], private["_built_from"] = engine, sources
        return engine

    def __getstate__(self) -> dict[Any, Any]:
        # the engine is rebuilt where the copy lands: it holds what it learned in this process
        state = super().__getstate__()
        private = {**(state.get("__pydantic_private__") or {}), "_engine": None}
        return {**state, "__pydantic_private__": private}

    def __repr__(self) -> str:
        names = ", ".join(tier.label for tier in self.engine.tiers)
        return f"CascadeLLM([{names}], policy={self.policy!r})"

    def __str__(self) -> str:
        return repr(self)

    @property
    def _llm_type(self) -> str:
        return "cascade-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return identity.identifying_params(self.engine)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return identity.ls_params(self.engine, stop or self.stop, kwargs.get("model"))

    def _resolve_model_profile(self) -> Any:
        # called while pydantic validates, before the engine is attached
        return identity.profile([tier.model for tier in self.tiers])

    def get_token_ids(self, text: str) -> list[int]:
        """Return token ids as the last tier counts them."""
        return identity.counter(self.engine).get_token_ids(text)

    def get_num_tokens(self, text: str) -> int:
        """Count tokens as the last tier does."""
        return identity.counter(self.engine).get_num_tokens(text)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Count a conversation's tokens as the last tier does."""
        return identity.counter(self.engine).get_num_tokens_from_messages(messages, tools)

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind tools to every tier, each in its own provider's format.

        Raises:
            ConfigurationError: A tier cannot bind tools; names the tier.
        """
        # create_agent hands model settings here; these choose tiers and are no tier's own options
        pin = {key: kwargs.pop(key) for key in ("model", "cascade_from") if key in kwargs}
        options = {"tool_choice": tool_choice, **kwargs}
        bound = self.engine.bind_tools(tools, options)
        known = ("parallel_tool_calls", "strict", "response_format", "ls_structured_output_format")
        shown = {key: kwargs[key] for key in known if key in kwargs}
        if tool_choice is not None:
            shown["tool_choice"] = tool_choice
        return self.bind(tools=bound.tools, **{BOUND: bound}, **shown, **pin)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: str | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Return a cascade that answers with objects of a schema.

        `function_calling`, the default, shows the schema to every tier as a tool. With
        `json_schema` and `json_mode` each tier gets `response_format` in OpenAI's form. Local
        tiers are constrained to the schema where xgrammar is installed; `Valid()` defers what
        does not satisfy it.

        Raises:
            ConfigurationError: The method is unknown, or a tier cannot bind tools.
        """
        return structured_output(
            self, schema, method=method, include_raw=include_raw, strict=strict, rest=kwargs
        )

    def feedback(self, run: Any, *, correct: float, reference_correct: float | None = None) -> bool:
        """Say whether an answer was right; the monitors of `feedback_loop` are told.

        Safe from any thread, and quick enough to call inside an event loop.

        Args:
            run: The run id, the message, or the record of the call.
            correct: Whether the answer was right, or its quality in [0, 1].
            reference_correct: Whether the last tier would be right, where that is known.

        Returns:
            Whether it was counted: a call counts once.

        Raises:
            CalibrationError: The call is not known, or a number is out of range.
            ConfigurationError: The cascade has no `feedback_loop`.
        """
        return give_feedback(self, run, correct, reference_correct)

    def to_config(self) -> dict[str, Any]:
        """Return plain data for `from_config`: policies, names, prices; no models, no keys."""
        return identity.to_config(self.engine)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        tiers: Mapping[str, Any] | Sequence[Any],
        *,
        allow: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> CascadeLLM:
        """Build a cascade from `to_config` data and the models, by name or in order.

        Args:
            config: The data.
            tiers: The models: tier name -> model, or all of them in order.
            allow: Functions that the policies name, see `Policy.from_config`.
            **options: Further arguments of the class.

        Raises:
            ConfigurationError: A model is missing or a policy is unknown.
        """
        return cls(**identity.from_config(config, tiers, allow), **options)
