"""A token-level boundary inside `CascadeLLM` of both frameworks, decoder-only and T5."""

from __future__ import annotations

import asyncio
import json
import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import pytest

from cascadellm.local import LocalModel, rules
from cascadellm.policies import Threshold
from cascadellm.scores import mean_logprob
from cascadellm.testing import FakeModel
from tests.local.spec_models import noisy_copy
from tests.local.tiny_models import tiny_llama, tiny_t5

langchain = pytest.importorskip("langchain_cascade")
llamaindex = pytest.importorskip("llamaindex_cascade")

ASKS = ["Hi", "What is 2 + 3?"]
Said = tuple[str, list[str], dict[str, Any]]


def by_langchain(way: str, llm: Any, ask: str, **kwargs: Any) -> Said:
    """Return text, tokens and record of one way to call a LangChain model."""
    if way == "stream":
        message = reduce(operator.add, llm.stream(ask, **kwargs))
    elif way == "astream":

        async def joined() -> Any:
            return reduce(operator.add, [chunk async for chunk in llm.astream(ask, **kwargs)])

        message = asyncio.run(joined())
    elif way == "ainvoke":
        message = asyncio.run(llm.ainvoke(ask, **kwargs))
    else:
        message = llm.invoke(ask, **kwargs)
    return said(message.text, message.response_metadata["cascade"])


def by_llamaindex(way: str, llm: Any, ask: str, **kwargs: Any) -> Said:
    """Return text, tokens and record of one way to call a LlamaIndex model."""
    from llama_index.core.llms import ChatMessage

    asked = [ChatMessage(ask)]

    async def last() -> Any:
        return [chunk async for chunk in await llm.astream_chat(asked, **kwargs)][-1]

    calls: dict[str, Callable[[], Any]] = {
        "stream": lambda: list(llm.stream_chat(asked, **kwargs))[-1],
        "astream": lambda: asyncio.run(last()),
        "ainvoke": lambda: asyncio.run(llm.achat(asked, **kwargs)),
        "invoke": lambda: llm.chat(asked, **kwargs),
    }
    found = calls[way]()
    return said(found.message.content, found.additional_kwargs["cascade"])


def said(text: str, record: dict[str, Any]) -> Said:
    """Return what was said, with the tokens of the record."""
    spoken = record.get("speculation") or {"tokens": []}
    return text, [entry[0] for entry in spoken["tokens"]], record


