"""Async calls and streams: nothing blocks, leaks or mixes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from typing import Any

import pytest
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel

from cascadellm import Answer, record_cascade
from cascadellm.answer import Piece
from cascadellm.events import Accepted, Failed, TierFailed
from cascadellm.testing import EventRecorder, FakeModel
from llamaindex_cascade import Always, CascadeLLM, LocalLLM, Never, Tier
from tests.dropin.watching import was_asked
from tests.llamaindex.li_support import (
    CHOW,
    ENDPOINTS,
    SlowLLM,
    Spans,
    ask,
    asked,
    openai,
    pair,
    run,
    text_of,
    user,
)
from tests.servers.openai_server import OpenAIServer, Said


class Number(BaseModel):
    """A number."""

    n: int


STREAMS = ("stream_chat", "astream_chat", "stream_complete", "astream_complete")


class _Breaks(FakeModel):
    """Streams two words, then raises."""

    def stream(self, messages: Any, **kwargs: Any) -> Iterator[Piece]:
        self.calls.append((messages, kwargs))
        yield Piece(text="one")
        yield Piece(text=" two")
        raise ConnectionError("gone")

    async def astream(self, messages: Any, **kwargs: Any) -> Any:
        for piece in self.stream(messages, **kwargs):
            yield piece


# -- T29 --


async def _ticks(coroutine: Any) -> tuple[Any, int]:
    count = 0

    async def tick() -> None:
        nonlocal count
        while True:
            await asyncio.sleep(0.005)
            count += 1

    ticker = asyncio.create_task(tick())
    try:
        return await coroutine, count
    finally:
        ticker.cancel()


@pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if e.startswith("a")])
def test_t29_a_sync_only_tier_does_not_block_the_loop(endpoint: str, spans: Spans) -> None:
    """A ticker advances during a slow `CustomLLM` tier, and its span sits under the attempt."""
    slow = SlowLLM(delay_s=0.3)
    llm = CascadeLLM([FakeModel("x", name="s", logprob=-2.0), slow], CHOW)
    chunks, ticks = asyncio.run(_ticks(ask(llm, endpoint)))
    assert text_of(chunks[-1]) in ("slow answer", "slowanswer")
    assert ticks >= 5
    (inner,) = [s for s in spans.named("SlowLLM.") if "predict" not in s.id_]
    assert "CascadeTier.aattempt" in spans.ancestors(inner)


def test_t29_would_notice_upstreams_async_methods() -> None:
    """Upstream's own async method starves the ticker, so the check has power."""
    _, ticks = asyncio.run(_ticks(SlowLLM(delay_s=0.1).achat(user())))
    assert ticks == 0


def test_async_endpoints_never_touch_a_tiers_sync_methods() -> None:
    """Async calls go through `agenerate` and `astream` only."""

    class AsyncOnly(FakeModel):
        def generate(self, *args: Any, **kwargs: Any) -> Answer:
            raise AssertionError("sync method on an async path")

        def stream(self, *args: Any, **kwargs: Any) -> Iterator[Piece]:
            raise AssertionError("sync method on an async path")

    for endpoint in ENDPOINTS:
        if endpoint.startswith("a"):
            tiers = [AsyncOnly("a", name="s"), AsyncOnly("b", name="l")]
            assert text_of(asked(CascadeLLM(tiers, Always()), endpoint)[-1]) == "b"


# -- T30, T31 --


@pytest.mark.parametrize("endpoint", STREAMS)
def test_t30_closing_the_stream_closes_the_tiers(endpoint: str) -> None:
    """Closing after one chunk runs the tier generator's `finally`."""
    llm, _, large = pair()
    question: Any = "x" if "complete" in endpoint else user()

    async def close() -> None:
        stream = await getattr(llm, endpoint)(question)
        await anext(stream)
        await stream.aclose()
        assert large.closed == 1

    if endpoint.startswith("a"):
        run(close())
    else:
        stream = getattr(llm, endpoint)(question)
        next(stream)
        stream.close()
        assert large.closed == 1


