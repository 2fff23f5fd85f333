"""Any Runnable as a tier: names resolved, tools bound in its own way, logprobs asked for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableSequence, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase

from cascadellm.errors import ConfigurationError, MissingDependencyError
from cascadellm.tier import LocalLike, Tier
from langchain_cascade.convert import openai_tools
from langchain_cascade.local import LocalChatModel
from langchain_cascade.retries import without_retries

__all__ = [
    "BoundTools",
    "as_runnable",
    "base_model",
    "bind_tools",
    "lacks_logprobs",
    "logprob_arguments",
    "resolve",
    "with_arguments",
]


def resolve(value: Any) -> Tier:
    """Return the engine's tier for a model, a `Tier` or a string.

    Strings are loaded and local models wrapped once, so that a cascade that is rebuilt from
    its own tiers, as `configurable_fields` does per call, costs little.

    Raises:
        ConfigurationError: The value is nothing that can answer.
        MissingDependencyError: The string needs a package that is not installed.
    """
    tier = value if isinstance(value, Tier) else Tier(value)
    model = tier.model
    if not isinstance(model, Runnable) and isinstance(model, (str, LocalLike)):
        model = as_runnable(model)
    elif not isinstance(model, Runnable):
        raise ConfigurationError(
            "a tier must be a chat model or another Runnable, a LocalModel, a Tier, or a string "
            f"such as 'hf:Qwen/Qwen3-0.6B' or 'openai:gpt-4o-mini'; got {type(model).__name__}"
        )
    if tier.retry is not None:
        model = without_retries(model)
    return tier if model is tier.model else tier.but(model=model)


def _from_string(name: str) -> Any:
    if name.startswith("hf:"):
        from cascadellm.local import LocalModel

        return LocalModel(name)
    try:
        from langchain.chat_models import init_chat_model
    except ImportError as error:
        raise MissingDependencyError(
            f"the tier {name!r} is made by LangChain's init_chat_model: pip install langchain "
            "and the provider's package, or write 'hf:<name>' for a local model"
        ) from error
    try:
        return init_chat_model(name)
    except ImportError as error:
        raise MissingDependencyError(f"the tier {name!r} needs a package: {error}") from error
    except ValueError as error:
        raise ConfigurationError(f"the tier {name!r} names no model: {error}") from error


def as_runnable(model: Any) -> Runnable[Any, Any]:
    """Return a tier's or judge's model as a Runnable."""
    if isinstance(model, Runnable):
        return model
    if isinstance(model, str):
        return as_runnable(_from_string(model))
    return LocalChatModel(model)


def base_model(runnable: Any) -> Any:
    """Return the chat model inside bindings, retries, fallbacks and chains."""
    for _ in range(16):
        if isinstance(runnable, RunnableBindingBase):
            runnable = runnable.bound
        elif isinstance(runnable, RunnableWithFallbacks):
            runnable = runnable.runnable
        elif isinstance(runnable, RunnableSequence):
            models = [s for s in runnable.steps if isinstance(base_model(s), BaseChatModel)]
            if not models:
                break
            runnable = models[-1]
        else:
            break
    return runnable


def with_arguments(runnable: Runnable[Any, Any], arguments: Mapping[str, Any]) -> Any:
    """Return (runnable, call arguments); a chain hands them to its chat model, not its head."""
    if not arguments or not isinstance(runnable, RunnableSequence):
        return runnable, dict(arguments)
    steps = list(runnable.steps)
    for place in range(len(steps) - 1, -1, -1):
        if isinstance(base_model(steps[place]), BaseChatModel):
            steps[place] = steps[place].bind(**arguments)
            return RunnableSequence(*steps), {}
    return runnable, {}


@dataclass(frozen=True, slots=True)
class BoundTools:
    """Tools bound to a cascade, with each tier bound in its own format.

    Attributes:
        tools: The tools in OpenAI form, as they stand in the binding.
        runnables: Tier name -> the tier with the tools bound.
    """

    tools: Sequence[Mapping[str, Any]] = field(repr=False)
    runnables: Mapping[str, Runnable[Any, Any]] = field(repr=False)


def bind_tools(
    runnable: Any, tools: Sequence[Any], options: Mapping[str, Any], name: str
) -> Runnable[Any, Any]:
    """Bind tools to a tier, through its wrappers, in its own provider's format.

    Raises:
        ConfigurationError: The tier cannot bind tools.
    """
    if isinstance(runnable, RunnableBindingBase) and not _queues_tools(runnable):
        return runnable.model_copy(
            update={"bound": bind_tools(runnable.bound, tools, options, name)}
        )
    if isinstance(runnable, RunnableWithFallbacks):
        inner = [runnable.runnable, *runnable.fallbacks]
        first, *rest = [bind_tools(one, tools, options, name) for one in inner]
        return runnable.model_copy(update={"runnable": first, "fallbacks": rest})
    if isinstance(runnable, RunnableSequence):
        steps = list(runnable.steps)
        for place in range(len(steps) - 1, -1, -1):
            if isinstance(base_model(steps[place]), BaseChatModel):
                steps[place] = bind_tools(steps[place], tools, options, name)
                return RunnableSequence(*steps)
    method = getattr(runnable, "bind_tools", None)
    if method is None:
        raise _no_tools(name, runnable)
    try:
        return _bound(runnable, method, tools, options)
    except NotImplementedError as error:
        raise _no_tools(name, runnable) from error


def _queues_tools(runnable: Any) -> bool:
    """Return whether a wrapper has a `bind_tools` of its own, not its inner model's."""
    return "bind_tools" in vars(type(runnable))


