"""One call of a cascade: what each tier is handed, and the books that outlive the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langchain_core.callbacks import CallbackManager
from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable
from langchain_core.runnables.config import (
    RunnableConfig,
    _set_config_context,
    var_child_runnable_config,
)
from langchain_core.utils.uuid import uuid7
from langsmith.run_helpers import _set_tracing_context

from cascadellm.answer import Request
from cascadellm.effects import Call, Judge, Plan
from cascadellm.events import Handler
from langchain_cascade.convert import buffer_text, openai_tools, response_schema, tool_required
from langchain_cascade.engine import Engine
from langchain_cascade.handler import listeners
from langchain_cascade.history import own_arguments, readable
from langchain_cascade.local import LocalChatModel
from langchain_cascade.retrieved import documents_of
from langchain_cascade.tier import BoundTools, base_model, bind_tools, with_arguments
from langchain_cascade.tracing import Outer, Tracing

__all__ = ["BOUND", "BOX", "Box", "CascadeCall", "visible"]

BOX = "_cascade_box"
"""Private call argument: what the entry points hand down to `_generate` and `_stream`."""

BOUND = "_cascade_bound"
"""Private call argument: each tier with the tools bound."""

_TOOL_OPTIONS = ("tool_choice", "parallel_tool_calls", "strict")


def visible(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return call arguments without the private ones, as traces and cache keys see them."""
    return {key: value for key, value in kwargs.items() if key not in (BOX, BOUND)}


@dataclass(slots=True, eq=False)
class Box:
    """Travels down one call; usage travels up in it, out of the handlers' sight.

    Attributes:
        outer: The cascade's run; None until it is known.
        structured: What `with_structured_output` says about the call.
        configurable: The caller's `configurable`, for tiers that read it.
        metadata: The caller's `metadata`, for policies that read it.
        usages: Run id -> the accepted tier's usage.
        leave: Records that the caller left a stream; the async form is awaited.
    """

    outer: Outer | None = None
    structured: Any = None
    configurable: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    usages: dict[UUID | None, Any] = field(default_factory=dict)
    leave: Callable[[], Any] | None = None

    def at(self, run_id: UUID | None) -> Box:
        """Return a box for one run that shares the books."""
        outer = None if self.outer is None else self._outer_at(self.outer, run_id)
        return Box(outer, self.structured, self.configurable, self.metadata, self.usages)

    @staticmethod
    def _outer_at(outer: Outer, run_id: UUID | None) -> Outer:
        return Outer(
            run_id,
            outer.handlers,
            outer.inheritable_handlers,
            outer.tags,
            outer.metadata,
            outer.hidden,
        )