@pytest.mark.parametrize("endpoint", ["stream_chat", "astream_chat"])
def test_t31_a_closed_stream_stops_a_hosted_tier(endpoint: str) -> None:
    """A provider's connection is dropped when the caller closes the stream."""
    said = Said.text(" ".join(["word"] * 400), delay_s=0.005)
    with OpenAIServer(said) as server:
        llm = CascadeLLM([openai(server)])

        async def close() -> None:
            stream = await llm.astream_chat(user())
            await anext(stream)
            await stream.aclose()

        if endpoint.startswith("a"):
            run(close())
        else:
            stream = llm.stream_chat(user())
            next(stream)
            stream.close()
            # the client library's stream object refers to itself
            gc.collect()
        until = time.monotonic() + 5
        while not server.hung_up and time.monotonic() < until:
            time.sleep(0.02)
        assert server.chunks_sent < 300
        assert server.hung_up == 1


def test_a_cancelled_task_cancels_the_tier() -> None:
    """Cancelling a call passes through to the tier and leaves nothing running."""
    seen: list[str] = []

    class Slow(FakeModel):
        async def agenerate(self, messages: Any, **kwargs: Any) -> Answer:
            self.calls.append((messages, kwargs))
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise
            return Answer("late")

    async def go() -> None:
        slow = Slow()
        task = asyncio.create_task(CascadeLLM([slow, FakeModel("x", name="l")], CHOW).achat(user()))
        await was_asked(slow)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())
    assert seen == ["cancelled"]


def test_a_stream_that_is_never_read_is_released() -> None:
    """A stream that nobody reads is closed when it is dropped."""
    llm, _, large = pair()
    stream = llm.stream_chat(user())
    del stream
    gc.collect()
    assert large.closed == 1
    assert llm.chat(user()).message.content == "Four, I am certain."


# -- T32 --


def test_t32_concurrent_calls_do_not_mix() -> None:
    """50 gathered calls with different delays and outcomes each carry their own record."""

    class Varies(FakeModel):
        async def agenerate(self, messages: Any, **kwargs: Any) -> Answer:
            number = int(messages[-1]["content"])
            await asyncio.sleep((number * 7 % 10) / 400)
            return self._complete(f"{self.name} {number}", messages)

    small, large = Varies(name="small"), Varies(name="large")
    llm = CascadeLLM([small, large], lambda answer: int(answer.text.split()[1]) % 3 == 0)

    async def go() -> list[Any]:
        return await asyncio.gather(*(llm.achat(user(str(n))) for n in range(50)))

    for number, response in enumerate(asyncio.run(go())):
        name = "large" if number % 3 == 0 else "small"
        record = response.raw["cascade"]
        assert response.message.content == f"{name} {number}"
        assert record["answered_by"] == name
        assert len(record["attempts"]) == (2 if name == "large" else 1)


def test_t32_threads_do_not_mix() -> None:
    """Concurrent sync calls and streams keep their records apart."""
    from concurrent.futures import ThreadPoolExecutor

    def reply(messages: Any) -> str:
        time.sleep(0.002)
        return f"small {messages[-1]['content']}"

    def big(messages: Any) -> str:
        return f"large {messages[-1]['content']}"

    tiers = [FakeModel(reply, name="small"), FakeModel(big, name="large")]
    llm = CascadeLLM(tiers, lambda answer: int(answer.text.split()[1]) % 2 == 0)

    def call(number: int) -> tuple[str, str]:
        if number % 3:
            response = llm.chat(user(str(number)))
        else:
            response = list(llm.stream_chat(user(str(number))))[-1]
        return response.message.content, response.raw["cascade"]["answered_by"]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(call, range(40)))
    for number, (text, name) in enumerate(results):
        assert (text, name) == (f"{name} {number}", "large" if number % 2 == 0 else "small")


# -- T33 --


@pytest.mark.parametrize("endpoint", STREAMS)
@pytest.mark.parametrize("logprob", [-0.1, -2.0])
def test_t33_chunks_are_cumulative_and_deltas_join(endpoint: str, logprob: float) -> None:
    """Each chunk holds all text so far and what is new; deltas join to the last chunk's text."""
    chunks = asked(pair(logprob)[0], endpoint)
    so_far = ""
    for chunk in chunks:
        so_far += chunk.delta or ""
        assert text_of(chunk) == so_far
    assert len(chunks) > 1
    assert "cascade" in chunks[-1].additional_kwargs
    assert not [c for c in chunks[:-1] if "cascade" in c.additional_kwargs]


