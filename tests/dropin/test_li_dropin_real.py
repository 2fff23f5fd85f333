"""The demo pair inside LlamaIndex programs: real drafts, real scores, real escalations."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.tools import FunctionTool
from pydantic import create_model

from cascadellm import Record, record_cascade
from cascadellm.demo import Question, load, questions
from cascadellm.demo.llamaindex import WordCountEmbedding
from cascadellm.demo.tools import calculator
from cascadellm.local import LocalModel
from llamaindex_cascade import CascadeLLM, Grounded, Threshold, Tier, Valid, mean_logprob
from tests.dropin import li_programs as programs
from tests.dropin.li_programs import Program
from tests.dropin.li_watch import run_everywhere
from tests.llamaindex.li_support import openai
from tests.servers.openai_server import OpenAIServer, Said

pytestmark = [
    pytest.mark.dropin,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

Pair = tuple[LocalModel, LocalModel]


@pytest.fixture(scope="module")
def pair() -> Pair:
    """The demo models."""
    return load("small"), load("large")


@pytest.fixture(autouse=True)
def loop() -> Iterator[None]:
    """Close the event loop that upstream's `asyncio_run` would make and leave open."""
    made = asyncio.new_event_loop()
    asyncio.set_event_loop(made)
    yield
    asyncio.set_event_loop(None)
    made.close()


def cascade(pair: Pair, threshold: float) -> CascadeLLM:
    """Return the pair as one LLM: malformed or unsure drafts are rejected."""
    policy = Valid() | Threshold(mean_logprob, threshold, over="all")
    return CascadeLLM(list(pair), policy)


def calculate(expression: str) -> str:
    """Evaluate an arithmetic expression."""
    return calculator(expression)


TOOL = FunctionTool.from_defaults(calculate, name="calculator")
ITEMS = questions(6, 3, "one_fact")
INDEX = programs.index_of(sorted({fact for item in ITEMS for fact in item.facts}))


def _person(item: Question) -> Program:
    value = json.loads(item.answer)
    fields: dict[str, Any] = {key.replace(" ", "_"): (type(v), ...) for key, v in value.items()}
    person = create_model("Person", __doc__="A person.", **fields)
    return programs.structured(person, item.query.split("\n")[0])


GROUPS: dict[str, tuple[float, list[tuple[Program, Question]]]] = {
    "text-qa": (
        -0.05,
        [
            (programs.query_engine(INDEX, "compact", item.query, similarity_top_k=6), item)
            for item in ITEMS[:4]
        ],
    ),
    "refine": (
        -0.02,
        [(programs.query_engine(INDEX, "refine", item.query), item) for item in ITEMS[:3]],
    ),
    "chat-context": (
        -0.02,
        [(programs.chat_engine(INDEX, "context", (ITEMS[0].query, ITEMS[1].query)), ITEMS[1])],
    ),
    "chat-condense-plus-context": (
        -0.0325,
        [
            (
                programs.chat_engine(
                    INDEX, "condense_plus_context", (ITEMS[0].query, ITEMS[1].query)
                ),
                ITEMS[1],
            )
        ],
    ),
    "agent-function": (
        -0.06,
        [
            (programs.agents("function", [TOOL], item.query), item)
            for item in questions(4, 3, "calculator")
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


@pytest.mark.parametrize("group", ["text-qa", "agent-function", "structured"])
def test_the_cascade_answers_what_the_large_model_can(group: str, pair: Pair) -> None:
    """Where these questions are within the pair's reach, the cascade's answers are right."""
    threshold, asked = GROUPS[group]
    right = []
    for program, item in asked:
        go = next(iter(program.ways.values()))
        right += [item.grade(seen.text) for seen in go(cascade(pair, threshold))]
    assert all(right)


@pytest.mark.parametrize("mode", ["compact", "refine"])
def test_a_hosted_large_tier_behind_the_real_small_one(mode: str, pair: Pair) -> None:
    """An unsure local draft is replaced by a provider's answer through its real client."""
    program = programs.query_engine(INDEX, mode, ITEMS[0].query)
    usage = {"stream_options": {"include_usage": True}}
    with OpenAIServer(Said.text("She is 61, by the record.")) as server:

        def build() -> CascadeLLM:
            hosted = Tier(openai(server, additional_kwargs=usage), name="hosted")
            return CascadeLLM([pair[0], hosted], Threshold(mean_logprob, -1e-4))

        text, found = run_everywhere(program.ways, build)
    assert "She is 61, by the record." == text
    assert {"hosted"} == {name for name, *_ in found}


def asked_about(llm: CascadeLLM, items: list[Question]) -> list[Record]:
    """Ask each question through LlamaIndex's text-QA prompt, with its own passages."""
    synthesizer = get_response_synthesizer(llm=llm)
    with record_cascade() as recorder:
        for item in items:
            synthesizer.get_response(item.query, ["\n\n".join(item.facts)])
    return recorder.records


def test_a_draft_that_finds_no_answer_is_deferred(pair: Pair) -> None:
    """What the small model says when it finds nothing goes on; with a threshold of 0 only that."""
    items = questions(40, 5, "not_in_context") + questions(40, 5, "one_fact")
    records = asked_about(CascadeLLM(list(pair), Grounded(0)), items)
    for record in records:
        found_none = "does not hold the answer" in (record.drafts[0] or "")
        assert ("no_answer" == record.trace.attempts[0].code) == found_none
        assert record.trace.escalated == found_none
    assert any(record.trace.escalated for record in records)
    assert not all(record.trace.escalated for record in records)


def test_grounded_deferral_mends_what_the_small_model_invents(pair: Pair) -> None:
    """Measured on the retrieval embedding, unsupported drafts go on and the answers get better."""
    items = questions(40, 5, "not_in_context") + questions(40, 5, "one_fact")
    policy = Grounded(0.9, embed=WordCountEmbedding())
    records = asked_about(CascadeLLM(list(pair), policy), items)
    graded = [
        (item.grade(record.drafts[0] or ""), item.grade(record.output), record.trace.escalated)
        for item, record in zip(items, records, strict=True)
    ]
    small, cascade_, deferred = (sum(column) / len(graded) for column in zip(*graded, strict=True))
    assert cascade_ > small + 0.3
    assert deferred < 0.8