class CascadeCall:
    """Everything that performers need to know about one call."""

    def __init__(
        self,
        engine: Engine,
        messages: list[BaseMessage],
        stop: list[str] | None,
        box: Box,
        kwargs: dict[str, Any],
        *,
        asynchronous: bool,
    ) -> None:
        self.engine = engine
        self.box = box
        self.handlers: Sequence[Handler] = (*engine.handlers, *listeners(box.outer))
        self.bound: BoundTools | None = kwargs.pop(BOUND, None)
        self.pin: str | None = kwargs.pop("model", None)
        self.start: str | None = kwargs.pop("cascade_from", None)
        self.options = {key: kwargs.pop(key, None) for key in _TOOL_OPTIONS}
        self.tools = kwargs.pop("tools", None) or ()
        if self.bound is not None and self.bound.tools is not self.tools:
            # other tools were given in the call itself
            self.bound = None
        self.request = self._request(messages, stop, kwargs)
        outer = box.outer or Outer(None)
        self.outer = outer
        inherit = engine.tier_callbacks and outer.run_id is not None
        self.manager: Any = None
        if inherit:
            self.manager = outer.child_manager(asynchronous, trace_logprobs=engine.trace_logprobs)
        self.tracing: Tracing | None = None
        if self.manager is not None and outer.watched:
            self.tracing = Tracing(engine, outer, self.manager, engine.decided_at(self.pin))

    def _request(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> Request:
        if stop is not None:
            kwargs = {**kwargs, "stop": stop}
        return Request(
            native=messages,
            text_source=lambda: buffer_text(messages),
            tools=openai_tools(self.tools),
            tool_required=bool(self.tools) and tool_required(self.options["tool_choice"]),
            response_schema=response_schema({**kwargs, "tools": self.tools}, self.box.structured),
            documents=documents_of(self.box.outer),
            metadata={**self.box.metadata, **self.box.configurable},
            kwargs={key: value for key, value in kwargs.items() if key != "response_format"}
            if self.bound is not None
            else kwargs,
        )

    def plan(self, *, observed: bool = True) -> Plan[Any]:
        """Return the plan of this call; `observed` says whether anybody listens to its events."""
        cascade, loop = self.engine.cascade, self.engine.feedback_loop
        run_id = None if loop is None else str(self.outer.run_id or uuid7())
        plan = cascade.plan(
            self.request, pin=self.pin, start=self.start, observed=observed, run_id=run_id
        )
        if loop is None or run_id is None:
            return plan
        return loop.watched(cascade, plan, self.request, run_id)

    def prepare(self, effect: Call) -> tuple[Any, Any, dict[str, Any], RunnableConfig]:
        """Return (runnable, messages, arguments, config) for a tier's call."""
        runnable, arguments = self.asked(effect)
        return runnable, self.messages(effect, runnable), arguments, self._config(effect)

    def messages(self, effect: Call, runnable: Any) -> Any:
        """Return the conversation as the tier's provider accepts it."""
        return readable(effect.request.native, base_model(runnable))

    def asked(self, effect: Call) -> tuple[Any, dict[str, Any]]:
        """Return (runnable, arguments) for a tier's call."""
        tier = effect.tier
        arguments = {
            **own_arguments(base_model(tier.model), effect.request.kwargs),
            **tier.kwargs,
            **self.engine.logprob_arguments(tier, effect.reads),
            **effect.kwargs,
        }
        if "response_format" in arguments and isinstance(tier.model, LocalChatModel):
            arguments.setdefault("constrain", "may")
        runnable, given = with_arguments(self._runnable(effect), arguments)
        return runnable, given

    def prepare_judge(self, effect: Judge) -> tuple[Any, dict[str, Any], RunnableConfig]:
        """Return (runnable, arguments, config) for a judge's call."""
        asked = self.engine.logprob_arguments(effect.tier, effect.reads)
        arguments = {**effect.tier.kwargs, **asked, **effect.kwargs}
        runnable, arguments = with_arguments(self.engine.runnable(effect.tier), arguments)
        return runnable, arguments, self._config(effect)

    def _runnable(self, effect: Call) -> Runnable[Any, Any]:
        name = effect.tier.label
        if self.bound is not None and name in self.bound.runnables:
            return self.bound.runnables[name]
        runnable = self.engine.runnable(effect.tier)
        if not self.tools:
            return runnable
        return bind_tools(runnable, self.tools, self.options, name)

    def _config(self, effect: Call | Judge) -> RunnableConfig:
        config = RunnableConfig(
            callbacks=[],
            tags=["nostream"],
            metadata={},
            run_name=effect.tier.label,
            configurable=dict(self._configurable()),
        )
        if effect.purpose == "shadow":
            # it runs when the cascade's run has ended, so it is a trace of its own
            self._price(effect)
            if self.manager is not None:
                config["callbacks"] = self.outer.tracers(self.engine.trace_logprobs)
            config["tags"] = ["cascade:shadow", "nostream"]
            config["metadata"] = {
                "cascade_purpose": "shadow",
                "cascade_run_id": str(self.outer.run_id),
            }
            return config
        if self.manager is None:
            return config
        if isinstance(effect, Call) and effect.purpose == "tier":
            config["callbacks"] = self.manager
            config["tags"] = [f"cascade:tier:{effect.index}", "nostream"]
            config["metadata"] = {"cascade_tier": effect.index, "cascade_name": effect.tier.label}
            return config
        self._price(effect)
        config["callbacks"] = self.manager if self.tracing is None else self.tracing.parent
        config["tags"] = [f"cascade:{effect.purpose}", "nostream"]
        config["metadata"] = {"cascade_purpose": effect.purpose}
        return config

    def _price(self, effect: Call | Judge) -> None:
        if self.tracing is not None and self.tracing.marks.prices(effect.tier):
            self.outer.sides[effect.purpose, effect.tier.label] = effect.tier

    def _configurable(self) -> Mapping[str, Any]:
        ambient = var_child_runnable_config.get() or {}
        return {**(ambient.get("configurable") or {}), **self.box.configurable}

    def inside(self, config: RunnableConfig) -> Context:
        """Return the context that a tier runs in: its config is the ambient one there.

        The context is never left: a call that timed out may still run in it.
        """
        inside = copy_context()
        inside.run(_set_config_context, config)
        if not self.engine.tier_callbacks:
            inside.run(_set_tracing_context, {"enabled": False})
        return inside

    def as_sync(self, config: RunnableConfig) -> RunnableConfig:
        """Return a config whose manager a sync call can use."""
        manager = config.get("callbacks")
        if manager is None or isinstance(manager, list):
            return config
        plain = CallbackManager(
            handlers=manager.handlers,
            inheritable_handlers=manager.inheritable_handlers,
            parent_run_id=manager.parent_run_id,
            tags=manager.tags,
            inheritable_tags=manager.inheritable_tags,
            metadata=manager.metadata,
            inheritable_metadata=manager.inheritable_metadata,
        )
        return RunnableConfig(**{**config, "callbacks": plain})

    def sync_only(self, runnable: Any) -> bool:
        """Return whether a tier was seen to have no async methods."""
        return id(runnable) in self.engine.sync_only

    def note_sync_only(self, runnable: Any) -> None:
        """Remember that a tier has no async methods, so that it is not tried again."""
        self.engine.sync_only.add(id(runnable))

    def close(self) -> None:
        """Undo what a broken call left open."""
        if self.tracing is not None:
            self.tracing.close()