def test_t33_streams_have_the_types_that_consumers_expect() -> None:
    """`stream_chat` returns a generator; `astream_chat` is awaited to an async generator."""
    llm, _, _ = pair()
    stream = llm.stream_chat(user())
    assert isinstance(stream, Generator)
    stream.close()

    async def go() -> None:
        astream = await llm.astream_chat(user())
        assert isinstance(astream, AsyncGenerator)
        await astream.aclose()

    asyncio.run(go())


def test_a_stream_equals_the_answer_of_chat() -> None:
    """The last chunk is what `chat` returns, apart from times and the delta."""
    for logprob in (-0.1, -2.0):
        llm, _, _ = pair(logprob)
        whole, last = asked(llm, "chat")[0], asked(llm, "stream_chat")[-1]
        assert whole.message == last.message
        assert whole.logprobs == last.logprobs
        assert set(whole.additional_kwargs) == set(last.additional_kwargs)
        names = [a["name"] for a in whole.raw["cascade"]["attempts"]]
        assert names == [a["name"] for a in last.raw["cascade"]["attempts"]]


# -- errors in streams --


@pytest.mark.parametrize("endpoint", STREAMS)
def test_a_stream_that_breaks_after_a_chunk_raises_and_is_recorded(endpoint: str) -> None:
    """After text was shown nothing is asked again: the error is raised, the record holds it."""
    recorder = EventRecorder()
    broken = _Breaks(name="large")
    tiers = [FakeModel("draft", name="small"), Tier(broken, retry=3)]
    llm = CascadeLLM(tiers, Always(), on_exhausted="best", handlers=[recorder])
    seen: list[str] = []

    async def go() -> None:
        question: Any = "x" if "complete" in endpoint else user()
        stream = getattr(llm, endpoint)(question)
        if endpoint.startswith("a"):
            async for chunk in await stream:
                seen.append(chunk.delta)
        else:
            seen.extend(chunk.delta for chunk in stream)

    with record_cascade() as records, pytest.raises(ConnectionError, match="gone"):
        asyncio.run(go())
    if endpoint.startswith("a"):
        assert seen == ["one", " two"]
    assert len(broken.calls) == 1
    assert not recorder.of(Accepted)
    assert len(recorder.of(Failed)) == len(recorder.of(TierFailed)) == 1
    assert records.traces[0].answered_by is None
    assert records.traces[0].attempts[-1].code == "connection"


@pytest.mark.parametrize("endpoint", STREAMS)
def test_a_stream_that_fails_before_a_chunk_can_fall_back(endpoint: str) -> None:
    """Before the first chunk a failing last tier is retried, then the best draft may stand."""
    down = FakeModel(ConnectionError("down"), name="large")
    tiers = [FakeModel("draft", name="small"), down]
    llm = CascadeLLM(tiers, Always(), on_exhausted="best")
    chunks = asked(llm, endpoint)
    assert text_of(chunks[-1]) == "draft"
    assert chunks[-1].additional_kwargs["cascade"]["answered_by"] == "small"


@pytest.mark.parametrize("endpoint", STREAMS)
def test_a_live_stream_is_retried_before_its_first_chunk(endpoint: str) -> None:
    """A retry of the last tier happens before anything is shown."""
    import tenacity

    quick = tenacity.Retrying(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_none())
    flaky = FakeModel([ConnectionError("once"), "fine now"], name="large")
    tiers = [FakeModel("draft", name="small"), Tier(flaky, retry=quick)]
    assert text_of(asked(CascadeLLM(tiers, Always()), endpoint)[-1]) == "fine now"
    assert len(flaky.calls) == 2


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_tier_that_is_too_slow_is_escalated_past(endpoint: str) -> None:
    """`timeout_s` works on every endpoint, for drafts and for a live last tier."""
    slow = Tier(FakeModel("late", name="small", delay_s=0.6), timeout_s=0.05)
    llm = CascadeLLM([slow, FakeModel("in time", name="large")], CHOW)
    response = asked(llm, endpoint)[-1]
    attempt = response.additional_kwargs["cascade"]["attempts"][0]
    assert (attempt["action"], attempt["code"]) == ("error", "timeout")
    last = CascadeLLM([FakeModel("draft", name="a"), slow], Always(), on_exhausted="best")
    assert text_of(asked(last, endpoint)[-1]) == "draft"


