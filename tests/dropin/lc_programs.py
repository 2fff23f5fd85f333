"""LangChain programs as their users write them: each takes a model and runs in several ways."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from langchain_core.embeddings import Embeddings
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticToolsParser, StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import (
    Runnable,
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import BaseModel

from cascadellm.demo.langchain import WordCountEmbeddings
from tests.dropin.watching import Seen

__all__ = [
    "BATCH",
    "Person",
    "Program",
    "bound_tools",
    "chain",
    "condensed",
    "parallel",
    "parsed_json",
    "retrieval",
    "routed",
    "runnable",
    "structured",
]

BATCH = 3
Make = Callable[[Any], Runnable[Any, Any]]


class Program:
    """A program and the ways in which it can be run with a chat model."""

    def __init__(self, name: str, ways: Mapping[str, Callable[[Any], list[Seen]]]) -> None:
        self.name = name
        self.ways = ways

    def __str__(self) -> str:
        return self.name


def words(output: Any) -> str:
    """Return the final answer of an output: its text, or its fields."""
    if isinstance(output, BaseMessage):
        calls = [[call["name"], call["args"]] for call in getattr(output, "tool_calls", [])]
        return output.text + (json.dumps(calls, sort_keys=True) if calls else "")
    if isinstance(output, BaseModel):
        return json.dumps(output.model_dump(), sort_keys=True)
    if isinstance(output, list):
        return "; ".join(words(one) for one in output)
    for key in ("parsed", "answer"):
        if isinstance(output, dict) and key in output:
            return words(output[key])
    return output if isinstance(output, str) else json.dumps(output, sort_keys=True, default=words)


def runnable(name: str, make: Make, asked: Any, *, text: bool = False) -> Program:
    """Return a Runnable in every way that LangChain offers: batches are its own.

    Args:
        name: Name of the program.
        make: Builds the Runnable around a chat model.
        asked: Its input.
        text: Whether it streams text or messages, whose pieces are the answer in order.
    """

    def seen(output: Any) -> Seen:
        return Seen(words(output), state=output)

    def streamed(pieces: list[Any]) -> Seen:
        if text:
            shown = [piece if isinstance(piece, str) else piece.text for piece in pieces]
            return Seen("".join(shown), shown, pieces)
        # a stream of growing objects ends with the whole one; parts of a mapping add up
        whole = pieces[-1]
        if all(isinstance(piece, dict) for piece in pieces) and not _growing(pieces):
            whole = _merged(pieces)
        return Seen(words(whole), state=pieces)

    async def events(llm: Any, version: Any) -> Seen:
        found = [one async for one in make(llm).astream_events(asked, version=version)]
        last = [one["data"]["output"] for one in found if "output" in one["data"]][-1]
        kept = [one for one in found if one["event"].endswith("_stream")]
        return Seen(words(last), state=[kept, last])

    async def drained(llm: Any) -> Seen:
        return streamed([piece async for piece in make(llm).astream(asked)])

    async def tasks(llm: Any) -> list[Seen]:
        one = make(llm)
        return list(map(seen, await asyncio.gather(*(one.ainvoke(asked) for _ in range(BATCH)))))

    return Program(
        name,
        {
            "invoke": lambda llm: [seen(make(llm).invoke(asked))],
            "ainvoke": lambda llm: [seen(asyncio.run(make(llm).ainvoke(asked)))],
            "stream": lambda llm: [streamed(list(make(llm).stream(asked)))],
            "astream": lambda llm: [asyncio.run(drained(llm))],
            "events v2": lambda llm: [asyncio.run(events(llm, "v2"))],
            "batch": lambda llm: list(map(seen, make(llm).batch([asked] * BATCH))),
            "abatch": lambda llm: list(map(seen, asyncio.run(make(llm).abatch([asked] * BATCH)))),
            "tasks": lambda llm: asyncio.run(tasks(llm)),
        },
    )


def _growing(pieces: list[dict[str, Any]]) -> bool:
    return len(pieces) < 2 or set(pieces[0]) <= set(pieces[-1])


def _merged(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for piece in pieces:
        for key, value in piece.items():
            known = whole.get(key)
            added = known is not None and isinstance(value, (str, AIMessage))
            whole[key] = known + value if added else value
    return whole


# -- chains --


def chain(question: str) -> Program:
    """Return prompt, model, parser."""
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "{question}")])
    asked = {"question": question}
    return runnable("chain", lambda llm: prompt | llm | StrOutputParser(), asked, text=True)


def messages(question: str) -> Program:
    """Return prompt and model alone: the chunks are messages."""
    prompt = ChatPromptTemplate.from_messages([("user", "{q}")])
    return runnable("messages", lambda llm: prompt | llm, {"q": question}, text=True)


def parallel(question: str) -> Program:
    """Return two chains side by side, whose answers a third one reads."""
    ask = ChatPromptTemplate.from_template("{question}")
    join = ChatPromptTemplate.from_template("One: {one}\nTwo: {two}")

    def make(llm: Any) -> Runnable[Any, Any]:
        branch = ask | llm | StrOutputParser()
        return RunnableParallel(one=branch, two=branch) | join | llm | StrOutputParser()

    return runnable("parallel", make, {"question": question}, text=True)


def routed(question: str) -> Program:
    """Return a chain that the model's own first answer routes."""

    def make(llm: Any) -> Runnable[Any, Any]:
        ask = ChatPromptTemplate.from_template("Classify: {question}") | llm | StrOutputParser()
        known = ChatPromptTemplate.from_template("It is known. {question}") | llm
        other = ChatPromptTemplate.from_template("Find out. {question}") | llm
        kind: Any = {"kind": ask, "question": RunnableLambda(lambda asked: asked["question"])}
        branch = RunnableBranch((lambda asked: "Paris" in asked["kind"], known), other)
        return kind | branch | StrOutputParser()

    return runnable("routed", make, {"question": question}, text=True)


