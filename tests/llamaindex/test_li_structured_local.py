"""Predicted objects and forced calls of local tiers: random models, answers that always fit."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel, Field

from cascadellm import MissingDependencyError
from cascadellm.testing import FakeModel
from llamaindex_cascade import CascadeLLM, LocalLLM, LocalModel, Never, Valid
from llamaindex_cascade.local_arguments import call_arguments

pytest.importorskip("torch")
pytest.importorskip("xgrammar")

from tests.local.random_schemas import random_class
from tests.local.tiny_models import tiny_llama


class Paint(BaseModel):
    """A colour to paint with."""

    colour: Literal["red", "green"]
    coats: int = Field(ge=1, le=3)
    glossy: bool


class Mix(BaseModel):
    """Arguments of `mix`."""

    colour: Literal["red", "green"]
    parts: int = Field(ge=1, le=2)


def mix(colour: str, parts: int) -> str:
    """Mix a colour."""
    return f"{parts} x {colour}"


TOOL = FunctionTool.from_defaults(mix, fn_schema=Mix)
PROMPT = PromptTemplate("Which paint for {what}?")
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


def _llms(model: LocalModel) -> dict[str, Any]:
    return {
        "alone": LocalLLM(model),
        "in the prompt": LocalLLM(model, pydantic_program_mode=PydanticProgramMode.LLM),
        "cascade": CascadeLLM([model, FakeModel("never", name="large")], Valid()),
        "cascade, in the prompt": CascadeLLM(
            [LocalLLM(model, pydantic_program_mode=PydanticProgramMode.LLM), FakeModel("never")],
            Valid(),
        ),
    }


@pytest.mark.parametrize("kind", ["alone", "cascade", "cascade, in the prompt"])
@pytest.mark.parametrize("sampled", [False, True])
def test_a_random_model_predicts_objects(random_model: Any, kind: str, sampled: bool) -> None:
    """Sync and async, alone and in a cascade, the object is one of the class."""
    llm = _llms(random_model)[kind]
    options = {"temperature": 1.0, "seed": 4} if sampled else {}
    found = llm.structured_predict(Paint, PROMPT, llm_kwargs=options, what="a door")
    assert isinstance(found, Paint)
    again = asyncio.run(llm.astructured_predict(Paint, PROMPT, llm_kwargs=options, what="a door"))
    assert found == again


def test_random_classes_are_filled(tmp_path: Path) -> None:
    """At temperature 1 every class is filled, unless the answer was cut off."""
    whole = 0
    with LocalModel(tiny_llama(tmp_path, window=8192, sharp=False), max_new_tokens=400) as model:
        for seed in range(12):
            llm = LocalLLM(model, generate_kwargs={"temperature": 1.0, "seed": seed})
            tool = get_function_tool(random_class(seed))
            response = llm.chat_with_tools([tool], user_msg="Go", tool_required=True)
            if response.raw["finish_reason"] != "length":
                (call,) = llm.get_tool_calls_from_response(response)
                assert random_class(seed).model_validate(call.tool_kwargs)
                whole += 1
    assert whole > 5


@pytest.mark.parametrize("kind", ["alone", "cascade"])
def test_a_structured_llm_is_constrained(random_model: Any, kind: str) -> None:
    """`as_structured_llm` answers with the object, as an object and as text."""
    response = _llms(random_model)[kind].as_structured_llm(Paint).complete("Which paint?")
    assert isinstance(response.raw, Paint)
    assert response.raw == Paint.model_validate_json(response.text)


def test_streamed_objects_end_whole(random_model: Any) -> None:
    """The last streamed object is the predicted one."""
    llm = _llms(random_model)["cascade"]
    streamed = list(llm.stream_structured_predict(Paint, PROMPT, what="a door"))
    assert llm.structured_predict(Paint, PROMPT, what="a door") == streamed[-1]


@pytest.mark.parametrize("kind", ["alone", "cascade"])
def test_a_required_call_is_made(random_model: Any, kind: str) -> None:
    """With `tool_required` there is a call whose arguments the tool accepts."""
    llm = _llms(random_model)[kind]
    response = llm.chat_with_tools([TOOL], user_msg="Mix!", tool_required=True)
    (call,) = llm.get_tool_calls_from_response(response)
    assert "mix" == call.tool_name
    assert mix(**call.tool_kwargs)
    *_, last = llm.stream_chat_with_tools([TOOL], user_msg="Mix!", tool_required=True)
    assert call.tool_kwargs == llm.get_tool_calls_from_response(last)[0].tool_kwargs
    done = llm.predict_and_call([TOOL], user_msg="Mix!", tool_required=True)
    assert " x " in done.response


def test_what_a_call_asks_of_a_local_model(random_model: Any) -> None:
    """Options of LlamaIndex become constraints; models without settings get none."""
    tools = LocalLLM(random_model)._prepare_chat_with_tools([TOOL])["tools"]
    cases: list[tuple[dict[str, Any], Any, Any]] = [
        ({}, True, "may"),
        ({"strict": True}, True, "must"),
        ({"strict": False}, None, None),
        ({"tool_required": True}, "one", "may"),
        ({"tool_required": True, "allow_parallel_tool_calls": True}, "required", "may"),
        ({"tool_choice": "mix"}, "one", "may"),
        ({"tool_choice": "none"}, None, None),
    ]
    for options, demand, constrain in cases:
        arguments = call_arguments(random_model, {"tools": tools, **options})
        assert demand == arguments.get("constrain_tools"), options
        assert constrain == arguments.get("constrain"), options
    fake = FakeModel("x", name="m")
    LocalLLM(fake, strict=True).chat_with_tools([TOOL], user_msg="hi", tool_required=True)
    assert {"tools"} == set(fake.calls[0][1])


def test_without_the_extra_a_cascade_defers_what_is_malformed(bare: Any) -> None:
    """Unconstrained, the small tier gives no object; the large tier answers instead."""
    large = FakeModel(GOOD, name="large")
    llm = CascadeLLM([bare, LocalLLM(large)], Never())
    text = CascadeLLM(
        [LocalLLM(bare, pydantic_program_mode=PydanticProgramMode.LLM), large], Never()
    )
    for cascade in (llm, text):
        found = cascade.structured_predict(Paint, PROMPT, what="a door")
        assert Paint.model_validate_json(GOOD) == found
    response = CascadeLLM([bare, large], Valid()).chat_with_tools(
        [TOOL], user_msg="Mix!", tool_required=True
    )
    attempt = response.additional_kwargs["cascade"]["attempts"][0]
    assert attempt["code"] in ("invalid", "length")
    assert attempt["error"] is None


def test_without_the_extra_an_explicit_wish_is_an_error(bare: Any) -> None:
    """`strict=True`, or a schema given by name, names the extra; the default goes on freely."""
    asked = [ChatMessage(role="user", content="Which?")]
    with pytest.raises(MissingDependencyError, match=r"cascadellm\[structured\]"):
        LocalLLM(bare, strict=True).chat_with_tools([TOOL], user_msg="Mix!")
    with pytest.raises(MissingDependencyError, match=r"cascadellm\[structured\]"):
        LocalLLM(bare).chat(asked, response_schema=Paint.model_json_schema())
    assert LocalLLM(bare).chat_with_tools([TOOL], user_msg="Mix!", tool_required=True)