def test_an_async_policy_works_in_async_calls_and_is_named_in_sync_ones() -> None:
    """A coroutine policy is awaited; a sync call says which policy needs an async method."""

    async def slow_check(answer: Answer) -> bool:
        await asyncio.sleep(0)
        return True

    from cascadellm import ConfigurationError

    llm, _, _ = pair(policy=slow_check)
    assert text_of(asked(llm, "achat")[0]) == "Four, I am certain."
    with pytest.raises(ConfigurationError, match="slow_check"):
        llm.chat(user())


@pytest.mark.parametrize("endpoint", STREAMS)
def test_recorders_around_the_call_see_a_stream_read_elsewhere(endpoint: str) -> None:
    """A stream read after the `with` block still lands in the recorder around the call."""
    llm, _, _ = pair()
    question: Any = "x" if "complete" in endpoint else user()

    async def go() -> Any:
        with record_cascade() as recorder:
            stream = getattr(llm, endpoint)(question)
            if endpoint.startswith("a"):
                stream = await stream
        if endpoint.startswith("a"):
            async with contextlib.aclosing(stream):
                async for _ in stream:
                    pass
        else:
            for _ in stream:
                pass
        return recorder

    assert [t.answered_by for t in asyncio.run(go()).traces] == ["large"]


@pytest.mark.parametrize("endpoint", STREAMS)
def test_an_empty_stream_is_an_empty_answer(endpoint: str) -> None:
    """A last tier that says nothing yields one empty chunk with the record."""
    tiers = [FakeModel("x", name="s"), FakeModel("", name="l")]
    chunks = asked(CascadeLLM(tiers, Always()), endpoint)
    assert text_of(chunks[-1]) == ""
    assert chunks[-1].additional_kwargs["cascade"]["answered_by"] == "l"


@pytest.mark.parametrize("endpoint", ["chat", "astream_chat"])
def test_rate_limiters_are_asked_once_per_call(endpoint: str) -> None:
    """A rate limiter on the cascade is asked once, not once per tier."""

    class Limiter:
        count = 0

        def acquire(self) -> None:
            self.count += 1

        async def async_acquire(self) -> None:
            self.count += 1

    limiter = Limiter()
    asked(pair(rate_limiter=limiter)[0], endpoint)
    assert limiter.count == 1
    structured = CascadeLLM([FakeModel('{"n": 1}', tools=False)], rate_limiter=limiter)
    prompt = PromptTemplate("n?")
    assert structured.structured_predict(Number, prompt) == Number(n=1)
    assert list(structured.stream_structured_predict(Number, prompt))[-1] == Number(n=1)
    assert limiter.count == 3


def test_local_llm_works_alone_on_every_endpoint() -> None:
    """`LocalLLM` is a whole LLM by itself: text, logprobs, usage, streams, tools."""
    model = FakeModel("It is four.", name="small", logprob=-0.5)
    llm = LocalLLM(model, generate_kwargs={"temperature": 0.2})
    for endpoint in ENDPOINTS:
        response = asked(llm, endpoint, max_tokens=9)[-1]
        assert text_of(response) == "It is four."
        assert [entries[0].logprob for entries in response.logprobs] == [-0.5] * 3
        assert response.additional_kwargs["completion_tokens"] == 3
        assert model.calls[-1][1] == {"temperature": 0.2, "max_new_tokens": 9}
    assert llm.metadata.model_name == "small"
    assert llm.metadata.is_function_calling_model
    assert "FakeModel" not in repr(llm)


def test_local_llm_refuses_what_is_no_local_model() -> None:
    """Anything else is a ConfigurationError that says what is expected."""
    from cascadellm import ConfigurationError

    with pytest.raises(ConfigurationError, match="expects a LocalModel"):
        LocalLLM(3)  # type: ignore[arg-type]


def test_policies_of_a_single_call_do_not_linger() -> None:
    """A policy for one call leaves concurrent calls under the usual one."""

    async def go() -> list[Any]:
        llm, _, _ = pair()
        kinds = [{}, {"cascade_policy": Never()}] * 10
        return await asyncio.gather(*(llm.achat(user(), **kwargs) for kwargs in kinds))

    names = [r.raw["cascade"]["answered_by"] for r in asyncio.run(go())]
    assert names == ["large", "small"] * 10
