"""One retry loop: what the server counts is what the tier allows."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
import tenacity

import langchain_cascade
import llamaindex_cascade
from cascadellm.events import record_cascade
from tests.chaos.chaos_support import Clients
from tests.servers.chaos_server import ChaosServer

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
THREE = tenacity.Retrying(stop=tenacity.stop_after_attempt(3), reraise=True)
QUESTION = "Please answer question 1"


async def asked(clients: Clients, llm: Any, mode: str) -> None:
    """Ask in one way, and close the connections."""
    try:
        if mode == "sync":
            llm.invoke(QUESTION) if hasattr(llm, "invoke") else llm.complete(QUESTION)
        else:
            await (llm.ainvoke(QUESTION) if hasattr(llm, "ainvoke") else llm.acomplete(QUESTION))
    finally:
        await clients.aclose()


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("framework", ["langchain", "llamaindex"])
def test_retries_are_not_multiplied(framework: str, mode: str) -> None:
    """Three attempts of the tier are three requests, whatever the client would do by itself."""
    with ChaosServer(rate=1.0, faults=("error_500",)) as server:
        clients = Clients(server.url)
        tier = getattr(clients, framework)("small", max_retries=2, retry=THREE)
        package = langchain_cascade if framework == "langchain" else llamaindex_cascade
        with pytest.raises(openai.OpenAIError, match="planted"):
            asyncio.run(asked(clients, package.CascadeLLM(tiers=[tier]), mode))
        assert len(server.ledger) == 3


def test_a_clients_own_retries_are_left_alone() -> None:
    """Without `retry=` the client's own two retries stay, inside one attempt of the record."""
    with ChaosServer(rate=1.0, faults=("rate_limit",)) as server, record_cascade() as recorder:
        clients = Clients(server.url)
        llm = langchain_cascade.CascadeLLM(tiers=[clients.langchain("small", max_retries=2)])
        with pytest.raises(openai.OpenAIError, match="planted"):
            asyncio.run(asked(clients, llm, "sync"))
        assert len(server.ledger) == 3
        assert len(recorder.traces[0].attempts) == 1


def test_the_users_own_model_is_untouched() -> None:
    """The copy without retries is the tier's; the model that was given keeps its number."""
    clients = Clients("http://127.0.0.1:9")
    tier = clients.langchain("small", max_retries=2, retry=2)
    llm = langchain_cascade.CascadeLLM(tiers=[tier])
    assert (tier.model.max_retries, llm.engine.tiers[0].model.max_retries) == (2, 0)
    asyncio.run(clients.aclose())
