"""The demo pair inside LangChain programs: real drafts, real scores, real escalations."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from langchain_core.tools import tool
from pydantic import create_model

from cascadellm.demo import Question, load, questions
from cascadellm.demo.tools import calculator as evaluate
from cascadellm.local import LocalModel
from langchain_cascade import CascadeLLM, Threshold, Tier, Valid, mean_logprob
from langchain_cascade.middleware import CascadeMiddleware
from tests.dropin import lc_agents as agents
from tests.dropin import lc_programs as programs
from tests.dropin.lc_programs import Program
from tests.dropin.lc_watch import run_everywhere
from tests.langchain.lc_openai import OpenAIFake, chat_openai

pytestmark = [
    pytest.mark.dropin,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"),
]

Pair = tuple[LocalModel, LocalModel]
RAG = "Answer from the context.\n\nContext:\n{context}\n\nQuestion: {question}"


@pytest.fixture(scope="module")
def pair() -> Pair:
    """The demo models."""
    return load("small"), load("large")


def cascade(pair: Pair, threshold: float) -> CascadeLLM:
    """Return the pair as one model: malformed or unsure drafts are rejected."""
    policy = Valid() | Threshold(mean_logprob, threshold, over="all")
    return CascadeLLM(list(pair), policy)


@tool
def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression."""
    return evaluate(expression)


ITEMS = questions(6, 3, "one_fact")
STORE = programs.store_of(sorted({fact for item in ITEMS for fact in item.facts}))
SUMS = questions(4, 3, "calculator")


def _person(item: Question) -> Program:
    value = json.loads(item.answer)
    fields: dict[str, Any] = {key.replace(" ", "_"): (type(v), ...) for key, v in value.items()}
    person = create_model("Person", __doc__="A person.", **fields)
    return programs.structured(person, item.query.split("\n")[0])


GROUPS: dict[str, tuple[float, list[tuple[Program, Question]]]] = {
    "retrieval": (
        -0.05,
        [(programs.retrieval(STORE, item.query, RAG, k=6), item) for item in ITEMS[:4]],
    ),
    "agent": (
        -0.06,
        [(agents.agent("real", [calculator], item.query), item) for item in SUMS[:3]],
    ),
    "sticky": (
        -0.06,
        [
            (agents.agent("sticky", [calculator], i.query, lambda llm: [CascadeMiddleware()]), i)
            for i in SUMS[:2]
        ],
    ),
    "structured": (
        -0.005,
        [(_person(item), item) for item in questions(6, 3, "json") if item.form == "record"],
    ),
}


@pytest.mark.parametrize("group", GROUPS)
def test_the_demo_pair_answers_alike_in_every_way(group: str, pair: Pair) -> None:
    """Same answer and decisions in every way; over a group both tiers answer some calls."""
    threshold, asked = GROUPS[group]
    answered = set()
    for program, _ in asked:
        _, found = run_everywhere(program.ways, lambda: cascade(pair, threshold))
        answered |= {name for name, *_ in found}
    assert {"small", "large"} == answered


@pytest.mark.parametrize("group", GROUPS)
def test_the_cascade_answers_what_the_large_model_can(group: str, pair: Pair) -> None:
    """Where these questions are within the pair's reach, the cascade's answers are right."""
    threshold, asked = GROUPS[group]
    right = []
    for program, item in asked:
        right += [item.grade(s.text) for s in program.ways["invoke"](cascade(pair, threshold))]
    assert all(right)


def test_a_hosted_large_tier_behind_the_real_small_one(pair: Pair) -> None:
    """An unsure local draft is replaced by a provider's answer through its real client."""
    program = programs.retrieval(STORE, ITEMS[0].query, RAG)

    def build() -> CascadeLLM:
        hosted = Tier(chat_openai(OpenAIFake("She is 61, by the record.")), name="hosted")
        return CascadeLLM([pair[0], hosted], Threshold(mean_logprob, -1e-4))

    text, found = run_everywhere(program.ways, build)
    assert "She is 61, by the record." == text
    assert {"hosted"} == {name for name, *_ in found}
