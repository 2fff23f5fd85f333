"""LangGraph programs as their users write them: agents and graphs with a checkpointer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command
from pydantic import BaseModel

from tests.dropin.lc_programs import BATCH, Program
from tests.dropin.watching import Seen

__all__ = ["agent", "chat_graph", "graph", "interrupted", "tool_graph"]

Build = Callable[[Any, Any], Any]


def final(state: Any) -> str:
    """Return the final answer that a state holds."""
    structured = state.get("structured_response")
    if structured is not None:
        whole = structured.model_dump() if isinstance(structured, BaseModel) else structured
        return json.dumps(whole, sort_keys=True)
    return str(state["messages"][-1].text)


def graph(name: str, build: Build, *turns: Any) -> Program:
    """Return a graph in every way that LangGraph offers, each with a fresh checkpointer.

    Args:
        name: Name of the program.
        build: Makes the compiled graph from a chat model and a checkpointer.
        turns: Inputs of one thread, in order.
    """

    def whole(call: Callable[[Any, Any, Any], Any]) -> Callable[[Any], list[Seen]]:
        def go(llm: Any) -> list[Seen]:
            made = build(llm, InMemorySaver())
            told = [call(made, turn, _thread()) for turn in turns]
            return [_kept(made, told)]

        return go

    def awaited(call: Callable[[Any, Any, Any], Any]) -> Callable[[Any], list[Seen]]:
        async def run(made: Any) -> list[Any]:
            return [await call(made, turn, _thread()) for turn in turns]

        def go(llm: Any) -> list[Seen]:
            made = build(llm, InMemorySaver())
            return [_kept(made, asyncio.run(run(made)))]

        return go

    def batch(llm: Any) -> list[Seen]:
        made = build(llm, InMemorySaver())
        threads = [_thread(str(place)) for place in range(BATCH)]
        told = [made.batch([turn] * BATCH, threads) for turn in turns]
        return [_kept(made, told, str(place)) for place in range(BATCH)]

    def abatch(llm: Any) -> list[Seen]:
        made = build(llm, InMemorySaver())
        threads = [_thread(str(place)) for place in range(BATCH)]

        async def run() -> list[Any]:
            return [await made.abatch([turn] * BATCH, threads) for turn in turns]

        told = asyncio.run(run())
        return [_kept(made, told, str(place)) for place in range(BATCH)]

    return Program(
        name,
        {
            "invoke": whole(lambda g, turn, at: g.invoke(turn, at)),
            "ainvoke": awaited(lambda g, turn, at: g.ainvoke(turn, at)),
            "batch": batch,
            "abatch": abatch,
            **{
                f"stream {mode}": whole(
                    lambda g, t, at, m=mode: list(g.stream(t, at, stream_mode=m))
                )
                for mode in ("values", "updates", "messages")
            },
            **{
                f"astream {mode}": awaited(
                    lambda g, t, at, m=mode: _drained(g.astream(t, at, stream_mode=m))
                )
                for mode in ("updates", "messages")
            },
            "stream v2": whole(
                lambda g, t, at: list(
                    g.stream(t, at, stream_mode=["updates", "messages"], version="v2")
                )
            ),
            "events v2": awaited(_events),
            "events v3": whole(lambda g, t, at: list(g.stream_events(t, at, version="v3"))),
            "aevents v3": awaited(_events_v3),
        },
    )


def _thread(name: str = "t") -> Any:
    return {"configurable": {"thread_id": name}}


async def _drained(stream: Any) -> list[Any]:
    return [piece async for piece in stream]


async def _events(made: Any, turn: Any, at: Any) -> list[Any]:
    # the ends of the tiers' own runs hold drafts, as a trace does; streams must not
    found = made.astream_events(turn, at, version="v2")
    return [one async for one in found if one["event"].endswith("_stream")]


async def _events_v3(made: Any, turn: Any, at: Any) -> list[Any]:
    stream = await made.astream_events(turn, at, version="v3")
    return [one async for one in stream]


def _kept(made: Any, told: list[Any], name: str = "t") -> Seen:
    state = made.get_state(_thread(name)).values
    history = [one.values for one in made.get_state_history(_thread(name))]
    return Seen(final(state), _shown(told[-1], state), [told, state, history])


def _shown(told: Any, state: Any) -> list[str] | None:
    """Return the last message as `messages` mode streamed it, None in other modes."""
    if not isinstance(told, list) or state.get("structured_response") is not None:
        return None
    found = [one for piece in told for one in _chunks(piece)]
    if not found:
        return None
    last = found[-1].id
    return [one.text for one in found if one.id == last]


def _chunks(piece: Any) -> list[AIMessageChunk]:
    if isinstance(piece, tuple) and isinstance(piece[0], AIMessage):
        return [piece[0]]
    if isinstance(piece, dict) and piece.get("type") == "messages":
        return [piece["data"][0]]
    return []


# -- programs --


def agent(
    name: str,
    tools: list[Any],
    question: str,
    middleware: Callable[[Any], list[Any]] = lambda llm: [],
    **options: Any,
) -> Program:
    """Return `create_agent`; `middleware` makes it anew for each agent, given the model."""

    def build(llm: Any, saver: Any) -> Any:
        made = middleware(llm)
        return create_agent(llm, tools, checkpointer=saver, middleware=made, **options)

    return graph(f"agent-{name}", build, {"messages": [("user", question)]})


def chat_graph(*questions: str) -> Program:
    """Return a chatbot of one node that is asked several questions in one thread."""

    def build(llm: Any, saver: Any) -> Any:
        def answer(state: MessagesState) -> dict[str, Any]:
            return {"messages": [llm.invoke(state["messages"])]}

        async def aanswer(state: MessagesState) -> dict[str, Any]:
            return {"messages": [await llm.ainvoke(state["messages"])]}

        made = StateGraph(MessagesState)
        made.add_node("answer", RunnableLambda(answer, aanswer))
        made.add_edge(START, "answer")
        return made.compile(checkpointer=saver)

    turns = [{"messages": [("user", question)]} for question in questions]
    return graph("graph-chat", build, *turns)


def tool_graph(tools: list[Any], question: str) -> Program:
    """Return the classic loop of a model node and a tool node."""

    def build(llm: Any, saver: Any) -> Any:
        bound = llm.bind_tools(tools)

        def model(state: MessagesState) -> dict[str, Any]:
            # sync inside async graphs too, as many programs are written
            return {"messages": [bound.invoke(state["messages"])]}

        made = StateGraph(MessagesState)
        made.add_node("model", model)
        made.add_node("tools", ToolNode(tools))
        made.add_edge(START, "model")
        made.add_conditional_edges("model", tools_condition)
        made.add_edge("tools", "model")
        return made.compile(checkpointer=saver)

    return graph("graph-tools", build, {"messages": [("user", question)]})


def interrupted(tools: list[Any], question: str, middleware: Any) -> Program:
    """Return an agent that stops for a human before its tool, and goes on from its checkpoint."""

    def build(llm: Any, saver: Any) -> Any:
        return create_agent(llm, tools, checkpointer=saver, middleware=[middleware])

    go_on = Command(resume={"decisions": [{"type": "approve"}]})
    return graph("agent-human", build, {"messages": [("user", question)]}, go_on)
