"""Fallbacks, retries, failing batches, caches and rate limiters around and inside a cascade."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import BaseRateLimiter, InMemoryRateLimiter
from langchain_core.runnables import Runnable

from cascadellm import record_cascade
from cascadellm.testing import FakeModel
from langchain_cascade import CascadeLLM, LocalChatModel, Tier
from tests.dropin.lc_programs import Program, runnable
from tests.dropin.lc_watch import Seen, Watch, problems, run_everywhere
from tests.langchain.lc_openai import OpenAIFake, chat_openai
from tests.langchain.lc_tools import CHOW

pytestmark = [
    pytest.mark.dropin,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

DRAFT = "Zebra zonk quagga."
ANSWER = "Paris it certainly is."
SPARE = "A spare model speaks."
ASKED = "What is the capital of France?"
ERROR = ConnectionError("the line is dead")
PROMPT = ChatPromptTemplate.from_template("{q}")
Wrap = Callable[[Any], Runnable[Any, Any]]


def doubted(large: Any = ANSWER, small: Any = DRAFT) -> CascadeLLM:
    """Return a cascade whose small tier is unsure."""
    return CascadeLLM(
        [FakeModel(small, name="small", logprob=-2.0), FakeModel(large, name="large")], CHOW
    )


def program(name: str, wrap: Wrap) -> Program:
    """Return a chain around a wrapped model."""
    return runnable(
        name, lambda llm: PROMPT | wrap(llm) | StrOutputParser(), {"q": ASKED}, text=True
    )


class FailsOnce(FakeModel):
    """Raises on every first call of a run of two."""

    def _answer(self, messages: Any, turn: int) -> Any:
        if turn % 2 == 0:
            raise ERROR
        return self._complete(ANSWER, messages)


# -- around --


def spare() -> LocalChatModel:
    """Return a model that is no cascade."""
    return LocalChatModel(FakeModel(SPARE, name="spare"))


def test_a_fallback_around_a_cascade_answers_when_all_tiers_fail() -> None:
    """The cascade's record says who failed; the fallback's answer is the program's."""
    tried = program("fallback", lambda llm: llm.with_fallbacks([spare()]))
    with Watch(doubted(ERROR)) as watch:
        for way in ("invoke", "ainvoke", "batch", "abatch", "stream", "astream"):
            seen = tried.ways[way](doubted(ERROR))
            assert {SPARE} == {one.text for one in seen}, way
            assert not [one for one in seen if "zonk" in str(one.state)]
    assert {None} == {record.trace.answered_by for record in watch.records}
    codes = {tuple(a.code for a in record.trace.attempts) for record in watch.records}
    assert {("score", "connection")} == codes
    assert "dead" in str(watch.records[0].error)


@pytest.mark.parametrize("wrapped", ["with_fallbacks", "with_retry", "both"])
def test_wrappers_that_are_not_needed_change_nothing(wrapped: str) -> None:
    """Same answer and decisions in every way, inside fallbacks and retries."""
    wraps: dict[str, Wrap] = {
        "with_fallbacks": lambda llm: llm.with_fallbacks([spare()]),
        "with_retry": lambda llm: llm.with_retry(stop_after_attempt=2),
        "both": lambda llm: llm.with_retry(stop_after_attempt=2).with_fallbacks([spare()]),
    }
    text, found = run_everywhere(program(wrapped, wraps[wrapped]).ways, doubted, never=("zebra",))
    assert ANSWER == text
    assert ["large"] == [name for name, *_ in found]


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_a_retry_around_a_cascade_is_a_second_call_with_its_own_record(way: str) -> None:
    """The failed call and the good one are two records; tokens and traces count both."""
    llm = CascadeLLM([FakeModel(DRAFT, name="small", logprob=-2.0), FailsOnce(name="large")], CHOW)
    tried = program("retry", lambda m: m.with_retry(wait_exponential_jitter=False))
    with Watch(llm) as watch:
        (seen,) = tried.ways[way](llm)
    assert ANSWER == seen.text
    assert [None, "large"] == [record.trace.answered_by for record in watch.records]
    assert [] == problems(watch, seen)


