"""Token scores out of a real OpenAI client's responses, and what happens without them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from llama_index.core.llms import MockLLM

from cascadellm import Price, ToolCall, margin, min_logprob
from cascadellm.testing import FakeModel
from llamaindex_cascade import (
    Always,
    CascadeLLM,
    Never,
    Threshold,
    Tier,
    Valid,
    mean_logprob,
    record_cascade,
)
from tests.llamaindex.li_support import ENDPOINTS, asked, openai, pair, text_of
from tests.servers.openai_server import OpenAIServer, Said

UNLIKELY = Said(
    tokens=[("Par", -2.3, [("Lon", -0.22), ("Par", -2.3)]), ("is", -0.1, [("is", -0.1)])],
)
READS_ALL = Threshold(min_logprob, -9.0)


def _cascade(server: OpenAIServer, policy: Any = READS_ALL, **settings: Any) -> CascadeLLM:
    return CascadeLLM([openai(server, **settings), FakeModel("x", name="large")], policy)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("top", [0, 3])
def test_t25_the_score_is_the_sampled_tokens(endpoint: str, top: int) -> None:
    """Where the sampled token is not the likeliest, the score is the sampled token's."""
    with OpenAIServer(UNLIKELY) as server:
        response = asked(_cascade(server, top_logprobs=top), endpoint)[-1]
    assert response.additional_kwargs["cascade"]["attempts"][0]["score"] == -2.3
    assert text_of(response) == "Paris"


def test_t25_would_notice_the_lists_upstream_gives() -> None:
    """Upstream's own list reads -0.22 for this answer, so the check has power."""
    with OpenAIServer(UNLIKELY) as server:
        llm = openai(server, logprobs=True, top_logprobs=3)
        response = asked(llm, "chat")[0]
    assert min(entries[0].logprob for entries in response.logprobs) == -0.22


@pytest.mark.parametrize("endpoint", ["complete", "acomplete", "chat", "achat"])
def test_t26_complete_and_chat_give_the_same_score(endpoint: str) -> None:
    """`complete` on a chat tier keeps the logprobs that core's conversion drops."""
    with OpenAIServer(UNLIKELY) as server:
        response = asked(_cascade(server, Threshold(mean_logprob, -9)), endpoint)[0]
        assert server.requests[0]["path"].endswith("/chat/completions")
    assert response.raw["cascade"]["attempts"][0]["score"] == pytest.approx(-1.2)


@pytest.mark.parametrize("endpoint", ["complete", "chat", "acomplete", "achat"])
def test_t26_a_completion_tier_is_scored_too(endpoint: str) -> None:
    """The completion endpoint's token logprobs are read on chat and complete calls."""
    with OpenAIServer(UNLIKELY) as server:
        llm = _cascade(server, is_chat_model=False, is_function_calling_model=False)
        response = asked(llm, endpoint)[0]
        assert server.requests[0]["path"] == "/v1/completions"
    assert response.raw["cascade"]["attempts"][0]["score"] == -2.3


@pytest.mark.parametrize("endpoint", ["stream_chat", "astream_complete"])
def test_scores_of_a_live_stream_are_gathered(endpoint: str) -> None:
    """A live last tier's answer carries the scores that its chunks held."""
    from cascadellm.events import TierAnswered
    from cascadellm.testing import EventRecorder

    recorder = EventRecorder()
    with OpenAIServer(UNLIKELY) as server:
        last = openai(server, logprobs=True, top_logprobs=2)
        llm = CascadeLLM([FakeModel("x", name="s"), last], Always(), handlers=[recorder])
        asked(llm, endpoint)
    answer = recorder.of(TierAnswered)[-1].answer
    assert [token.logprob for token in answer.tokens] == [-2.3, -0.1]
    assert answer.text == "Paris"


def test_logprobs_are_requested_only_where_a_policy_reads_them() -> None:
    """A boundary without a score asks for none, and the last tier is never asked for any."""
    with OpenAIServer(Said.text("ok")) as server:
        tiers = [
            Tier(openai(server), name="a"),
            Tier(openai(server), name="b"),
            Tier(openai(server), name="c"),
        ]
        policies = [Threshold(mean_logprob, 0), Threshold(margin, 2.0)]
        asked(CascadeLLM(tiers, policies), "chat")
        asked(CascadeLLM(tiers[:2], Valid()), "chat")
    wanted = [(r.get("logprobs"), r.get("top_logprobs")) for r in server.requests]
    assert wanted == [(True, 0), (True, 5), (None, None), (None, None)]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_t27_missing_logprobs_escalate_with_a_reason(endpoint: str) -> None:
    """A tier without logprobs never accepts by default."""
    with pytest.warns(UserWarning, match="gives no token logprobs"):
        llm = CascadeLLM([MockLLM(max_tokens=2), FakeModel("x", name="l")], READS_ALL)
    record = asked(llm, endpoint)[-1].additional_kwargs["cascade"]
    assert [a["code"] for a in record["attempts"]] == ["no_logprobs", "last"]


def test_t27_tool_calls_of_a_provider_have_no_scores() -> None:
    """A hosted tool call without logprobs defers under a threshold, and says why."""
    spec = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with OpenAIServer(Said(tool_calls=[("c", "f", "{}")])) as server:
        llm = _cascade(server)
        record = asked(llm, "chat", tools=[spec])[0].raw["cascade"]
    assert record["attempts"][0]["code"] == "no_logprobs"