FRAMEWORKS = {
    "langchain": (langchain, by_langchain),
    "llamaindex": (llamaindex, by_llamaindex),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A pair of each kind; both drafts are noisy copies that are rejected now and then."""
    base = tmp_path_factory.mktemp("folded")
    causal = tiny_llama(base / "large", layers=2, width=64, seed=1)
    t5 = tiny_t5(base / "t5-large", layers=2, seed=2)
    paths = {
        "causal": (noisy_copy(causal, base / "small"), causal),
        "t5": (noisy_copy(t5, base / "t5-small", noise=0.001), t5),
    }
    found = {
        kind: [
            LocalModel(path, name=name, max_new_tokens=24)
            for path, name in zip(both, ("small", "large"), strict=True)
        ]
        for kind, both in paths.items()
    }
    yield found
    for both in found.values():
        for model in both:
            model.close()


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> Any:
    return FRAMEWORKS[request.param]


def cascade(framework: Any, models: Any, rule: Any, gamma: Any = 3, **kwargs: Any) -> Any:
    room = framework[0]
    return room.CascadeLLM(list(models), room.SpeculativeCascade(rule, gamma=gamma), **kwargs)


@pytest.mark.parametrize("gamma", [*range(1, 9), "adaptive"])
@pytest.mark.parametrize("kind", ["causal", "t5"])
def test_greedy_lossless_is_the_large_model_in_a_cascade(pairs, kind, gamma, framework) -> None:
    """Token for token, invoked and streamed, sync and async."""
    call = framework[1]
    llm = cascade(framework, pairs[kind], rules.Lossless(), gamma)
    for ask in ASKS:
        alone = pairs[kind][1].generate(ask)
        expected = (alone.text, [token.token for token in alone.tokens])
        for way in ("invoke", "stream", "ainvoke", "astream"):
            assert expected == call(way, llm, ask)[:2], way


COUNTERS = {"rule", "alpha", "gamma", "drafted", "accepted", "rejected", "verify_calls",
            "draft_steps", "tokens"}  # fmt: skip


@pytest.mark.parametrize("way", ["invoke", "stream"])
@pytest.mark.parametrize("kind", ["causal", "t5"])
def test_the_record_is_that_of_one_attempt_of_a_pair(pairs, kind, way, framework) -> None:
    """One attempt named by both, the upper index, spans over the text, plain JSON counters."""
    llm = cascade(framework, pairs[kind], rules.TokenV3(0.3))
    text, tokens, record = framework[1](way, llm, ASKS[1])
    assert ("small+large", 1) == (record["answered_by"], record["tier"])
    (attempt,) = record["attempts"]
    assert ("small+large", 1, "accept") == tuple(attempt[k] for k in ("name", "tier", "action"))
    assert len(tokens) == attempt["output_tokens"]
    assert {"input", "output"} == set(record["tokens_by_tier"]["small+large"])
    spoken = record["speculation"]
    assert set(spoken) == COUNTERS
    assert ("TokenV3", 0.3, 3) == (spoken["rule"], spoken["alpha"], spoken["gamma"])
    assert len(tokens) == len(spoken["tokens"])
    assert record == json.loads(json.dumps(record, allow_nan=False))
    ends = [0]
    for start, end, name in record["spans"]:
        assert start == ends[-1]
        assert name in ("small", "large")
        ends.append(end)
    assert len(text) == ends[-1]
    assert record["escalated"] == any(name == "large" for *_, name in record["spans"])


def test_an_answer_that_the_draft_wrote_alone_is_not_escalated(pairs, framework) -> None:
    """`escalated` tells whether some character was written by the target."""
    draft_only = cascade(framework, pairs["causal"], rules.TokenV3(1.0))
    text, _, record = framework[1]("invoke", draft_only, ASKS[0])
    assert [[0, len(text), "small"]] == [list(span) for span in record["spans"]]
    assert not record["escalated"]
    assert 1 == record["tier"]
    lossless = cascade(framework, pairs["causal"], rules.Lossless())
    record = framework[1]("invoke", lossless, ASKS[0])[2]
    assert {"small", "large"} == {name for *_, name in record["spans"]}
    assert record["escalated"]


@pytest.mark.parametrize("level", [-1e9, 1.0])
@pytest.mark.parametrize("way", ["invoke", "stream", "astream"])
def test_an_answer_level_policy_reads_the_pairs_scores(pairs, way, level, framework) -> None:
    """The next boundary decides on the mean log-probability of pi, either way."""
    room, call = framework
    rule = rules.TokenV3(0.3)
    policies = [room.SpeculativeCascade(rule, gamma=3), Threshold(mean_logprob, level)]
    checked = FakeModel("checked", name="checked")
    llm = room.CascadeLLM([*pairs["causal"], checked], policies)
    by_pair = cascade(framework, pairs["causal"], rule)
    text, _, own = call("invoke", by_pair, ASKS[1])
    found, _, record = call(way, llm, ASKS[1])
    from cascadellm.local import SpeculativePair

    alone = SpeculativePair(*pairs["causal"], rule, 3).generate(ASKS[1])
    first = record["attempts"][0]
    assert "small+large" == first["name"]
    assert first["score"] == pytest.approx(mean_logprob(alone), abs=1e-5)
    if level < 0:
        assert (text, "small+large") == (found, record["answered_by"])
        assert own["spans"] == record["spans"]
    else:
        assert ("checked", "checked") == (found, record["answered_by"])
        assert record["escalated"]


def test_text_is_streamed_as_it_is_accepted(pairs, framework) -> None:
    """The first text comes before the target has been asked for the rest."""
    room, _ = framework
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    llm = cascade(framework, pairs["t5"], rules.Lossless(), 2)
    hook = pairs["t5"][1].module.register_forward_pre_hook(count)
    try:
        if room is langchain:
            stream = (chunk.text for chunk in llm.stream(ASKS[0]))
        else:
            stream = (chunk.delta or "" for chunk in llm.stream_complete(ASKS[0]))
        seen = [calls for text in stream if text]
    finally:
        hook.remove()
    assert len(seen) > 3
    assert seen[0] <= 2
    assert seen[-1] > 3 * seen[0]
    assert seen == sorted(seen)


@pytest.mark.parametrize("way", ["invoke", "astream"])
@pytest.mark.parametrize("kind", ["causal", "t5"])
def test_call_arguments_reach_both_models(pairs, kind, way, framework) -> None:
    """Temperature, seed, token limit and stop strings of a call act as on the pair itself."""
    from cascadellm.local import SpeculativePair

    room, call = framework
    rule = rules.TokenV3(0.3)
    policy = room.SpeculativeCascade(rule, gamma=3, block_verification=True)
    llm = room.CascadeLLM(list(pairs[kind]), policy)
    pair = SpeculativePair(*pairs[kind], rule, 3, block_verification=True)
    sampled = pair.generate(ASKS[0], temperature=1.0, seed=4)
    stop = sampled.text[3:6]
    for arguments in (
        {"temperature": 1.0, "seed": 4},
        {"temperature": 1.0, "seed": 4, "stop": [stop]},
        {"temperature": 0.7, "seed": 5, "max_new_tokens": 7},
    ):
        alone = pair.generate(ASKS[0], **arguments)
        text, tokens, record = call(way, llm, ASKS[0], **arguments)
        assert (alone.text, [t.token for t in alone.tokens]) == (text, tokens)
        assert alone.speculation["accepted"] == record["speculation"]["accepted"]
    assert stop in sampled.text
    assert stop not in pair.generate(ASKS[0], temperature=1.0, seed=4, stop=[stop]).text


def test_a_token_cascade_is_a_boundary_too(pairs, framework) -> None:
    """The sequential baseline writes the same greedy text, one token per round."""
    room, call = framework
    rule = rules.Chow(0.4)
    slow = room.CascadeLLM(list(pairs["causal"]), room.TokenCascade(rule))
    fast = cascade(framework, pairs["causal"], rule)
    for way in ("invoke", "stream"):
        text, tokens, record = call(way, slow, ASKS[1])
        assert call(way, fast, ASKS[1])[:2] == (text, tokens)
        assert "small+large" == record["answered_by"]
        assert record["speculation"]["gamma"] is None
        assert len(tokens) == record["speculation"]["draft_steps"]


def test_the_page_of_a_trace_shows_both_models_at_every_token(pairs, framework) -> None:
    """Each token of the answer is coloured by its writer and hovers both models' candidates."""
    llm = cascade(framework, pairs["t5"], rules.Lossless())
    with framework[0].record_cascade() as recorder:
        text, _, record = framework[1]("invoke", llm, ASKS[1])
    (trace,) = recorder.traces
    for page in (trace.to_html(text), trace._repr_html_()):
        assert "not asked" not in page
        titles = page.count("title=")
        assert titles == page.count("draft: ") == page.count("target: ")
        for name in {name for *_, name in record["spans"]}:
            assert f"written by {name}" in page
    spoken = record["speculation"]["tokens"]
    assert len(spoken) >= trace.to_html(text).count("title=") > len(spoken) / 2


def test_a_pair_is_a_tier_of_its_own(pairs, framework) -> None:
    """`SpeculativePair` stands as one tier below another model, and alone."""
    from cascadellm.local import SpeculativePair

    room, call = framework
    pair = SpeculativePair(*pairs["causal"], rules.Lossless(), 3, name="pair")
    text = pairs["causal"][1].generate(ASKS[0]).text
    for tiers, policy in (
        ([pair], None),
        ([pair, FakeModel("x", name="x")], Threshold(mean_logprob, -1e9)),
    ):
        llm = room.CascadeLLM(tiers) if policy is None else room.CascadeLLM(tiers, policy)
        found, _, record = call("stream", llm, ASKS[0])
        assert (text, "pair") == (found, record["answered_by"])
        assert record["speculation"]["verify_calls"] > 0


def test_the_adapters_re_export_the_policies_and_rules(framework) -> None:
    """They are the engine's own names, and `rules` holds every rule."""
    room, _ = framework
    from cascadellm import local

    for name in ("SpeculativeCascade", "SpeculativePair", "TokenCascade"):
        assert getattr(room, name) is getattr(local, name)
    for name in rules.__all__:
        if isinstance(getattr(rules, name), type) and name != "Rule":
            assert getattr(room, name) is getattr(rules, name)


def test_mutation_a_pair_that_answers_as_its_draft_is_noticed(pairs, monkeypatch) -> None:
    """If the loop kept every draft, the cascade would no longer be the large model."""
    from cascadellm.local import decode

    monkeypatch.setattr(decode, "leading", len)
    check = partial(test_greedy_lossless_is_the_large_model_in_a_cascade, pairs, "causal", 3)
    with pytest.raises(AssertionError):
        check(FRAMEWORKS["langchain"])