# -- inside --


def test_a_tier_with_its_own_retries_and_fallbacks_is_one_tier() -> None:
    """What a tier does to answer is its own affair: one attempt, in every way alike."""

    def build() -> CascadeLLM:
        flaky = LocalChatModel(FakeModel(ERROR, name="flaky"))
        large = flaky.with_fallbacks([LocalChatModel(FakeModel(ANSWER, name="spare"))])
        small = LocalChatModel(FakeModel(DRAFT, name="small", logprob=-2.0)).with_retry()
        return CascadeLLM([Tier(small, name="small"), Tier(large, name="large")], CHOW)

    text, found = run_everywhere(program("inside", lambda llm: llm).ways, build, never=("zebra",))
    assert ANSWER == text
    assert [("large", 2)] == [(name, len(attempts)) for name, attempts, _ in found]


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_a_retried_tier_costs_what_it_reported(way: str) -> None:
    """A tier that failed once inside its own retry still answers the same call."""
    large = LocalChatModel(FailsOnce(name="large")).with_retry(wait_exponential_jitter=False)
    small = FakeModel(DRAFT, name="small", logprob=-2.0)
    llm = CascadeLLM([small, Tier(large, name="large")], CHOW)
    with Watch(llm) as watch:
        (seen,) = program("retried", lambda m: m).ways[way](llm)
    assert ANSWER == seen.text
    assert [] == problems(watch, seen)
    assert ["large"] == [record.trace.answered_by for record in watch.records]


# -- batches with failures --


def picky(messages: Any) -> str:
    """Fail for one question."""
    if "bad" in str(messages):
        raise ERROR
    return f"{ANSWER} {messages[-1]['content']!s}"


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_batch_with_failures_keeps_them_apart(asynchronous: bool, concurrency: int) -> None:
    """A failing input is an exception in its place; the other answers and records are whole."""
    llm = doubted(picky)
    chain = PROMPT | llm | StrOutputParser()
    asked = [{"q": q} for q in ("one", "bad", "two", "bad", "three")]
    config: Any = {"max_concurrency": concurrency}
    with Watch(llm) as watch:
        if asynchronous:
            given = asyncio.run(chain.abatch(asked, config, return_exceptions=True))
        else:
            given = chain.batch(asked, config, return_exceptions=True)
    assert [True, False, True, False, True] == [isinstance(one, str) for one in given]
    assert all(one is ERROR or isinstance(one, ConnectionError) for one in given[1::2])
    assert [f"{ANSWER} {q}" for q in ("one", "two", "three")] == given[::2]
    answered = [record.trace.answered_by for record in watch.records]
    assert (3, 2) == (answered.count("large"), answered.count(None))
    assert [] == problems(watch, Seen("", state=given[::2]))
    assert f"{ANSWER} again" == chain.invoke({"q": "again"})


def test_batch_as_completed_gives_each_answer_once() -> None:
    """Answers come in any order with their place, failures among them."""
    chain = PROMPT | doubted(picky) | StrOutputParser()
    asked = [{"q": q} for q in ("one", "bad", "two")]
    given: dict[int, Any] = dict(chain.batch_as_completed(asked, return_exceptions=True))
    assert [f"{ANSWER} one", f"{ANSWER} two"] == [given[0], given[2]]
    assert isinstance(given[1], ConnectionError)


# -- cache --


