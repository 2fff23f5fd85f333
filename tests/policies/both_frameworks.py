"""Asks one cascade of fakes in both frameworks, sync and async, streamed and not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

from llama_index.core.llms import ChatMessage

import langchain_cascade
import llamaindex_cascade
from cascadellm import Cascade, Request
from tests.engine.running import run

FRAMEWORKS = ("langchain", "llamaindex")
PATHS = tuple((framework, way) for framework in FRAMEWORKS for way in ("call", "stream"))
"""Framework and way; each is run sync and async."""

Tools = Sequence[Mapping[str, Any]]


def record_of(
    framework: str,
    mode: str,
    tiers: Sequence[Any],
    policy: Any,
    question: str = "What is 6 x 7?",
    *,
    tools: Tools = (),
    config: Any = None,
) -> dict[str, Any]:
    """Return the record of one call; modes are those of `tests.engine.running`."""
    if framework == "engine":
        return engine(mode, tiers, policy, question, tools)
    ask = langchain if framework == "langchain" else llamaindex
    return ask(mode, tiers, policy, question, tools, config)


def engine(
    mode: str, tiers: Sequence[Any], policy: Any, question: str, tools: Tools
) -> dict[str, Any]:
    """Ask without a framework."""
    request = Request([{"role": "user", "content": question}], question, tools=tuple(tools))
    return run(Cascade(tiers, policy), mode, request).trace.to_dict()


def langchain(
    mode: str, tiers: Sequence[Any], policy: Any, question: str, tools: Tools, config: Any
) -> dict[str, Any]:
    """Ask in LangChain."""
    llm: Any = langchain_cascade.CascadeLLM(tiers=list(tiers), policy=policy)
    if tools:
        llm = llm.bind_tools(list(tools))

    async def streamed() -> list[Any]:
        return [chunk async for chunk in llm.astream(question, config)]

    ways: dict[str, Callable[[], Any]] = {
        "invoke": lambda: llm.invoke(question, config),
        "ainvoke": lambda: asyncio.run(llm.ainvoke(question, config)),
        "stream": lambda: reduce(lambda a, b: a + b, llm.stream(question, config)),
        "astream": lambda: reduce(lambda a, b: a + b, asyncio.run(streamed())),
    }
    return dict(ways[mode]().response_metadata["cascade"])


def llamaindex(
    mode: str, tiers: Sequence[Any], policy: Any, question: str, tools: Tools, config: Any
) -> dict[str, Any]:
    """Ask in LlamaIndex."""
    llm: Any = llamaindex_cascade.CascadeLLM(tiers=list(tiers), policy=policy)
    asked = [ChatMessage(role="user", content=question)]
    extra = {"tools": list(tools)} if tools else {}

    async def streamed() -> list[Any]:
        return [chunk async for chunk in await llm.astream_chat(asked, **extra)]

    ways: dict[str, Callable[[], Any]] = {
        "invoke": lambda: llm.chat(asked, **extra),
        "ainvoke": lambda: asyncio.run(llm.achat(asked, **extra)),
        "stream": lambda: list(llm.stream_chat(asked, **extra))[-1],
        "astream": lambda: asyncio.run(streamed())[-1],
    }
    return dict(ways[mode]().raw["cascade"])
