"""Constrained pairs on real modules, alone and as a tier of a cascade in both frameworks."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import jsonschema
import pytest

from cascadellm.answer import Request
from cascadellm.errors import MissingDependencyError
from cascadellm.local import LocalModel, SequentialPair, SpeculativePair, rules
from cascadellm.policies.validity import find_fault
from tests.local.random_schemas import random_schema, random_tool
from tests.local.spec_models import noisy_copy
from tests.local.tiny_models import CALCULATOR, tiny_llama, tiny_t5

pytest.importorskip("xgrammar")

RULES = [None, rules.Lossless(), rules.Ensemble(0.5), rules.Chow(0.3), rules.Opt(0.2)]
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green"]},
        "coats": {"type": "integer", "minimum": 1, "maximum": 3},
        "parts": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["colour", "coats", "parts"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Drafts and targets of both kinds of models; each draft is a noisy copy."""
    base = tmp_path_factory.mktemp("pairs")
    large = tiny_llama(base / "large", layers=3, width=64, seed=1, window=2048)
    folders = {"large": large, "t5-large": tiny_t5(base / "t5-large", layers=3, seed=2)}
    folders["small"] = noisy_copy(folders["large"], base / "small")
    folders["t5-small"] = noisy_copy(folders["t5-large"], base / "t5-small", noise=0.001)
    found = {name: LocalModel(path, max_new_tokens=250) for name, path in folders.items()}
    yield found
    for model in found.values():
        model.close()


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("kind", ["", "t5-"], ids=["causal", "t5"])
def test_a_pair_answers_by_the_schema(models: Any, kind: str, rule: Any) -> None:
    """Greedy and sampled, by tokens and by blocks, streamed or not, the answer fits."""
    small, large = models[f"{kind}small"], models[f"{kind}large"]
    for block, options in ((False, {}), (True, {"temperature": 1.0, "seed": 1})):
        pair = SpeculativePair(small, large, rule, gamma=4, block_verification=block)
        answer = pair.generate("Hi", response_schema=SCHEMA, **options)
        assert "stop" == answer.finish_reason
        jsonschema.validate(json.loads(answer.text), SCHEMA)
        assert answer.tokens is not None
        if not options:
            assert answer == list(pair.stream("Hi", response_schema=SCHEMA))[-1].answer


@pytest.mark.parametrize("kind", ["", "t5-"], ids=["causal", "t5"])
@pytest.mark.parametrize("gamma", [1, 4])
def test_a_lossless_pair_writes_what_the_constrained_target_writes(
    models: Any, kind: str, gamma: int
) -> None:
    """At temperature 0 text, tokens and scores are those of the target under the same schema."""
    small, large = models[f"{kind}small"], models[f"{kind}large"]
    pair = SpeculativePair(small, large, rules.Lossless(), gamma=gamma)
    for seed in range(4):
        options = {"response_schema": random_schema(seed), "max_new_tokens": 120}
        ours, theirs = pair.generate("Hi", **options), large.generate("Hi", **options)
        assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)
        assert [t.token for t in ours.tokens] == [t.token for t in theirs.tokens]
        assert [t.logprob for t in theirs.tokens] == pytest.approx(
            [t.logprob for t in ours.tokens], abs=1e-3
        )


def test_a_sequential_pair_is_constrained(models: Any) -> None:
    """The baseline obeys the same mask, whichever model writes."""
    pair = SequentialPair(models["small"], models["large"], rules.Chow(0.3))
    answer = pair.generate("Hi", response_schema=SCHEMA)
    jsonschema.validate(json.loads(answer.text), SCHEMA)


def test_a_pairs_calls_are_well_formed(models: Any) -> None:
    """Forced calls of random tools fit their schemas, or are reported as cut off."""
    pair = SpeculativePair(models["small"], models["large"], gamma=5)
    whole = 0
    for seed in range(8):
        tools = [random_tool(seed, "first"), CALCULATOR]
        options = {"temperature": 1.0, "seed": seed, "max_new_tokens": 300}
        answer = pair.generate("Hi", tools=tools, constrain_tools="one", **options)
        if answer.finish_reason != "length":
            request = Request(native=None, tools=tuple(tools), tool_required=True)
            assert find_fault(request, answer) is None
            whole += 1
    assert whole > 2


def test_async_batches_have_matchers_of_their_own(models: Any) -> None:
    """Concurrent constrained answers do not share a matcher."""
    pair = SpeculativePair(models["small"], models["large"], gamma=3)
    schemas = [SCHEMA, {"enum": ["only"]}, SCHEMA]

    async def together() -> list[Any]:
        return await asyncio.gather(
            *(pair.agenerate("Hi", response_schema=schema) for schema in schemas)
        )

    answers = asyncio.run(together())
    for schema, answer in zip(schemas, answers, strict=True):
        jsonschema.validate(json.loads(answer.text), schema)


def test_a_missing_extra_is_named_by_a_pair(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair without xgrammar refuses a schema as a single model does."""
    import sys

    monkeypatch.setitem(sys.modules, "xgrammar", None)
    with (
        LocalModel(models["large"].path, max_new_tokens=5) as large,
        pytest.raises(MissingDependencyError, match=r"cascadellm\[structured\]"),
    ):
        SpeculativePair(models["small"], large).generate("Hi", response_schema=SCHEMA)


def test_langchain_constrains_the_pair(models: Any) -> None:
    """`SpeculativeCascade` as a boundary: structured output of the pair, sync and streamed."""
    langchain = pytest.importorskip("langchain_cascade")
    tiers = [models["small"], models["large"]]
    llm = langchain.CascadeLLM(tiers, langchain.SpeculativeCascade(rules.TokenV3(0.3), gamma=4))
    for method in ("json_schema", "function_calling"):
        schema = {"title": "Paint", **SCHEMA}
        chain = llm.with_structured_output(schema, method=method, include_raw=True)
        found = chain.invoke("Which?")
        jsonschema.validate(found["parsed"], SCHEMA)
        assert "small+large" == found["raw"].response_metadata["cascade"]["answered_by"]
        streamed = list(llm.with_structured_output(schema, method=method).stream("Which?"))
        assert found["parsed"] == streamed[-1]


def test_llamaindex_constrains_the_pair(models: Any) -> None:
    """`SpeculativeCascade` as a boundary: predicted objects and forced calls of the pair."""
    llamaindex = pytest.importorskip("llamaindex_cascade")
    from llama_index.core.prompts import PromptTemplate
    from pydantic import BaseModel, Field

    class Paint(BaseModel):
        coats: int = Field(ge=1, le=3)
        glossy: bool

    tiers = [models["small"], models["large"]]
    llm = llamaindex.CascadeLLM(tiers, llamaindex.SpeculativeCascade(rules.TokenV3(0.3), gamma=4))
    prompt = PromptTemplate("Which?")
    found = llm.structured_predict(Paint, prompt)
    assert isinstance(found, Paint)
    assert found == list(llm.stream_structured_predict(Paint, prompt))[-1]
    assert found == asyncio.run(llm.astructured_predict(Paint, prompt))