def test_no_warning_where_logprobs_are_not_read_or_can_be_given() -> None:
    """The warning is for tiers that are known to give none, under a policy that reads them."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CascadeLLM([MockLLM(), FakeModel("x")], Valid())
        CascadeLLM([FakeModel("x", name="a"), MockLLM()], READS_ALL)
        pair()


def test_the_providers_own_refusal_and_filter_are_seen() -> None:
    """A refusal field, a content filter and a cut-off reach `Valid`."""
    cases = {
        "refused": [
            Said(refusal="I cannot.", usage=None),
            Said.text("x", finish_reason="content_filter"),
        ],
        "length": [Said.text("x", finish_reason="length")],
        "empty": [Said()],
    }
    for code, replies in cases.items():
        for reply in replies:
            with OpenAIServer(reply) as server:
                record = asked(_cascade(server, Valid()), "chat")[0].raw["cascade"]
            assert record["attempts"][0]["code"] == code


def test_reasoning_of_a_provider_is_apart_and_unscored() -> None:
    """Reasoning stands in its own block; only the answer after it is scored."""
    thinking = [("Let me think.", -5.0, ()), ("Four.", -0.1, ())]

    def reply(request: Any) -> Said:
        return Said(tokens=thinking[1:], reasoning="Let me think.")

    with OpenAIServer(reply) as server:
        response = asked(_cascade(server), "chat")[0]
    assert [b.block_type for b in response.message.blocks] == ["thinking", "text"]
    assert response.raw["cascade"]["attempts"][0]["score"] == -0.1


def test_reasoning_tokens_in_the_logprobs_are_marked() -> None:
    """Where logprobs cover the reasoning too, its tokens are told apart by the text."""
    from cascadellm.answer import TokenScore
    from cascadellm.logprobs import part_of

    tokens = [TokenScore(t, -1.0) for t in ("Let", " me", " think", "\n", "Four", ".")]
    marked = part_of(tuple(tokens), "Four.", "Let me think", False)
    assert [t.part for t in marked] == ["reasoning"] * 4 + ["answer"] * 2


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_usage_and_cost_are_the_providers_numbers(endpoint: str) -> None:
    """Cost is price times reported usage, over all tiers, also in streams."""
    with OpenAIServer(Said.text("two words", usage=(1000, 200))) as server:
        price = Price(input=1.0, output=10.0)
        kwargs = {"stream_options": {"include_usage": True}}
        tiers = [Tier(openai(server), name=n, price=price, kwargs=kwargs) for n in ("a", "b")]
        response = asked(CascadeLLM(tiers, Always()), endpoint)[-1]
    record = response.additional_kwargs["cascade"]
    assert record["cost_usd"] == pytest.approx(2 * (1000 * 1 + 200 * 10) / 1e6)
    assert record["tokens_by_tier"] == {
        "a": {"input": 1000, "output": 200},
        "b": {"input": 1000, "output": 200},
    }
    assert response.additional_kwargs["prompt_tokens"] == 1000


def test_unreported_usage_is_unknown_and_never_zero() -> None:
    """A priced tier whose provider reports no usage makes the cost unknown."""
    with OpenAIServer(Said.text("ok", usage=None)) as server:
        llm = CascadeLLM([Tier(openai(server), price=Price(input=1.0))])
        record = asked(llm, "chat")[0].raw["cascade"]
    assert record["cost_usd"] is None
    assert record["attempts"][0]["input_tokens"] is None


def test_a_providers_error_is_escalated_past_and_recorded() -> None:
    """A rate limit of the real client escalates with its code; on the last tier it is raised."""
    from openai import RateLimitError

    with OpenAIServer(Said(status=429)) as server:
        llm = CascadeLLM([openai(server), FakeModel("x", name="large")], Never())
        record = asked(llm, "chat")[0].raw["cascade"]
        assert [a["code"] for a in record["attempts"]] == ["rate_limit", "last"]
        last = CascadeLLM([FakeModel("x", name="small"), openai(server)], Always())
        for endpoint in ENDPOINTS:
            with pytest.raises(RateLimitError) as caught:
                asked(last, endpoint)
            assert any("hosted" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("endpoint", ["stream_chat", "astream_chat"])
def test_a_stream_that_breaks_after_a_chunk_is_not_asked_again(endpoint: str) -> None:
    """After text was shown the error reaches the caller, and the record says so."""
    with OpenAIServer(Said.text("one two three four", break_after=3)) as server:
        tiers = [FakeModel("x", name="s"), Tier(openai(server), name="large", retry=3)]
        llm = CascadeLLM(tiers, Always(), on_exhausted="best")
        with record_cascade() as recorder:
            chunks = asked(llm, endpoint)
    # the client library takes a closed connection as the end of the stream
    assert text_of(chunks[-1]) == "one two"
    assert len(server.requests) == 1
    assert len(recorder.traces) == 1


def test_structured_tool_answers_of_local_tiers_are_scored() -> None:
    """A local tier's tool call has token scores, unlike a provider's."""
    spec = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    small = FakeModel(ToolCall("f", {}), name="small", logprob=-0.2)
    llm = CascadeLLM([small, FakeModel("x", name="l")], Threshold(mean_logprob, -0.35))
    record = asked(llm, "chat", tools=[spec])[0].raw["cascade"]
    assert record["attempts"][0]["score"] == pytest.approx(-0.2)