def _no_tools(name: str, runnable: Any) -> ConfigurationError:
    return ConfigurationError(
        f"tier {name!r} ({type(runnable).__name__}) cannot bind tools; use a chat model that "
        "implements bind_tools, or leave this tier out of a cascade with tools"
    )


def _bound(
    runnable: Any, method: Any, tools: Sequence[Any], options: Mapping[str, Any]
) -> Runnable[Any, Any]:
    options = _accepted(method, options)
    if isinstance(runnable, LocalChatModel):
        # a tier that cannot be constrained answers freely, and the policy judges
        options["constrain"] = "may"
    if getattr(runnable, "_llm_type", "") == "huggingface-chat-wrapper":
        options = _for_hugging_face(tools, options)
    try:
        return method(tools, **options)  # type: ignore[no-any-return]
    except ValueError:
        if options.get("tool_choice") is None:
            raise
        # some providers refuse a forced choice; the validity policy judges what comes back
        free = {key: value for key, value in options.items() if key != "tool_choice"}
        return method(tools, **free)  # type: ignore[no-any-return]


def _accepted(method: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the options that a tier's `bind_tools` does not know, and those not given."""
    given = {key: value for key, value in options.items() if value is not None}
    parameters = inspect.signature(method).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return given
    return {key: value for key, value in given.items() if key in parameters}


def _for_hugging_face(tools: Sequence[Any], options: dict[str, Any]) -> dict[str, Any]:
    """Express "any tool" for ChatHuggingFace, which reads it as a tool's name."""
    if options.get("tool_choice") not in ("any", "required", "auto", True):
        return options
    free = {key: value for key, value in options.items() if key != "tool_choice"}
    if len(tools) == 1 and options["tool_choice"] != "auto":
        free["tool_choice"] = openai_tools(tools)[0]["function"]["name"]
    return free


def logprob_arguments(runnable: Any, reads: frozenset[str]) -> dict[str, Any]:
    """Return the call arguments that switch logprobs on, where a provider needs them.

    Args:
        runnable: The tier.
        reads: What the boundary's policy reads: `logprobs`, `top_logprobs`.
    """
    if not reads:
        return {}
    model = base_model(runnable)
    fields = getattr(type(model), "model_fields", {})
    if isinstance(model, LocalChatModel) or "logprobs" not in fields:
        return {}
    bound = _bound_arguments(runnable)
    arguments: dict[str, Any] = {}
    if not (bound.get("logprobs") or getattr(model, "logprobs", None)):
        arguments["logprobs"] = True
    alternatives = bound.get("top_logprobs") or getattr(model, "top_logprobs", None)
    if "top_logprobs" in reads and "top_logprobs" in fields and not alternatives:
        arguments["top_logprobs"] = 5
    return arguments


def _bound_arguments(runnable: Any) -> Mapping[str, Any]:
    merged: dict[str, Any] = {}
    while isinstance(runnable, RunnableBindingBase):
        merged = {**runnable.kwargs, **merged}
        runnable = runnable.bound
    return merged


def lacks_logprobs(runnable: Any) -> str | None:
    """Say why a tier is known to give no logprobs, None if it may give them."""
    model = base_model(runnable)
    kind = type(model).__name__
    if kind == "ChatAnthropic":
        return "ChatAnthropic reports no token logprobs"
    if kind == "ChatHuggingFace" and type(getattr(model, "llm", None)).__name__ in (
        "HuggingFacePipeline",
    ):
        return "ChatHuggingFace over a local pipeline reports none; use a LocalModel tier"
    uses = getattr(model, "_use_responses_api", None)
    if callable(uses) and _uses_responses(uses, _bound_arguments(runnable)):
        return "OpenAI's Responses API reports none; set use_responses_api=False on this tier"
    if isinstance(model, LocalChatModel) and not model.logprobs:
        return "its logprobs are switched off"
    return None


def _uses_responses(uses: Any, bound: Mapping[str, Any]) -> bool:
    try:
        return bool(uses({**bound}))
    except Exception:
        # a private method of the provider's class; without it there is just no warning
        return False
