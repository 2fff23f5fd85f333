"""Drafts that are watched while they grow, and tiers asked ahead."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cascadellm import Answer, record_cascade
from cascadellm.answer import TokenScore
from cascadellm.policies import EarlyAbort, Hedge, PrefixCommit
from cascadellm.testing import FakeModel
from llamaindex_cascade import CascadeLLM, Price, Tier
from tests.llamaindex.li_support import CHOW, ENDPOINTS, Events, Spans, asked, openai, text_of
from tests.servers.openai_server import OpenAIServer, Said

STREAMS = ("stream_chat", "astream_chat", "stream_complete", "astream_complete")


def _model(text: str, logprobs: list[float], name: str, **settings: Any) -> FakeModel:
    words = [w if i == 0 else f" {w}" for i, w in enumerate(text.split())]
    tokens = tuple(TokenScore(w, lp) for w, lp in zip(words, logprobs, strict=True))
    return FakeModel(Answer(text, tokens=tokens, finish_reason="stop"), name=name, **settings)


HOPELESS = [-4.0] * 8
SURE = [-0.1] * 8
TEXT = "one two three four five six seven eight"


def _mean(answer: Answer) -> float:
    return sum(t.logprob for t in answer.tokens) / len(answer.tokens)


ABORT = EarlyAbort(_mean, -1.5, after_tokens=3)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_hopeless_draft_is_stopped_early(endpoint: str, spans: Spans) -> None:
    """The draft ends after the watched tokens, the next tier answers, and it is recorded."""
    small = _model(TEXT, HOPELESS, "small")
    llm = CascadeLLM([small, FakeModel("Right.", name="large")], ABORT | CHOW)
    response = asked(llm, endpoint)[-1]
    record = response.additional_kwargs["cascade"]
    assert text_of(response) == "Right."
    assert [a["action"] for a in record["attempts"]] == ["stopped", "accept"]
    assert small.closed == 1
    assert not spans.open_spans


def test_a_stopped_draft_is_charged_for_what_it_wrote() -> None:
    """The record counts the tokens of the draft up to where it was stopped."""
    tier = Tier(_model(TEXT, HOPELESS, "small"), price=Price(output=1e6))
    llm = CascadeLLM([tier, FakeModel("x", name="large")], ABORT)
    attempt = asked(llm, "chat")[0].raw["cascade"]["attempts"][0]
    assert attempt["output_tokens"] == 3
    assert attempt["cost_usd"] == pytest.approx(3.0)


@pytest.mark.parametrize("endpoint", STREAMS)
def test_a_good_prefix_streams_live(endpoint: str, events: Events) -> None:
    """Once committed, the draft streams as it is written, and it is accepted at the end."""
    small = _model(TEXT, SURE, "small")
    policy = PrefixCommit(_mean, -0.35, tokens=3)
    chunks = asked(CascadeLLM([small, FakeModel("x", name="large")], policy), endpoint)
    assert text_of(chunks[-1]) == TEXT
    assert "".join(c.delta or "" for c in chunks) == TEXT
    record = chunks[-1].additional_kwargs["cascade"]
    assert (record["answered_by"], record["attempts"][0]["action"]) == ("small", "accept")
    kinds = [type(e).__name__ for e in events.events if (e.span_id or "").startswith("CascadeLLM")]
    first = next(i for i, kind in enumerate(kinds) if "InProgress" in kind)
    assert "CascadeDecisionEvent" in kinds[first:]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_commitment_takes_the_same_decision_without_a_stream(endpoint: str) -> None:
    """A committed prefix stands on every endpoint, whatever its later tokens are worth."""
    small = _model(TEXT, [-0.1] * 3 + [-4.0] * 5, "small")
    policy = PrefixCommit(_mean, -0.35, tokens=3)
    response = asked(CascadeLLM([small, FakeModel("x", name="large")], policy), endpoint)[-1]
    assert text_of(response) == TEXT


@pytest.mark.parametrize("endpoint", STREAMS)
def test_an_uncommitted_draft_shows_nothing(endpoint: str) -> None:
    """A draft whose first tokens are worth little is stopped and leaves no trace in the stream."""
    small = _model(TEXT, [-1.0] * 8, "small")
    policy = PrefixCommit(_mean, -0.35, tokens=3)
    chunks = asked(CascadeLLM([small, FakeModel("Right.", name="large")], policy), endpoint)
    assert "".join(c.delta or "" for c in chunks) == "Right."
    assert chunks[-1].additional_kwargs["cascade"]["attempts"][0]["action"] == "stopped"


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_hosted_draft_is_watched_through_its_logprobs(endpoint: str) -> None:
    """An OpenAI-compatible tier is streamed and stopped by the scores in its chunks."""
    words = [(f" w{i}", -4.0, [(f" w{i}", -4.0)]) for i in range(60)]
    with OpenAIServer(Said(tokens=words, delay_s=0.002)) as server:
        tiers = [openai(server), FakeModel("Right.", name="large")]
        policy = EarlyAbort(_Reads(), -1.5, after_tokens=4)
        response = asked(CascadeLLM(tiers, policy), endpoint)[-1]
        assert server.requests[0]["stream"] is True
        assert server.requests[0]["logprobs"] is True
    attempts = response.additional_kwargs["cascade"]["attempts"]
    assert [a["action"] for a in attempts] == ["stopped", "accept"]


class _Reads:
    """A score that asks for logprobs."""

    name = "mean"
    reads = frozenset({"logprobs"})

    def __call__(self, answer: Answer) -> float | None:
        return _mean(answer) if answer.tokens else None


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("logprob", [-0.1, -2.0])
def test_hedging_changes_no_decision(endpoint: str, logprob: float) -> None:
    """With the next tier asked ahead, the same tier answers and the record is complete."""
    small = FakeModel("draft", name="small", logprob=logprob)
    large = FakeModel("Right.", name="large", delay_s=0.3)
    llm = CascadeLLM([small, large], Hedge(CHOW, after_s=0.0))
    with record_cascade() as recorder:
        response = asked(llm, endpoint)[-1]
    expected = "draft" if logprob > -1 else "Right."
    assert text_of(response) == expected
    (trace,) = recorder.traces
    assert trace.answered_by == ("small" if logprob > -1 else "large")
    assert not math.isnan(trace.latency_s)
