"""LlamaIndex programs as their users write them: each takes an LLM and runs in several ways."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from llama_index.core import Document, Settings, VectorStoreIndex, get_response_synthesizer
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.extractors import (
    KeywordExtractor,
    QuestionsAnsweredExtractor,
    SummaryExtractor,
    TitleExtractor,
)
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.schema import TextNode
from llama_index.core.selectors import (
    LLMMultiSelector,
    LLMSingleSelector,
    PydanticMultiSelector,
    PydanticSingleSelector,
)
from llama_index.core.tools import FunctionTool, QueryEngineTool
from llama_index.core.workflow import Context
from pydantic import BaseModel

from cascadellm.demo.llamaindex import WordCountEmbedding
from tests.dropin.li_watch import Seen
from tests.llamaindex.li_support import run

__all__ = [
    "BATCH",
    "Person",
    "Program",
    "agents",
    "chat_engine",
    "extractors",
    "index_of",
    "parsed",
    "query_engine",
    "router",
    "settings_engine",
    "structured",
    "structured_llm",
    "sub_questions",
    "ways_of",
]

BATCH = 3
Sync = Callable[[Any], Seen]
Async = Callable[[Any], Awaitable[Seen]]


@dataclass(frozen=True)
class Program:
    """A program and the ways in which it can be run with an LLM."""

    name: str
    ways: Mapping[str, Callable[[Any], list[Seen]]]

    def __str__(self) -> str:
        return self.name


def ways_of(name: str, **ways: Sync | Async) -> Program:
    """Return a program from `sync`, `async_`, `stream` and `astream`, with batches of them.

    A batch is what LlamaIndex programs do: several calls at once, in tasks or in threads.
    """
    made: dict[str, Callable[[Any], list[Seen]]] = {}
    for way in ("sync", "stream"):
        if way in ways:
            made[way] = _once(ways[way])
    for way in ("async_", "astream"):
        if way in ways:
            made[way] = _awaited(ways[way], 1)
    if "sync" in ways:
        made["threads"] = _threads(ways["sync"])
    if "async_" in ways:
        made["tasks"] = _awaited(ways["async_"], BATCH)
    return Program(name, made)


def _once(go: Any) -> Callable[[Any], list[Seen]]:
    return lambda llm: [go(llm)]


def _awaited(go: Any, count: int) -> Callable[[Any], list[Seen]]:
    async def gathered(llm: Any) -> list[Seen]:
        return list(await asyncio.gather(*(go(llm) for _ in range(count))))

    return lambda llm: run(gathered(llm))


def _threads(go: Any) -> Callable[[Any], list[Seen]]:
    def together(llm: Any) -> list[Seen]:
        with ThreadPoolExecutor(BATCH) as pool:
            jobs = [pool.submit(copy_context().run, go, llm) for _ in range(BATCH)]
            return [job.result() for job in jobs]

    return together


# -- retrieval --


def index_of(facts: Any) -> VectorStoreIndex:
    """Return an index of facts, by shared words; ids settle which of two equals comes first."""
    nodes = [TextNode(text=fact, id_=f"fact {place}") for place, fact in enumerate(facts)]
    return VectorStoreIndex(nodes, embed_model=WordCountEmbedding())


def query_engine(index: VectorStoreIndex, mode: str, question: str, **options: Any) -> Program:
    """Return a query engine of a response mode."""
    options = {"similarity_top_k": 2, "response_mode": mode, **options}

    def sync(llm: Any) -> Seen:
        response = index.as_query_engine(llm=llm, **options).query(question)
        return Seen(str(response), state=[response.source_nodes, response.metadata])

    async def async_(llm: Any) -> Seen:
        response = await index.as_query_engine(llm=llm, **options).aquery(question)
        return Seen(str(response), state=[response.source_nodes, response.metadata])

    def stream(llm: Any) -> Seen:
        response = index.as_query_engine(llm=llm, streaming=True, **options).query(question)
        shown = list(response.response_gen)
        return Seen("".join(shown), shown, response.source_nodes)

    async def astream(llm: Any) -> Seen:
        engine = index.as_query_engine(llm=llm, streaming=True, **options)
        response = await engine.aquery(question)
        shown = [token async for token in response.async_response_gen()]
        return Seen("".join(shown), shown, response.source_nodes)

    return ways_of(f"query-{mode}", sync=sync, async_=async_, stream=stream, astream=astream)


def settings_engine(index: VectorStoreIndex, question: str) -> Program:
    """Return a query engine that takes its LLM from the global settings."""

    def sync(llm: Any) -> Seen:
        Settings.llm = llm
        return Seen(str(index.as_query_engine(similarity_top_k=2).query(question)))

    async def async_(llm: Any) -> Seen:
        Settings.llm = llm
        return Seen(str(await index.as_query_engine(similarity_top_k=2).aquery(question)))

    return ways_of("settings", sync=sync, async_=async_)


def chat_engine(index: VectorStoreIndex, mode: str, questions: tuple[str, ...]) -> Program:
    """Return a chat engine that is asked several questions in a row."""

    def engine(llm: Any) -> Any:
        # the default memory leaves a database connection open
        memory = ChatMemoryBuffer.from_defaults(llm=llm)
        options = {"llm": llm, "memory": memory, "similarity_top_k": 2}
        return index.as_chat_engine(chat_mode=mode, **options)

    def sync(llm: Any) -> Seen:
        chat = engine(llm)
        text = [str(chat.chat(question)) for question in questions]
        return Seen(" | ".join(text), state=chat.chat_history)

    async def async_(llm: Any) -> Seen:
        chat = engine(llm)
        text = [str(await chat.achat(question)) for question in questions]
        return Seen(" | ".join(text), state=chat.chat_history)

    def stream(llm: Any) -> Seen:
        chat = engine(llm)
        shown: list[str] = []
        for place, question in enumerate(questions):
            shown += [" | "] * bool(place)
            shown += chat.stream_chat(question).response_gen
        text = [message.content for message in chat.chat_history if message.role == "assistant"]
        return Seen(" | ".join(text), shown, chat.chat_history)

    async def astream(llm: Any) -> Seen:
        chat = engine(llm)
        shown: list[str] = []
        for place, question in enumerate(questions):
            shown += [" | "] * bool(place)
            response = await chat.astream_chat(question)
            shown += [token async for token in response.async_response_gen()]
        text = [message.content for message in chat.chat_history if message.role == "assistant"]
        return Seen(" | ".join(text), shown, chat.chat_history)

    return ways_of(f"chat-{mode}", sync=sync, async_=async_, stream=stream, astream=astream)


# -- agents --


def agents(kind: str, tools: list[FunctionTool], question: str) -> Program:
    """Return an agent, run with and without streaming; agents are async only."""

    def built(llm: Any, streaming: bool) -> Any:
        if kind in ("workflow", "handoff"):
            names = ("one", "two")[: 1 + (kind == "handoff")]
            members = [
                FunctionAgent(
                    name=name, description=name, tools=tools, llm=llm, streaming=streaming
                )
                for name in names
            ]
            return AgentWorkflow(agents=members, root_agent="one")
        if kind == "output-cls":
            return FunctionAgent(tools=tools, llm=llm, streaming=streaming, output_cls=Person)
        cls = {"function": FunctionAgent, "react": ReActAgent}[kind]
        return cls(tools=tools, llm=llm, streaming=streaming)

    async def asked(llm: Any, streaming: bool) -> Seen:
        agent = built(llm, streaming)
        context = Context(agent)
        handler = agent.run(question, ctx=context)
        events = [event async for event in handler.stream_events()]
        output = await handler
        text = output.response.content or ""
        if kind == "output-cls":
            text = json.dumps(output.structured_response)
        told = [e for e in events if type(e).__name__ == "AgentStream"]
        # every step streams its own text, the last one the answer
        shown = (
            _last_step(told) if streaming and told and kind not in ("react", "output-cls") else None
        )
        memory = await context.store.get("memory")
        return Seen(text, shown, [output, events, await memory.aget_all()])

    async def whole(llm: Any) -> Seen:
        return await asked(llm, streaming=False)

    async def streamed(llm: Any) -> Seen:
        return await asked(llm, streaming=True)

    return ways_of(f"agent-{kind}", async_=whole, astream=streamed)


def _last_step(events: list[Any]) -> list[str]:
    shown: list[str] = []
    grown = ""
    for event in events:
        # a new step begins where the text so far is no longer continued
        if not event.response.startswith(grown):
            shown = []
        shown.append(event.delta)
        grown = event.response
    return shown


# -- choices --

SELECTORS = {
    "llm-single": LLMSingleSelector,
    "llm-multi": LLMMultiSelector,
    "pydantic-single": PydanticSingleSelector,
    "pydantic-multi": PydanticMultiSelector,
}


def router(index: VectorStoreIndex, selector: str, question: str) -> Program:
    """Return a router over two query engines of the same LLM."""

    def engine(llm: Any) -> Any:
        options: dict[str, Any] = {"llm": llm, "similarity_top_k": 2}
        tools = [
            QueryEngineTool.from_defaults(
                index.as_query_engine(**options), name=name, description=f"about {name}"
            )
            for name in ("capitals", "people")
        ]
        return RouterQueryEngine(
            selector=SELECTORS[selector].from_defaults(llm=llm),
            query_engine_tools=tools,
            llm=llm,
        )

    def sync(llm: Any) -> Seen:
        response = engine(llm).query(question)
        return Seen(str(response), state=[response.metadata, response.source_nodes])

    async def async_(llm: Any) -> Seen:
        response = await engine(llm).aquery(question)
        return Seen(str(response), state=[response.metadata, response.source_nodes])

    return ways_of(f"router-{selector}", sync=sync, async_=async_)


def sub_questions(index: VectorStoreIndex, question: str) -> Program:
    """Return a sub-question engine that plans and answers through one LLM."""

    def engine(llm: Any, use_async: bool) -> Any:
        tool = QueryEngineTool.from_defaults(
            index.as_query_engine(llm=llm, similarity_top_k=2), name="facts", description="facts"
        )
        return SubQuestionQueryEngine.from_defaults(
            [tool],
            llm=llm,
            question_gen=LLMQuestionGenerator.from_defaults(llm=llm),
            response_synthesizer=get_response_synthesizer(llm=llm),
            use_async=use_async,
            verbose=False,
        )

    def sync(llm: Any) -> Seen:
        response = engine(llm, use_async=False).query(question)
        return Seen(str(response), state=response.source_nodes)

    async def async_(llm: Any) -> Seen:
        response = await engine(llm, use_async=True).aquery(question)
        return Seen(str(response), state=response.source_nodes)

    return ways_of("sub-questions", sync=sync, async_=async_)


# -- structured output --


class Person(BaseModel):
    """A person."""

    name: str
    age: int
    home: str


def structured(output_cls: type[BaseModel], text: str) -> Program:
    """Return the four forms of structured prediction."""
    prompt = PromptTemplate("{text}")

    def sync(llm: Any) -> Seen:
        return _object(llm.structured_predict(output_cls, prompt, text=text))

    async def async_(llm: Any) -> Seen:
        return _object(await llm.astructured_predict(output_cls, prompt, text=text))

    def stream(llm: Any) -> Seen:
        return _object(*llm.stream_structured_predict(output_cls, prompt, text=text))

    async def astream(llm: Any) -> Seen:
        grown = await llm.astream_structured_predict(output_cls, prompt, text=text)
        return _object(*[value async for value in grown])

    return ways_of("structured", sync=sync, async_=async_, stream=stream, astream=astream)


def structured_llm(output_cls: type[BaseModel], text: str) -> Program:
    """Return `as_structured_llm`, asked as any LLM."""
    messages = [ChatMessage(role="user", content=text)]

    def sync(llm: Any) -> Seen:
        response = llm.as_structured_llm(output_cls).chat(messages)
        return Seen(_plain(response), state=response)

    async def async_(llm: Any) -> Seen:
        response = await llm.as_structured_llm(output_cls).achat(messages)
        return Seen(_plain(response), state=response)

    def stream(llm: Any) -> Seen:
        chunks = list(llm.as_structured_llm(output_cls).stream_chat(messages))
        return Seen(_plain(chunks[-1]), state=chunks)

    async def astream(llm: Any) -> Seen:
        grown = await llm.as_structured_llm(output_cls).astream_chat(messages)
        chunks = [chunk async for chunk in grown]
        return Seen(_plain(chunks[-1]), state=chunks)

    return ways_of("structured-llm", sync=sync, async_=async_, stream=stream, astream=astream)


def _plain(response: Any) -> str:
    return json.dumps(response.raw.model_dump())


def _object(*values: Any) -> Seen:
    return Seen(json.dumps(values[-1].model_dump()), state=list(values))


def parsed(output_cls: type[BaseModel], text: str) -> Program:
    """Return `predict` under a prompt whose output parser reads the answer."""

    def prompt() -> PromptTemplate:
        return PromptTemplate("{text}", output_parser=PydanticOutputParser(output_cls))

    def sync(llm: Any) -> Seen:
        return Seen(llm.predict(prompt(), text=text))

    async def async_(llm: Any) -> Seen:
        return Seen(await llm.apredict(prompt(), text=text))

    return ways_of("parsed", sync=sync, async_=async_)


# -- ingestion --


def extractors(facts: Any) -> Program:
    """Return an ingestion pipeline with the four LLM extractors."""

    def pipeline(llm: Any) -> IngestionPipeline:
        options: dict[str, Any] = {"llm": llm, "num_workers": 2, "show_progress": False}
        return IngestionPipeline(
            transformations=[
                SentenceSplitter(chunk_size=64, chunk_overlap=0),
                TitleExtractor(nodes=1, **options),
                KeywordExtractor(keywords=2, **options),
                QuestionsAnsweredExtractor(questions=1, **options),
                SummaryExtractor(summaries=["self"], **options),
            ]
        )

    def documents() -> list[Document]:
        return [Document(text=fact, id_=f"d{n}") for n, fact in enumerate(facts)]

    def sync(llm: Any) -> Seen:
        nodes = pipeline(llm).run(documents=documents())
        return _metadata(nodes)

    async def async_(llm: Any) -> Seen:
        return _metadata(await pipeline(llm).arun(documents=documents()))

    return ways_of("extractors", sync=sync, async_=async_)


def _metadata(nodes: Any) -> Seen:
    found = [dict(node.metadata) for node in nodes]
    return Seen(json.dumps(found), state=found)