def parsed_json(question: str) -> Program:
    """Return a chain whose parser reads JSON from the text while it is written."""
    prompt = ChatPromptTemplate.from_template("{question}")
    return runnable("json", lambda llm: prompt | llm | JsonOutputParser(), {"question": question})


# -- retrieval --


def store_of(facts: Any, embeddings: Embeddings | None = None) -> InMemoryVectorStore:
    """Return a store of facts, by shared words."""
    return InMemoryVectorStore.from_texts(list(facts), embeddings or WordCountEmbeddings())


def retrieval(store: InMemoryVectorStore, question: str, prompt: str, k: int = 2) -> Program:
    """Return a retrieval chain."""

    def make(llm: Any) -> Runnable[Any, Any]:
        found = store.as_retriever(search_kwargs={"k": k}) | _joined
        start: Any = {"context": found, "question": RunnablePassthrough()}
        return start | ChatPromptTemplate.from_template(prompt) | llm | StrOutputParser()

    return runnable("retrieval", make, question, text=True)


def sourced(store: InMemoryVectorStore, question: str, prompt: str, k: int = 2) -> Program:
    """Return a retrieval chain that gives its sources beside the answer."""
    written = ChatPromptTemplate.from_template(prompt)

    def make(llm: Any) -> Runnable[Any, Any]:
        retriever = store.as_retriever(search_kwargs={"k": k})
        read = RunnablePassthrough.assign(context=lambda asked: _joined(asked["sources"]))
        start: Any = {"sources": retriever, "question": RunnablePassthrough()}
        return RunnableParallel(start).assign(answer=read | written | llm | StrOutputParser())

    return runnable("sourced", make, question)


def condensed(store: InMemoryVectorStore, question: str, prompt: str) -> Program:
    """Return a conversational retrieval chain: the model rewrites the question first."""
    rewrite = ChatPromptTemplate.from_messages(
        [("system", "Rewrite."), MessagesPlaceholder("history"), ("user", "{question}")]
    )
    answer = ChatPromptTemplate.from_template(prompt)

    def make(llm: Any) -> Runnable[Any, Any]:
        alone = rewrite | llm | StrOutputParser()
        found = alone | store.as_retriever(search_kwargs={"k": 2}) | _joined
        return RunnablePassthrough.assign(context=found) | answer | llm | StrOutputParser()

    history = [("user", "Hello"), ("assistant", "Hello to you")]
    return runnable("condensed", make, {"question": question, "history": history}, text=True)


def _joined(documents: Any) -> str:
    return "\n".join(document.page_content for document in documents)


# -- structured output and tools --


class Person(BaseModel):
    """A person."""

    name: str
    age: int
    home: str


class PersonDict(TypedDict):
    """A person."""

    name: str
    age: int
    home: str


SCHEMAS: dict[str, Any] = {
    "pydantic": Person,
    "typed-dict": PersonDict,
    "json-schema": {**Person.model_json_schema(), "title": "Person"},
}


def structured(schema: Any, question: str, *, raw: bool = False, **options: Any) -> Program:
    """Return `with_structured_output`, of a schema or the name of one of `SCHEMAS`."""
    known = schema if isinstance(schema, str) else "own"
    name = "-".join(["structured", known, *options.values(), *["raw"] * raw])
    asked = SCHEMAS.get(known, schema)

    def make(llm: Any) -> Runnable[Any, Any]:
        return llm.with_structured_output(asked, include_raw=raw, **options)  # type: ignore[no-any-return]

    return runnable(name, make, question)


def add(a: int, b: int) -> int:
    """Add two whole numbers."""
    return a + b


class Add(BaseModel):
    """Add two whole numbers."""

    a: int
    b: int


FORMS: dict[str, Any] = {
    "function": add,
    "pydantic": Add,
    "openai": {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two whole numbers.",
            "parameters": Add.model_json_schema(),
        },
    },
    "anthropic": {
        "name": "add",
        "description": "Add two whole numbers.",
        "input_schema": Add.model_json_schema(),
    },
}


def bound_tools(form: str, question: str, **options: Any) -> Program:
    """Return a model with tools; pydantic ones are parsed into objects."""

    def make(llm: Any) -> Runnable[Any, Any]:
        bound = llm.bind_tools([FORMS[form]], **options)
        parser = RunnableLambda(words) if form != "pydantic" else PydanticToolsParser(tools=[Add])
        return bound | parser  # type: ignore[no-any-return]

    return runnable(f"tools-{form}", make, question)
