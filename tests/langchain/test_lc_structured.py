"""Structured output and forced calls of local tiers: random models, answers that always fit."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, Literal, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from pydantic import BaseModel, Field

from cascadellm import MissingDependencyError
from cascadellm.testing import FakeModel
from langchain_cascade import (
    CascadeLLM,
    ConfigurationError,
    LocalChatModel,
    LocalModel,
    Valid,
)
from langchain_cascade.convert import openai_tools
from tests.langchain.lc_tools import PATHS

pytest.importorskip("torch")
pytest.importorskip("xgrammar")

from tests.local.random_schemas import random_class
from tests.local.tiny_models import tiny_llama

METHODS = ("function_calling", "json_schema", None)


class Paint(BaseModel):
    """A colour to paint with."""

    colour: Literal["red", "green"]
    coats: int = Field(ge=1, le=3)
    glossy: bool


class PaintDict(TypedDict):
    """A colour to paint with."""

    colour: Literal["red", "green"]
    glossy: bool


def mix(colour: Literal["red", "green"], parts: Literal[1, 2]) -> str:
    """Mix a colour."""
    return f"{parts} x {colour}"


GOOD = json.dumps({"colour": "red", "coats": 2, "glossy": True})


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    """A model that by itself writes nothing that anyone could parse."""
    path = tiny_llama(tmp_path_factory.mktemp("random"), window=4096)
    with LocalModel(path, name="small", max_new_tokens=250) as model:
        yield model


@pytest.fixture
def bare(random_model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalModel]:
    """The same model where xgrammar is not installed."""
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    with LocalModel(random_model.path, name="small", max_new_tokens=30) as model:
        yield model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_random_model_gives_objects(random_model, method, seed):
    """By either method, greedy or sampled, the object is one of the class."""
    chat = LocalChatModel(random_model, temperature=0 if seed is None else 1.0, seed=seed)
    found = chat.with_structured_output(Paint, method=method).invoke("Which paint?")
    assert isinstance(found, Paint)


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    """A model with nearly flat laws: it writes everything that it may."""
    path = tiny_llama(tmp_path_factory.mktemp("free"), window=8192, sharp=False)
    with LocalModel(path, name="small", max_new_tokens=400) as model:
        yield model


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_random_classes_are_filled(free, method):
    """At temperature 1 every class is filled, unless the answer says that it was cut off."""
    whole = 0
    for seed in range(12):
        schema = random_class(seed)
        chat = LocalChatModel(free, temperature=1.0, seed=seed, logprobs=False)
        found = chat.with_structured_output(schema, method=method, include_raw=True).invoke("Go")
        if found["raw"].response_metadata["finish_reason"] == "length":
            continue
        assert isinstance(found["parsed"], schema), (found["raw"], found["parsing_error"])
        whole += 1
    assert whole > 5


def test_other_kinds_of_schemas_and_raw_messages(random_model):
    """A TypedDict or a JSON schema gives a dict; `include_raw` gives the message too."""
    chat = LocalChatModel(random_model)
    for schema in (PaintDict, {"title": "Paint", **Paint.model_json_schema()}):
        for method in METHODS:
            found = chat.with_structured_output(schema, method=method).invoke("Which?")
            assert found["colour"] in ("red", "green")
    raw = chat.with_structured_output(Paint, method="json_schema", include_raw=True).invoke("Which")
    assert raw["parsed"] == Paint.model_validate_json(raw["raw"].text)
    assert raw["parsing_error"] is None


def test_json_mode_gives_some_object(random_model):
    """`json_mode` constrains the text to a JSON object of any shape."""
    chat = LocalChatModel(random_model, temperature=1.0, seed=3)
    message = chat.bind(response_format={"type": "json_object"}).invoke("Which?", max_tokens=400)
    assert message.text.startswith("{")
    if message.response_metadata["finish_reason"] == "stop":
        assert isinstance(json.loads(message.text), dict)


def test_streamed_objects_grow_to_the_whole(random_model):
    """A JSON-schema answer streams as growing dicts; the last equals the invoked one."""
    chain = LocalChatModel(random_model).with_structured_output(PaintDict, method="json_schema")
    assert chain.invoke("Which?") == list(chain.stream("Which?"))[-1]


def test_an_answer_cut_off_says_so(random_model):
    """Too few tokens for the object end with finish reason `length`, not with half an object."""
    chat = LocalChatModel(random_model, max_tokens=8)
    raw = chat.with_structured_output(Paint, method="json_schema", include_raw=True).invoke("Which")
    assert "length" == raw["raw"].response_metadata["finish_reason"]
    assert raw["parsed"] is None
    assert raw["parsing_error"] is not None


@pytest.mark.parametrize("choice", ["any", "required", "mix", True])
def test_a_forced_choice_is_obeyed(random_model, choice):
    """With a forced choice the answer is a call whose arguments fit, and no text."""
    bound = LocalChatModel(random_model).bind_tools([mix], tool_choice=choice)
    message = bound.invoke("Mix!")
    assert message.tool_calls
    assert all(mix(**call["args"]) for call in message.tool_calls)
    assert "" == message.text.strip()
    if choice == "mix":
        assert len(message.tool_calls) == 1
    assert not LocalChatModel(random_model).bind_tools([mix], strict=False).invoke("Mix").tool_calls


def test_what_a_call_asks_of_a_local_model(random_model):
    """Options of LangChain become constraints; models without settings get none."""
    tool = openai_tools([mix])[0]
    chat = LocalChatModel(random_model)
    cases: list[tuple[dict[str, Any], Any, Any]] = [
        ({}, True, "may"),
        ({"strict": True}, True, "must"),
        ({"strict": False}, None, None),
        ({"tool_choice": "any"}, "required", "may"),
        ({"tool_choice": "any", "parallel_tool_calls": False}, "one", "may"),
        ({"tool_choice": {"type": "function", "function": {"name": "mix"}}}, "one", "may"),
        ({"tool_choice": "none"}, None, None),
        ({"constrain_tools": False}, False, "may"),
    ]
    for options, demand, constrain in cases:
        arguments = chat._arguments(None, {"tools": [tool], **options})
        assert demand == arguments.get("constrain_tools"), options
        assert constrain == arguments.get("constrain"), options
    own = LocalChatModel(random_model, strict=True)
    assert "must" == own._arguments(None, {"tools": [tool]})["constrain"]
    assert "may" == own._arguments(None, {"tools": [tool], "constrain": "may"})["constrain"]
    fake = FakeModel("x", name="m")
    LocalChatModel(fake).bind_tools([mix], tool_choice="any", strict=True).invoke("hi")
    assert {"tools"} == set(fake.calls[0][1])


def test_unknown_methods_and_arguments_are_refused(random_model):
    """A method that does not exist is named, on a local model and on a cascade."""
    for model in (LocalChatModel(random_model), CascadeLLM([random_model])):
        with pytest.raises(ConfigurationError, match="method must be one of function_calling"):
            model.with_structured_output(Paint, method="magic")
        with pytest.raises(ValueError, match="unsupported arguments"):
            model.with_structured_output(Paint, colour=1)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", METHODS)
def test_a_cascades_local_tier_is_constrained(random_model, method, path):
    """On every path the small tier's answer fits, so the validity policy accepts it."""
    llm = CascadeLLM([random_model, FakeModel("never", name="large")], Valid())
    chain = llm.with_structured_output(Paint, method=method, include_raw=True)
    found = PATHS[path](chain, "Which paint?", {}) if path != "astream_events" else None
    if found is None:
        found = chain.invoke("Which paint?")
    assert isinstance(found["parsed"], Paint)
    assert "small" == found["raw"].response_metadata["cascade"]["answered_by"]


