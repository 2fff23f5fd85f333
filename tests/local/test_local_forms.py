"""Constrained answers and calls over random schemas, in every family's form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import torch

from cascadellm.answer import Answer, Request
from cascadellm.errors import ConfigurationError
from cascadellm.local import LocalModel
from cascadellm.local.families import family_of
from cascadellm.local.forms import answer_form
from cascadellm.policies.validity import find_fault
from tests.local.random_schemas import random_schema, random_tool
from tests.local.tiny_models import CALCULATOR, tiny_llama

pytest.importorskip("xgrammar")

SAMPLED: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 250, "logprobs": False}
PLAIN = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{{ messages[0].content }}"
FAMILIES = {
    "hermes": PLAIN + "{# <tool_call> #}",
    "llama": PLAIN + "{# ipython #}",
    "mistral-list": PLAIN + "{# [TOOL_CALLS] #}",
    "mistral": PLAIN + "{# [TOOL_CALLS] [ARGS] #}",
    "mistral-ids": PLAIN + "{# [TOOL_CALLS] [CALL_ID] [ARGS] #}",
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalModel]:
    """A random model whose template is one of each family."""
    words = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
    folder = tmp_path_factory.mktemp("family")
    path = tiny_llama(folder, window=4096, extra=words, sharp=False)
    options = {"chat_template": FAMILIES[request.param]}
    with LocalModel(path, chat_template_kwargs=options) as model:
        yield model


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    """A random model with nearly flat laws: it writes everything that it may."""
    path = tiny_llama(tmp_path_factory.mktemp("free"), window=4096, sharp=False)
    with LocalModel(path) as model:
        yield model


def test_random_schemas_are_satisfied(free: LocalModel) -> None:
    """At temperature 1 an answer satisfies its schema, or says that it was cut off."""
    whole = 0
    for seed in range(36):
        schema = random_schema(seed)
        answer = free.generate("Hi", response_schema=schema, seed=seed, **SAMPLED)
        if answer.finish_reason == "length":
            continue
        jsonschema.validate(json.loads(answer.text), schema)
        whole += 1
    assert whole > 14


def _asked(model: LocalModel, demand: Any, seed: int) -> tuple[Answer, Request]:
    tools = [random_tool(seed, "first"), random_tool(seed + 1, "second"), CALCULATOR]
    answer = model.generate("Hi", tools=tools, constrain_tools=demand, seed=seed, **SAMPLED)
    return answer, Request(native=None, tools=tuple(tools), tool_required=demand != True)  # noqa: E712


@pytest.mark.parametrize("demand", ["required", "one"])
def test_random_calls_are_well_formed(family: LocalModel, demand: str) -> None:
    """Every call names a tool, its arguments fit, and there are as many as were asked for."""
    whole = 0
    for seed in range(7):
        answer, request = _asked(family, demand, seed)
        if answer.finish_reason == "length":
            continue
        assert find_fault(request, answer) is None
        assert "" == answer.text.strip()
        assert answer.tool_calls
        assert demand == "required" or len(answer.tool_calls) == 1
        whole += 1
    assert whole > 1


def test_calls_among_text_are_well_formed(family: LocalModel) -> None:
    """Where calling is free, what is read as a call is one, and text stays possible."""
    talked = 0
    for seed in range(10):
        answer, request = _asked(family, True, seed)
        for call in answer.tool_calls if answer.finish_reason != "length" else ():
            assert call.arguments is not None
            assert find_fault(request, answer) is None
        talked += bool(answer.text)
    assert talked > 4


def test_a_call_that_is_cut_off_is_reported(family: LocalModel) -> None:
    """The token limit inside a call gives finish reason `length`, never half a call as whole."""
    answer = family.generate(
        "Hi", tools=[CALCULATOR], constrain_tools="required", max_new_tokens=20, seed=1
    )
    assert "length" == answer.finish_reason
    request = Request(native=None, tools=(CALCULATOR,))
    fault = find_fault(request, answer)
    assert fault is not None
    assert "length" == fault[0]


def test_hidden_special_tokens_are_never_written(free: LocalModel) -> None:
    """A special token spells characters of a string but shows none; it fits no grammar."""
    settings = free.settings(response_schema={"type": "string"})
    prompt = free.prompt("Hi")
    written = free.tokenizer('"a', return_tensors="pt").input_ids
    ids = torch.cat([prompt.ids, written], dim=1)
    chain = free.processors(prompt, settings)
    row = chain(ids, torch.zeros(1, free.module.config.vocab_size))  # type: ignore[arg-type]
    hidden = set(free.tokenizer.all_special_ids)
    assert hidden
    assert not hidden & set(torch.nonzero(row[0] == 0).flatten().tolist())


def test_rows_of_every_precision_are_masked_alike(free: LocalModel) -> None:
    """float64 rows, which xgrammar's kernels refuse, get the same mask as float32 rows."""
    settings, prompt = free.settings(response_schema=random_schema(0)), free.prompt("Hi")
    width = free.module.config.vocab_size
    rows = []
    for kind in (torch.float32, torch.bfloat16, torch.float64):
        chain = free.processors(prompt, settings)
        # ids that only pad the model's table come last; no grammar knows them
        row = chain(prompt.ids, torch.zeros(1, width + 40, dtype=kind))  # type: ignore[arg-type]
        assert row.dtype is kind
        assert torch.isinf(row[0, width:]).all()
        rows.append(torch.isinf(row))
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])
    assert not rows[0].all()


def test_a_declared_form_that_is_unknown_is_refused_or_left_free(free: LocalModel) -> None:
    """`must` raises where calls are written in a form of the tokenizer's own, `may` does not."""
    declared = {"fields": {"tool_calls": {"open": "<|call|>", "content": "xml"}}}
    with pytest.raises(ConfigurationError, match="declares another form"):
        family_of("", declared)
    assert "hermes" == family_of("", {"open_pattern": "<tool_call>", "content": "json"})
    prompt = free.prompt("Hi", [CALCULATOR])
    with pytest.raises(ConfigurationError, match="declares another form"):
        answer_form(prompt, free.settings(constrain_tools=True), "", declared)
    broken = {"response_schema": {"type": "nonsense"}, "max_new_tokens": 4}
    with pytest.raises(ConfigurationError, match="cannot turn the schema"):
        free.generate("Hi", **broken)
    assert free.generate("Hi", max_new_tokens=4) == free.generate("Hi", constrain="may", **broken)
