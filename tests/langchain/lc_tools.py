"""What the LangChain tests share: a recording handler, cascades of fakes, ways to call them."""

from __future__ import annotations

import asyncio
import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler

from cascadellm import Threshold, mean_logprob
from cascadellm.testing import FakeModel
from langchain_cascade import CascadeLLM

CHOW = Threshold(mean_logprob, -0.35)


@dataclass
class Seen:
    """One run as a handler saw it."""

    kind: str
    name: str
    run_id: UUID
    parent: UUID | None
    metadata: dict[str, Any]
    tags: list[str]
    params: dict[str, Any] = field(default_factory=dict)
    inputs: Any = None
    end: Any = None
    error: BaseException | None = None


class Recording(BaseCallbackHandler):
    """Keeps every run, token and custom event in order."""

    def __init__(self) -> None:
        self.runs: dict[UUID, Seen] = {}
        self.tokens: list[tuple[UUID, str]] = []
        self.events: list[tuple[str, Any, UUID]] = []

    def _start(self, kind: str, serialized: Any, inputs: Any, kwargs: dict[str, Any]) -> None:
        name = kwargs.get("name") or (serialized or {}).get("name") or ""
        self.runs[kwargs["run_id"]] = Seen(
            kind,
            name,
            kwargs["run_id"],
            kwargs.get("parent_run_id"),
            dict(kwargs.get("metadata") or {}),
            list(kwargs.get("tags") or []),
            dict(kwargs.get("invocation_params") or {}),
            inputs,
        )

    def on_chat_model_start(self, serialized, messages, **kwargs):
        self._start("model", serialized, messages, kwargs)

    def on_chain_start(self, serialized, inputs, **kwargs):
        self._start("chain", serialized, inputs, kwargs)

    def on_llm_new_token(self, token, *, run_id, **kwargs):
        self.tokens.append((run_id, token))

    def on_llm_end(self, response, *, run_id, **kwargs):
        self.runs[run_id].end = response

    def on_chain_end(self, outputs, *, run_id, **kwargs):
        self.runs[run_id].end = outputs

    def on_llm_error(self, error, *, run_id, **kwargs):
        self.runs[run_id].error = error

    def on_chain_error(self, error, *, run_id, **kwargs):
        self.runs[run_id].error = error

    def on_custom_event(self, name, data, *, run_id, **kwargs):
        self.events.append((name, data, run_id))

    def named(self, name: str) -> list[Seen]:
        """Return the runs of one name, in order."""
        return [run for run in self.runs.values() if run.name == name]

    @property
    def models(self) -> list[Seen]:
        """Return the runs of chat models, in order."""
        return [run for run in self.runs.values() if run.kind == "model"]

    def tree(self) -> list[Any]:
        """Return the runs as nested [name, children] lists."""
        return self._below(None)

    def _below(self, parent: UUID | None) -> list[Any]:
        known = set(self.runs)
        return [
            [run.name, self._below(run.run_id)]
            for run in self.runs.values()
            if run.parent == parent or (parent is None and run.parent not in known)
        ]


def fakes(**settings: Any) -> tuple[FakeModel, FakeModel]:
    """Return a small model that is unsure, unless told otherwise, and a large one."""
    small = FakeModel(
        settings.get("small", "small says so"), name="small", logprob=settings.get("logprob", -2.0)
    )
    return small, FakeModel(settings.get("large", "large says so"), name="large")


def cascade(policy: Any = CHOW, *, options: dict[str, Any] | None = None, **settings: Any) -> Any:
    """Return a cascade of two fakes; by default it escalates once."""
    return CascadeLLM(list(fakes(**settings)), policy, **(options or {}))


def added(chunks: list[Any]) -> Any:
    """Return the sum of a stream's chunks."""
    return functools.reduce(operator.add, chunks)


async def _acollect(stream: Any) -> list[Any]:
    return [chunk async for chunk in stream]


def _events(llm: Any, asked: Any, config: dict[str, Any]) -> Any:
    events = asyncio.run(_acollect(llm.astream_events(asked, config, version="v2")))
    return next(e["data"]["output"] for e in reversed(events) if "output" in e["data"])


PATHS: dict[str, Callable[[Any, Any, dict[str, Any]], Any]] = {
    "invoke": lambda llm, asked, config: llm.invoke(asked, config),
    "ainvoke": lambda llm, asked, config: asyncio.run(llm.ainvoke(asked, config)),
    "stream": lambda llm, asked, config: added(list(llm.stream(asked, config))),
    "astream": lambda llm, asked, config: added(asyncio.run(_acollect(llm.astream(asked, config)))),
    "batch": lambda llm, asked, config: llm.batch([asked], config)[0],
    "abatch": lambda llm, asked, config: asyncio.run(llm.abatch([asked], config))[0],
    "astream_events": _events,
}
"""Ways to call a Runnable; each returns the whole message."""
