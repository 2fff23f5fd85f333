"""Handlers as a tier's run may see them: everything but the tokens of an unaccepted draft."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.tracers._streaming import (
    _StreamingCallbackHandler,
    _V2StreamingCallbackHandler,
)
from langchain_core.tracers.base import AsyncBaseTracer, BaseTracer
from langchain_core.tracers.context import _configure_hooks
from langchain_core.utils.env import env_var_is_set

__all__ = ["Muted", "hooked", "muted"]

_HIDDEN = frozenset({"tap_output_iter", "tap_output_aiter"})
_SILENT = frozenset({"on_llm_new_token", "on_stream_event"})


class Muted:
    """Passes every event on except streamed tokens.

    It is no subclass of the streaming handlers' marker classes, so a tier under it is not
    streamed implicitly, which would cost its logprobs.
    """

    def __init__(self, handler: BaseCallbackHandler) -> None:
        self.handler = handler

    def __getattr__(self, name: str) -> Any:
        if name in _HIDDEN or name == "handler" or name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self.handler, name)
        if name in _SILENT:
            return _asilent if inspect.iscoroutinefunction(value) else _silent
        return value

    def __eq__(self, other: object) -> bool:
        # a tier that was given the same handler itself must not report to it twice
        return other is self.handler or (isinstance(other, Muted) and other.handler is self.handler)

    def __hash__(self) -> int:
        return hash(id(self.handler))

    def __repr__(self) -> str:
        return f"Muted({type(self.handler).__name__})"


def hooked() -> bool:
    """Return whether a context variable or the environment adds a handler to every run."""
    return any(
        variable.get() is not None or (name is not None and env_var_is_set(name))
        for variable, _, _, name in _configure_hooks
    )


def _silent(*_: Any, **__: Any) -> None:
    return None


async def _asilent(*_: Any, **__: Any) -> None:
    return None


def muted(handlers: Iterable[BaseCallbackHandler]) -> list[Any]:
    """Return the handlers for tier runs.

    Tracers stay as they are, and so do handlers that LangChain adds from context variables:
    it finds those by identity and would add a wrapped one again.
    """
    return [handler if _kept(handler) else Muted(handler) for handler in handlers]


def _kept(handler: Any) -> bool:
    if isinstance(handler, Muted):
        return True
    if any(variable.get() is handler for variable, *_ in _configure_hooks):
        return True
    # the markers are protocols, which are slow to check, so few handlers should come so far
    return isinstance(handler, (BaseTracer, AsyncBaseTracer)) and not isinstance(
        handler, (_StreamingCallbackHandler, _V2StreamingCallbackHandler)
    )
