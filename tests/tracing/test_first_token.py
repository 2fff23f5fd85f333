"""Streams say when their first part came, in both frameworks; whole answers do not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cascadellm import EarlyAbort, mean_logprob, record_cascade
from cascadellm.testing import FakeModel
from tests.langchain.lc_tools import PATHS
from tests.llamaindex.li_support import asked


def _tiers() -> list[FakeModel]:
    small = FakeModel("maybe perhaps possibly five", name="small", logprob=-3.0)
    return [small, FakeModel("It is four.", name="large", delay_s=0.02)]


def _attempts(framework: str, path: str) -> Any:
    policy = EarlyAbort(mean_logprob, -1, after_tokens=2)
    with record_cascade() as recorder:
        if framework == "langchain":
            from langchain_cascade import CascadeLLM

            PATHS[path](CascadeLLM(_tiers(), policy), "hi", {})
        else:
            from llamaindex_cascade import CascadeLLM as IndexCascade

            asked(IndexCascade(_tiers(), policy), path)
    return recorder.traces[0].attempts


@pytest.mark.parametrize(
    ("framework", "path"),
    [
        ("langchain", "stream"),
        ("langchain", "astream"),
        ("llamaindex", "stream_chat"),
        ("llamaindex", "astream_chat"),
        ("llamaindex", "astream_complete"),
    ],
)
def test_a_streamed_tier_records_its_first_token(framework: str, path: str) -> None:
    """The live tier's first part arrives after its delay and before its end."""
    last = _attempts(framework, path)[-1]
    assert last.first_token_s is not None
    assert 0.015 < last.first_token_s < last.latency_s


@pytest.mark.parametrize(("framework", "path"), [("langchain", "invoke"), ("llamaindex", "chat")])
def test_a_whole_answer_has_no_first_token(framework: str, path: str) -> None:
    """A tier that is not streamed records no time of its first token."""
    assert _attempts(framework, path)[-1].first_token_s is None


def test_concurrent_streams_record_their_own_times() -> None:
    """The time belongs to the call, not to the model."""
    from langchain_cascade import CascadeLLM

    async def together() -> None:
        async def one(delay_s: float) -> None:
            tiers = [FakeModel("d", name="small"), FakeModel("a b", name="large", delay_s=delay_s)]
            async for _ in CascadeLLM(tiers, lambda answer: True).astream("hi"):
                pass

        await asyncio.gather(one(0.02), one(0.3))

    with record_cascade() as recorder:
        asyncio.run(together())
    first, second = sorted(trace.attempts[-1].first_token_s or 0 for trace in recorder.traces)
    assert first < 0.2 < second
