"""Many concurrent calls through real clients against a server that misbehaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage

import langchain_cascade
import llamaindex_cascade
from cascadellm.events import record_cascade
from langchain_cascade import Threshold, mean_logprob
from tests.chaos.chaos_support import (
    AT_ONCE,
    Clients,
    check_answers,
    check_books,
    nothing_left,
    size,
)
from tests.servers.chaos_server import ChaosServer

pytestmark = [pytest.mark.chaos, pytest.mark.filterwarnings("ignore::ResourceWarning")]
POLICY = Threshold(mean_logprob, -0.5)
RETRY = 2
COUNT = size(2500, 150)


def asked(number: int) -> str:
    """Return a question that carries its number."""
    return f"Please answer question {number}"


def chain(clients: Clients) -> Any:
    """Return LangChain's cascade over real clients."""
    tiers = [clients.langchain("small"), clients.langchain("large", retry=RETRY)]
    return langchain_cascade.CascadeLLM(tiers=tiers, policy=POLICY)


def index(clients: Clients) -> Any:
    """Return LlamaIndex's cascade over real clients."""
    tiers = [clients.llamaindex("small"), clients.llamaindex("large", retry=RETRY)]
    return llamaindex_cascade.CascadeLLM(tiers=tiers, policy=POLICY)


def chain_text(message: Any) -> str:
    """Return a message's text."""
    return str(message.content)


def chain_record(message: Any) -> Any:
    """Return a message's record."""
    return message.response_metadata["cascade"]


def index_text(response: Any) -> str:
    """Return a response's text."""
    return str(response.message.content)


def index_record(response: Any) -> Any:
    """Return a response's record."""
    return response.additional_kwargs["cascade"]


async def many(ask: Callable[[int], Awaitable[Any]], count: int) -> Sequence[Any]:
    """Ask all questions, a hundred at a time; return answers and exceptions in order."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> Any:
        async with places:
            return await ask(number)

    return await asyncio.gather(*map(one, range(count)), return_exceptions=True)


def threaded(ask: Callable[[int], Any], count: int) -> list[Any]:
    """Ask all questions from a hundred threads; return answers and exceptions in order."""

    def one(number: int) -> Any:
        try:
            return ask(number)
        except Exception as error:
            return error

    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = [pool.submit(copy_context().run, one, number) for number in range(count)]
        return [future.result() for future in waiting]


async def no_task_left() -> None:
    """Check that no task runs but this one."""
    mine = asyncio.current_task()
    for _ in range(50):
        # the clients leave their own generators to the collector, which ends them in short tasks
        await asyncio.sleep(0.01)
        left = [task for task in asyncio.all_tasks() if task is not mine]
        if not left:
            return
    raise AssertionError(f"tasks left behind: {left}")


async def chain_stream(llm: Any, number: int) -> Any:
    """Stream one answer and return it whole."""
    whole: Any = None
    async for chunk in llm.astream(asked(number)):
        whole = chunk if whole is None else whole + chunk
    return whole


async def index_stream(llm: Any, number: int) -> Any:
    """Stream one answer and return its last chunk."""
    last: Any = None
    async for chunk in await llm.astream_chat([ChatMessage(content=asked(number))]):
        last = chunk
    return last


ASYNC = {
    "langchain": (chain, lambda llm, n: llm.ainvoke(asked(n)), chain_text, chain_record),
    "langchain stream": (chain, chain_stream, chain_text, chain_record),
    "llamaindex": (
        index,
        lambda llm, n: llm.achat([ChatMessage(content=asked(n))]),
        index_text,
        index_record,
    ),
    "llamaindex stream": (index, index_stream, index_text, index_record),
}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("how", ASYNC)
def test_async_calls_under_faults(how: str) -> None:
    """Every call ends in its own answer or a typed error; records and totals match the server."""
    build, ask, text_of, record_of = ASYNC[how]

    async def run(server: ChaosServer) -> Sequence[Any]:
        clients = Clients(server.url)
        llm = build(clients)
        try:
            results = await many(lambda number: ask(llm, number), COUNT)
            await no_task_left()
            return results
        finally:
            await clients.aclose()

    with nothing_left(), ChaosServer() as server, record_cascade() as recorder:
        results = asyncio.run(run(server))
        answers, errors = check_answers(list(results), text_of, record_of)
        check_books(recorder, server, COUNT)
        assert answers + errors == COUNT
        assert answers > 0.9 * COUNT, f"{errors} of {COUNT} calls failed"
        assert any(sent.fault for sent in server.ledger)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("framework", ["langchain", "llamaindex"])
def test_sync_calls_under_faults(framework: str) -> None:
    """The same from a hundred threads that share one cascade."""
    with nothing_left(), ChaosServer(seed=1) as server, record_cascade() as recorder:
        clients = Clients(server.url)
        if framework == "langchain":
            llm = chain(clients)
            results = threaded(lambda n: llm.invoke(asked(n)), COUNT)
            check_answers(results, chain_text, chain_record)
        else:
            llm = index(clients)
            results = threaded(lambda n: llm.chat([ChatMessage(content=asked(n))]), COUNT)
            check_answers(results, index_text, index_record)
        asyncio.run(clients.aclose())
        check_books(recorder, server, COUNT)


def test_mutation_mixed_up_answers_are_noticed() -> None:
    """The check of the answers fails when two calls get each other's answer."""
    with ChaosServer(rate=0.0) as server:
        clients = Clients(server.url)
        llm = chain(clients)
        results = threaded(lambda n: llm.invoke(asked(n ^ 1)), 4)
        with pytest.raises(AssertionError, match="got the answer to"):
            check_answers(results, chain_text, chain_record)
        asyncio.run(clients.aclose())


def test_mutation_lost_tokens_are_noticed() -> None:
    """The check of the books fails when the server reported a call that no record holds."""
    with ChaosServer(rate=0.0) as server, record_cascade() as recorder:
        clients = Clients(server.url)
        llm = chain(clients)
        threaded(lambda n: llm.invoke(asked(n)), 4)
        check_books(recorder, server, 4)
        clients.langchain("small").model.invoke(asked(1))
        asyncio.run(clients.aclose())
        with pytest.raises(AssertionError):
            check_books(recorder, server, 4)