@pytest.fixture
def cache() -> Iterator[InMemoryCache]:
    """The global cache, switched off again."""
    one = InMemoryCache()
    set_llm_cache(one)
    yield one
    set_llm_cache(None)


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "batch", "abatch"])
def test_the_global_cache_answers_the_second_call(way: str, cache: InMemoryCache) -> None:
    """The same text and record again, no tier asked, nothing counted twice."""
    llm = doubted()
    small, large = (tier.model.model for tier in llm.engine.tiers)
    chain = program("cached", lambda model: model)
    first = chain.ways[way](llm)
    asked = len(small.calls), len(large.calls)
    with Watch(llm) as watch:
        second = chain.ways[way](llm)
    assert [one.text for one in first] == [one.text for one in second]
    assert asked == (len(small.calls), len(large.calls))
    assert [] == watch.records
    assert not sum(one.get("total_tokens", 0) for one in watch.usage.usage_metadata.values())
    # another threshold is another cascade, over tiers whose answers are known
    other = CascadeLLM([small, large], ~CHOW)
    with Watch(other) as watch:
        (seen,) = chain.ways["ainvoke" if way.startswith("a") else "invoke"](other)
    assert DRAFT == seen.text
    assert [] == problems(watch, seen)


def test_a_cached_answer_holds_the_record_and_counts_of_the_first(cache: InMemoryCache) -> None:
    """A hit carries who answered, why and the token counts; its cost is nothing."""
    llm = doubted()
    first, second = llm.invoke(ASKED), llm.invoke(ASKED)
    assert first.response_metadata["cascade"] == second.response_metadata["cascade"]
    counts = ("input_tokens", "output_tokens", "total_tokens")
    assert first.usage_metadata is not None
    assert second.usage_metadata is not None
    assert [first.usage_metadata[c] for c in counts] == [second.usage_metadata[c] for c in counts]
    assert 0 == dict(second.usage_metadata)["total_cost"]


@pytest.mark.parametrize("kind", ["accepted", "escalated"])
def test_a_cascade_under_a_cache_runs_alike_in_every_way(kind: str, cache: InMemoryCache) -> None:
    """A cold cache changes neither answers nor decisions; batches of one question may share it."""

    def build() -> CascadeLLM:
        cache.clear()
        return (
            doubted()
            if kind == "escalated"
            else doubted(DRAFT, ANSWER).model_copy(update={"policy": ~CHOW})
        )

    ways = {
        way: go
        for way, go in program("cold", lambda llm: llm).ways.items()
        if way not in ("batch", "abatch", "tasks")
    }
    text, _ = run_everywhere(ways, build, never=("zebra",))
    assert ANSWER == text


# -- rate limiter --


class Counting(BaseRateLimiter):
    """Lets everyone through and counts."""

    def __init__(self) -> None:
        self.count = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        """Count."""
        self.count += 1
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        """Count."""
        self.count += 1
        return True


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"])
def test_a_rate_limiter_is_asked_once_per_call_of_what_carries_it(way: str) -> None:
    """On the cascade once per answer; on a tier once per call of that tier."""
    outer, inner = Counting(), Counting()
    small = FakeModel(DRAFT, name="small", logprob=-2.0)
    large = chat_openai(OpenAIFake(ANSWER), rate_limiter=inner)
    llm = CascadeLLM([small, Tier(large, name="large")], CHOW, rate_limiter=outer)
    with record_cascade() as recorder:
        seen = program("limited", lambda model: model).ways[way](llm)
    assert {ANSWER} == {one.text for one in seen}
    assert len(seen) == len(recorder.records) == outer.count == inner.count


def test_a_limited_cascade_runs_alike_in_every_way() -> None:
    """A limiter that lets calls through slowly changes nothing but time."""

    def build() -> CascadeLLM:
        limiter = InMemoryRateLimiter(requests_per_second=200, check_every_n_seconds=0.002)
        return CascadeLLM(doubted().tiers, CHOW, rate_limiter=limiter)

    text, found = run_everywhere(program("slow", lambda llm: llm).ways, build, never=("zebra",))
    assert ANSWER == text
    assert ["large"] == [name for name, *_ in found]


def test_a_rate_limiter_limits() -> None:
    """Ten calls at a hundred a second take their time."""
    limiter = InMemoryRateLimiter(requests_per_second=100, check_every_n_seconds=0.002)
    llm = CascadeLLM(doubted().tiers, CHOW, rate_limiter=limiter)
    begun = time.monotonic()
    for _ in range(10):
        llm.invoke(ASKED)
    assert time.monotonic() - begun > 0.08
