"""Constrained answers: whatever the model would rather write, the result fits the schema."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from cascadellm.answer import ToolCall
from cascadellm.errors import ConfigurationError, MissingDependencyError, ModelError
from cascadellm.local import LocalModel
from tests.local.tiny_models import CALCULATOR, script_model

pytest.importorskip("xgrammar")

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green"]},
        "sure": {"type": "boolean"},
        "parts": {
            "type": "array",
            "items": {"enum": [1, 2]},
            "minItems": 2,
            "maxItems": 3,
        },
    },
    "required": ["colour", "sure", "parts"],
    "additionalProperties": False,
}
SAMPLED: list[dict[str, Any]] = [{}] + [{"temperature": 1.5, "seed": seed} for seed in range(6)]


@pytest.fixture(params=["llama", "t5"])
def model(request: pytest.FixtureRequest) -> LocalModel:
    """A random model of either family: nothing of what it writes is JSON by itself."""
    found: LocalModel = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("overrides", SAMPLED)
def test_a_random_model_answers_by_the_schema(model: LocalModel, overrides: dict[str, Any]) -> None:
    """Greedy or sampled, the answer is JSON that satisfies the schema."""
    options = {"max_new_tokens": 250, "response_schema": SCHEMA, **overrides}
    answer = model.generate("Hi", **options)
    jsonschema.validate(json.loads(answer.text), SCHEMA)
    assert "stop" == answer.finish_reason
    free = model.generate("Hi", **{**options, "response_schema": None})
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(free.text)


def test_top_k_never_leaves_only_forbidden_tokens(llama: LocalModel) -> None:
    """The mask comes before top-k and top-p, so something allowed is always left."""
    answer = llama.generate(
        "Hi",
        response_schema=SCHEMA,
        temperature=1.0,
        seed=1,
        top_k=1,
        top_p=0.1,
        max_new_tokens=250,
    )
    jsonschema.validate(json.loads(answer.text), SCHEMA)


def test_scores_stay_those_of_the_model(llama: LocalModel) -> None:
    """A token that was forced shows how unlikely the model itself found it."""
    answer = llama.generate("Hi", response_schema=SCHEMA, max_new_tokens=3)
    free = llama.generate("Hi", max_new_tokens=1)
    assert answer.tokens is not None
    assert free.tokens is not None
    assert "{" == answer.tokens[0].token
    assert free.tokens[0].top == answer.tokens[0].top
    assert answer.tokens[0].logprob < free.tokens[0].logprob


def test_streams_and_batches_are_constrained_alike(model: LocalModel) -> None:
    """Each request follows its own grammar, streamed or in a batch with others."""
    options = {"max_new_tokens": 250, "response_schema": SCHEMA}
    single = model.generate("Hi", **options)
    assert single == list(model.stream("Hi", **options))[-1].answer
    for answer in model.batch(["Hi", "Ho, what else?", "x"], **options):
        jsonschema.validate(json.loads(answer.text), SCHEMA)


def test_tool_calls_name_a_given_tool_with_fitting_arguments(tmp_path: Path) -> None:
    """A model trained to write a wrong call writes a right one; its other text is untouched."""
    wrong = '<think>\nhm\n</think>\n\nSo:\n<tool_call>\n{"name": "nope", "args": [1]}\n</tool_call>'
    with LocalModel(script_model(tmp_path / "wrong", wrong)) as model:
        free = model.generate("Hi", tools=[CALCULATOR])
        assert [ToolCall("nope", {}, raw="{}")] == list(free.tool_calls)
        answer = model.generate("Hi", tools=[CALCULATOR], constrain_tools=True)
    assert ("So:", "hm") == (answer.text, answer.reasoning)
    if answer.finish_reason == "tool_calls":
        assert "calc" == answer.tool_calls[0].name
        jsonschema.validate(answer.tool_calls[0].arguments, CALCULATOR["function"]["parameters"])  # type: ignore[index]
    started = "".join(token.token for token in answer.tokens or ())
    assert '<tool_call>\n{"name": "calc", "arguments": {"x":' in started


def test_a_schema_beside_tools_allows_either(llama: LocalModel) -> None:
    """With both, the answer is a well-formed call or fits the schema."""
    answer = llama.generate(
        "Hi", tools=[CALCULATOR], constrain_tools=True, response_schema=SCHEMA, max_new_tokens=100
    )
    written = "".join(token.token for token in answer.tokens or ())
    assert written.startswith(("<tool_call>\n{", "{"))


def test_a_reasoning_block_comes_before_the_schema(tmp_path: Path) -> None:
    """Where the template opens a block, the model thinks freely and then answers by the schema."""
    path = script_model(tmp_path / "thinks", 'hm\n</think>\n\n{"sure": true}', open_think=True)
    schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
    with LocalModel(path, chat_template_kwargs={"open_think": True}) as model:
        answer = model.generate("Hi", response_schema=schema)
    assert ('{"sure": true}', "hm") == (answer.text, answer.reasoning)


def test_the_mask_follows_a_draft_back_and_forth(llama: LocalModel) -> None:
    """Rows may be asked for again after a shorter text; the mask is that of a fresh start."""
    settings = llama.settings(response_schema=SCHEMA)
    prompt = llama.prompt("Hi")
    ids = prompt.ids
    rows = torch.zeros((1, llama.module.config.vocab_size))
    table = llama.tokenizer

    def allowed(chain: Any, text: str) -> set[int]:
        written = table(text, add_special_tokens=False, return_tensors="pt").input_ids.long()
        row = chain(torch.cat([ids, written], dim=1), rows.clone())
        return set(torch.nonzero(row[0] > -1).flatten().tolist())

    moving = llama.processors(prompt, settings)
    for text in ("", '{"colour": "', '{"colour": "re', '{"colour": "g', "{", '{"colour": "green"'):
        fresh = llama.processors(prompt, settings)
        assert allowed(fresh, text) == allowed(moving, text)
    assert allowed(moving, '{"colour": "g') == {table("r").input_ids[0]}
    with pytest.raises(ModelError, match="does not fit the grammar"):
        allowed(moving, '{"size')


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"response_schema": "int"}, "response_schema must be a JSON schema as a dict"),
        ({"response_schema": {"type": "nonsense"}}, "cannot turn the schema into a grammar"),
        ({"constrain_tools": "some"}, "constrain_tools must be one of False, True, 'required'"),
        ({"constrain_tools": 1}, "constrain_tools must be one of"),
        ({"constrain": "try"}, "constrain must be one of 'must', 'may'"),
    ],
)
def test_a_schema_that_is_none_is_refused(
    llama: LocalModel, overrides: dict[str, Any], match: str
) -> None:
    """The error says what was expected before anything is decoded."""
    with pytest.raises(ConfigurationError, match=match):
        llama.generate("Hi", **overrides)


def test_the_missing_extra_is_named(llama: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without xgrammar a schema is an error that says how to install it, never ignored."""
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    with (
        LocalModel(llama.path) as model,
        pytest.raises(MissingDependencyError, match=r"xgrammar.*cascadellm\[structured\]"),
    ):
        model.generate("Hi", response_schema=SCHEMA)


def test_without_the_extra_may_answers_freely(
    llama: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`may` leaves an answer as it would be; nothing else about it changes."""
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    with LocalModel(llama.path, max_new_tokens=20) as model:
        free = model.generate("Hi", tools=[CALCULATOR])
        options = {"response_schema": SCHEMA, "constrain_tools": True, "constrain": "may"}
        assert free == model.generate("Hi", tools=[CALCULATOR], **options)
