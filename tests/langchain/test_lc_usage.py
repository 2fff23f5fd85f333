"""Usage is counted once, caches never confuse two cascades (T7 to T11, T31, T32)."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import UsageMetadataCallbackHandler, get_usage_metadata_callback
from langchain_core.globals import set_llm_cache
from langchain_core.rate_limiters import InMemoryRateLimiter

from cascadellm.testing import FakeModel
from langchain_cascade import CascadeLLM, Price, Threshold, Tier, mean_logprob, min_logprob
from langchain_cascade import usage as usage_module
from tests.langchain.lc_tools import CHOW, PATHS, Recording, cascade, fakes

SMALL = {"input_tokens": 4, "output_tokens": 3, "total_tokens": 7}
LARGE = {"input_tokens": 4, "output_tokens": 3, "total_tokens": 7}


@pytest.fixture
def cache():
    """A global in-memory cache, removed afterwards."""
    store = InMemoryCache()
    set_llm_cache(store)
    yield store
    set_llm_cache(None)


@pytest.mark.parametrize("path", PATHS)
def test_t07_callback_totals_are_the_sum_over_tiers(path):
    """Handlers count each tier's tokens once; the caller sees the accepted tier's usage."""
    counted = UsageMetadataCallbackHandler()
    message = PATHS[path](cascade(), "hi", {"callbacks": [counted]})
    assert {"small": SMALL, "large": LARGE} == counted.usage_metadata
    if path != "astream_events":
        assert LARGE == message.usage_metadata


def test_t07_in_a_stream_only_the_last_chunk_has_usage():
    """Usage stands on the last chunk alone."""
    chunks = list(cascade().stream("hi"))
    assert LARGE == chunks[-1].usage_metadata
    assert not any(chunk.usage_metadata for chunk in chunks[:-1])


@pytest.mark.parametrize("path", ["invoke", "ainvoke", "stream", "astream"])
def test_t08_a_context_handler_counts_once(path):
    """`get_usage_metadata_callback()` around an escalation gives the true totals."""
    with get_usage_metadata_callback() as counted:
        PATHS[path](cascade(), "hi", {})
    assert {"small": SMALL, "large": LARGE} == counted.usage_metadata


def test_t08_double_counting_is_noticed(monkeypatch):
    """The totals are wrong when the outer run carries usage as well (mutation)."""
    monkeypatch.setattr(
        "langchain_cascade.flow.final_message",
        lambda outcome: (outcome.answer.native, outcome.answer.native.usage_metadata),
    )
    counted = UsageMetadataCallbackHandler()
    cascade().invoke("hi", {"callbacks": [counted]})
    assert LARGE != counted.usage_metadata["large"]


@pytest.mark.parametrize("path", ["stream", "astream"])
@pytest.mark.parametrize("logprob", [-0.1, -2.0])
def test_t09_summed_chunks_have_the_metadata_of_invoke(path, logprob):
    """Strings are not doubled and numbers not added while chunks are summed."""
    llm = cascade(logprob=logprob)
    whole = PATHS[path](llm, "hi", {}).response_metadata
    once = llm.invoke("hi").response_metadata
    assert set(once) == set(whole)
    for key in set(once) - {"cascade"}:
        assert once[key] == whole[key]
    assert once["cascade"]["tokens_by_tier"] == whole["cascade"]["tokens_by_tier"]


def _variants() -> list[Any]:
    small, large = fakes()
    other = FakeModel("another says so", name="large")
    named = Tier(small, name="small", kwargs={"temperature": 0.5})
    return [
        CascadeLLM([small, large], CHOW),
        CascadeLLM([small, large], Threshold(mean_logprob, -3.0)),
        CascadeLLM([small, large], Threshold(min_logprob, -0.35)),
        CascadeLLM([small, other], CHOW),
        CascadeLLM([named, large], CHOW),
        CascadeLLM([small, large], CHOW, on_exhausted="best"),
        CascadeLLM([small, large], lambda answer: True),
        CascadeLLM([small, large], lambda answer: False),
    ]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_t10_different_cascades_share_no_cache_entry(cache, asynchronous):
    """A different threshold, score, tier, option or function is another cache key."""
    variants = _variants()
    for llm in variants:
        path = PATHS["ainvoke" if asynchronous else "invoke"]
        path(llm, "hi", {})
        assert llm.engine.cascade.policies
    strings = {llm._get_llm_string() for llm in variants}
    assert len(variants) == len(strings)


def test_t10_equal_cascades_share_their_entry(cache):
    """The same tiers under an equal policy answer from the cache."""
    small, large = fakes()
    first = CascadeLLM([small, large], CHOW).invoke("hi")
    second = CascadeLLM([small, large], Threshold(mean_logprob, -0.35)).invoke("hi")
    assert first.content == second.content
    assert len(small.calls) == len(large.calls) == 1


def test_t10_no_secret_enters_the_identity():
    """What identifies a cascade holds no key of a tier."""
    openai = pytest.importorskip("langchain_openai")
    tier = openai.ChatOpenAI(model="gpt-x", api_key="sk-planted-secret")
    llm = CascadeLLM([fakes()[0], tier], CHOW, api_key="sk-planted-secret")
    shown = json.dumps(llm._identifying_params) + llm._get_llm_string() + repr(llm)
    assert "planted" not in shown


@pytest.mark.parametrize("path", ["invoke", "ainvoke"])
def test_t11_a_cache_hit_keeps_the_token_counts(cache, path):
    """A second identical call asks no tier, costs nothing and has the same token counts."""
    small, large = fakes()
    llm = CascadeLLM([small, large], CHOW)
    PATHS[path](llm, "hi", {})
    counted = UsageMetadataCallbackHandler()
    hit = PATHS[path](llm, "hi", {"callbacks": [counted]})
    assert len(small.calls) == len(large.calls) == 1
    assert {**LARGE, "total_cost": 0} == hit.usage_metadata
    assert not sum(u.get("total_tokens", 0) for u in counted.usage_metadata.values())


def test_t11_lost_counts_are_noticed(cache, monkeypatch):
    """The check fails when the counts are not put back (mutation)."""
    monkeypatch.setattr(usage_module, "recorded_usage", lambda message: None)
    llm = cascade()
    llm.invoke("hi")
    assert {"total_cost": 0} == llm.invoke("hi").usage_metadata


def test_t31_usage_is_the_accepted_tiers_own():
    """After an escalation the usage is not the sum, because it is read as context size."""
    message = cascade(large="a much longer answer than that").invoke("hi")
    assert 6 == message.usage_metadata["output_tokens"]
    totals = message.response_metadata["cascade"]["tokens_by_tier"]
    assert {"small": {"input": 4, "output": 3}, "large": {"input": 4, "output": 6}} == totals


def test_t32_no_usage_like_name_in_the_record():
    """No key of the record, at any depth, is one that trackers would count."""

    def names(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value) | set().union(*map(names, value.values()))
        return set().union(*map(names, value)) if isinstance(value, list) else set()

    found = names(cascade().invoke("hi").response_metadata["cascade"])
    assert not found & {"usage", "token_usage", "usage_metadata"}


def test_the_record_is_plain_json():
    """The record survives a JSON round trip, infinities included."""
    llm = cascade(Threshold(mean_logprob, math.inf))
    record = llm.invoke("hi").response_metadata["cascade"]
    assert record == json.loads(json.dumps(record, allow_nan=False))


def test_cost_is_the_sum_over_paid_calls():
    """Cost is price times usage over both tiers, and unknown without a price."""
    small, large = fakes()
    tiers = [Tier(small, price=Price(1.0, 2.0)), Tier(large, price=Price(10.0, 20.0))]
    record = CascadeLLM(tiers, CHOW).invoke("hi").response_metadata["cascade"]
    assert (4 * 1 + 3 * 2 + 4 * 10 + 3 * 20) / 1e6 == pytest.approx(record["cost_usd"])
    unknown = CascadeLLM([tiers[0], large], CHOW).invoke("hi").response_metadata["cascade"]
    assert unknown["cost_usd"] is None


def test_a_hundred_concurrent_calls_keep_their_own_records():
    """Each of a hundred concurrent answers carries the record of its own call."""
    small = FakeModel(lambda messages: messages[-1]["content"], name="small", delay_s=0.002)
    llm = CascadeLLM([small, fakes()[1]], lambda answer: int(answer.text) % 3 == 0)

    async def ask() -> list[Any]:
        return await asyncio.gather(*(llm.ainvoke(str(i)) for i in range(100)))

    for i, message in enumerate(asyncio.run(ask())):
        record = message.response_metadata["cascade"]
        assert ("large" if i % 3 == 0 else "small") == record["answered_by"]
        assert message.text == ("large says so" if i % 3 == 0 else str(i))


def test_a_rate_limiter_is_respected():
    """The inherited rate limiter is asked once per call."""
    asked = []

    class Counting(InMemoryRateLimiter):
        def acquire(self, *, blocking: bool = True) -> bool:
            asked.append(blocking)
            return True

    llm = cascade(options={"rate_limiter": Counting(requests_per_second=1)})
    llm.invoke("hi")
    assert [True] == asked


def test_usage_survives_a_run_without_handlers():
    """Without any handler the message still carries usage and record."""
    message = cascade(logprob=-0.1).invoke("hi")
    assert SMALL == message.usage_metadata
    assert "small" == message.response_metadata["cascade"]["answered_by"]


def test_only_tier_runs_show_usage():
    """The cascade's own run ends with a usage-free message, tier runs with their usage."""
    seen = Recording()
    cascade().invoke("hi", {"callbacks": [seen]})
    found = {r.name: r.end.generations[0][0].message.usage_metadata for r in seen.models}
    assert {"CascadeLLM": None, "small": SMALL, "large": LARGE} == found