def test_without_the_extra_a_cascade_defers_what_is_malformed(bare):
    """Unconstrained, the small tier's answer is no JSON; the large tier answers instead."""
    large = FakeModel(GOOD, name="large")
    llm = CascadeLLM([bare, large], Valid())
    raw = llm.with_structured_output(Paint, method="json_schema", include_raw=True).invoke("Which")
    record = raw["raw"].response_metadata["cascade"]
    assert Paint.model_validate_json(GOOD) == raw["parsed"]
    assert "large" == record["answered_by"]
    assert record["attempts"][0]["code"] in ("invalid", "length")
    assert record["attempts"][0]["error"] is None
    message = llm.bind_tools([mix], tool_choice="any", strict=True).invoke("Mix")
    assert message.response_metadata["cascade"]["attempts"][0]["error"] is None


def test_without_the_extra_an_explicit_wish_is_an_error(bare):
    """What only a grammar can give names the extra; what is merely asked for goes on freely."""
    chat = LocalChatModel(bare)
    for wish in (
        chat.with_structured_output(Paint, method="json_schema"),
        chat.with_structured_output(Paint, strict=True),
        chat.bind_tools([mix], strict=True),
        LocalChatModel(bare, strict=True).bind_tools([mix]),
        chat.bind(response_schema=Paint.model_json_schema()),
    ):
        with pytest.raises(MissingDependencyError, match=r"cascadellm\[structured\]"):
            wish.invoke("Which")
    assert chat.bind_tools([mix], tool_choice="any").invoke("Mix").text
    assert chat.bind(response_format={"type": "json_object"}).invoke("Which").text


@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
def test_agents_get_their_structured_response(random_model, strategy):
    """`create_agent` over a random local tier ends with an object, by either strategy."""
    llm = CascadeLLM([random_model, FakeModel("never", name="large")], Valid())
    agent = create_agent(llm, tools=[], response_format=strategy(Paint))
    state = agent.invoke({"messages": [("user", "Which paint?")]})
    assert isinstance(state["structured_response"], Paint)


def test_a_demanded_schema_shows_in_no_prompt(random_model):
    """`json_schema` changes what may be written, not what the model reads."""
    chat = LocalChatModel(random_model)
    asked = "Which paint?"
    shaped = chat.with_structured_output(Paint, method="json_schema", include_raw=True)
    usage = shaped.invoke(asked)["raw"].usage_metadata
    assert usage["input_tokens"] == chat.invoke(asked).usage_metadata["input_tokens"]
