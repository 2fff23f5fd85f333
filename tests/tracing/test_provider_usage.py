"""Totals are what the providers reported, also in streams, also for calls that were rejected."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from langchain_openai import ChatOpenAI

import langchain_cascade
import llamaindex_cascade
from cascadellm import Judge, Price, Threshold, Tier, mean_logprob, record_cascade
from cascadellm.summary import summarise
from tests.llamaindex.li_support import asked, openai
from tests.servers.openai_server import OpenAIServer, Said

SMALL, LARGE = Price(1.0, 2.0), Price(10.0, 20.0)
LANGCHAIN = ["invoke", "ainvoke", "stream", "astream"]
LLAMAINDEX = ["chat", "achat", "stream_chat", "astream_chat", "complete", "stream_complete"]


class Counted:
    """A provider whose every answer reports another usage, and who adds them up."""

    def __init__(self) -> None:
        self.given: dict[str, tuple[int, int]] = {}

    def __call__(self, body: dict[str, Any]) -> Said:
        number = len(self.given) + 1
        name = body["model"]
        before = self.given.get(name, (0, 0))
        usage = (10 * number + 1, number + 2)
        self.given[name] = (before[0] + usage[0], before[1] + usage[1])
        logprob = -3.0 if name == "small" else -0.1
        return Said.text("Score: 2" if name == "judge" else "It is four.", logprob, usage=usage)

    @property
    def total(self) -> int:
        """All tokens that were reported."""
        return sum(read + made for read, made in self.given.values())

    def cost(self, price: Price, name: str) -> float:
        """What a model's reported tokens cost."""
        read, made = self.given[name]
        return (read * price.input + made * price.output) / 1e6


@pytest.fixture
def provider() -> Iterator[tuple[OpenAIServer, Counted]]:
    """A local server that speaks OpenAI's protocol."""
    counted = Counted()
    with OpenAIServer(counted) as server:
        yield server, counted


def _langchain(path: str, server: OpenAIServer, policy: Any, judge: bool) -> None:
    with httpx.Client() as client:
        if path.startswith("a"):
            asyncio.run(_drained(path, server, policy, judge))
            return
        llm = _chain_cascade(server, policy, judge, http_client=client)
        said = getattr(llm, path)("2 + 2?")
        assert list(said) if path == "stream" else said


def _chain_cascade(server: OpenAIServer, policy: Any, judge: bool, **clients: Any) -> Any:
    models = [
        ChatOpenAI(
            model=name,
            base_url=server.url,
            api_key="none",
            max_retries=0,
            stream_usage=True,
            **clients,
        )
        for name in ("small", "large", "judge")
    ]
    policy = Judge(Tier(models[2], price=SMALL), threshold=7) if judge else policy
    tiers = [
        Tier(models[0], name="small", price=SMALL),
        Tier(models[1], name="large", price=LARGE),
    ]
    return langchain_cascade.CascadeLLM(tiers, policy)


async def _drained(path: str, server: OpenAIServer, policy: Any, judge: bool) -> None:
    async with httpx.AsyncClient() as client:
        llm = _chain_cascade(server, policy, judge, http_async_client=client)
        if path == "ainvoke":
            await llm.ainvoke("2 + 2?")
            return
        async for _ in llm.astream("2 + 2?"):
            pass


def _run(framework: str, path: str, server: OpenAIServer, policy: Any, judge: bool) -> None:
    if framework == "langchain":
        _langchain(path, server, policy, judge)
        return
    counting = {"stream_options": {"include_usage": True}}
    hosted = [
        openai(server, model=name, additional_kwargs=counting)
        for name in ("small", "large", "judge")
    ]
    policy = Judge(Tier(hosted[2], price=SMALL), threshold=7) if judge else policy
    tiers = [
        Tier(hosted[0], name="small", price=SMALL),
        Tier(hosted[1], name="large", price=LARGE),
    ]
    asked(llamaindex_cascade.CascadeLLM(tiers, policy), path)


@pytest.mark.parametrize("judge", [False, True], ids=["threshold", "judge"])
@pytest.mark.parametrize(
    ("framework", "path"),
    [
        *(("langchain", path) for path in LANGCHAIN),
        *(("llamaindex", path) for path in LLAMAINDEX),
    ],
)
def test_totals_are_what_the_providers_reported(
    framework: str, path: str, judge: bool, provider: Any
) -> None:
    """Tokens and cost of a call are the sum over every reported usage, judges included."""
    server, counted = provider
    with record_cascade() as recorder:
        _run(framework, path, server, Threshold(mean_logprob, -0.35), judge)
    (trace,) = recorder.traces
    spent = sum(t["input"] + t["output"] for t in trace.tokens_by_tier.values())
    paid = [(SMALL, "small"), (LARGE, "large"), *([(SMALL, "judge")] if judge else [])]

    assert len(counted.given) == len(paid)
    assert spent == counted.total
    assert trace.cost_usd == pytest.approx(sum(counted.cost(price, name) for price, name in paid))
    assert summarise(recorder.records).side_calls == int(judge)


def test_a_stream_that_nobody_counts_costs_an_unknown_sum(provider: Any) -> None:
    """Where a provider reports no usage in a stream, the cost is unknown, never zero."""
    server, _ = provider
    tiers = [
        Tier(openai(server, model="small"), name="small", price=SMALL),
        Tier(openai(server, model="large"), name="large", price=LARGE),
    ]
    llm = llamaindex_cascade.CascadeLLM(tiers, Threshold(mean_logprob, -0.35))
    record = asked(llm, "stream_chat")[-1].additional_kwargs["cascade"]
    assert record["cost_usd"] is None
    assert record["attempts"][0]["cost_usd"] is not None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"stream_options": {"include_usage": True}}),
        ({"api_base": "http://127.0.0.1:9/v1"}, {}),
        ({"additional_kwargs": {"stream_options": None}}, {}),
    ],
    ids=["OpenAI itself", "another server", "the caller's own"],
)
def test_openai_itself_is_asked_to_count_its_streams(settings: Any, expected: Any) -> None:
    """Only OpenAI's own endpoint is asked, and never against the caller's setting."""
    from llama_index.llms.openai import OpenAI

    from llamaindex_cascade.logprobs import usage_kwargs

    assert usage_kwargs(OpenAI(model="gpt-4o-mini", api_key="none", **settings)) == expected
