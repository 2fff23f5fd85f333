"""Grounded answers in LlamaIndex: policies see what was retrieved, and defer what it lacks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.prompts import PromptTemplate
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import Document, TextNode

from cascadellm import Decision, Grounded, call_context
from cascadellm.demo.llamaindex import WordCountEmbedding
from cascadellm.policies import Moment, Policy
from cascadellm.testing import FakeModel
from llamaindex_cascade import Always, CascadeLLM
from tests.dropin import li_programs as programs
from tests.dropin.li_watch import run_everywhere
from tests.llamaindex.li_support import ENDPOINTS, ask, asked, openai, run
from tests.servers.openai_server import OpenAIServer, Said

pytestmark = [
    pytest.mark.dropin,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

FACTS = (
    "Nia lives in Fenland.",
    "Nia works as a baker.",
    "Tom lives in Marlow with a cat.",
)
INDEX = programs.index_of(FACTS)
ASKED = "Where does Nia live?"
RIGHT = "Nia lives in Fenland."
WRONG = "Nia lives in Orla, near Dover."


@pytest.fixture(autouse=True)
def loop() -> Iterator[None]:
    """Close the event loop that upstream's `asyncio_run` would make and leave open."""
    made = asyncio.new_event_loop()
    asyncio.set_event_loop(made)
    yield
    asyncio.set_event_loop(None)
    made.close()


class Sees(Policy):
    """Notes the documents of each call beside its prompt, and accepts."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, ...]] = []
        self.prompts: list[str] = []

    def after(self, moment: Moment) -> Decision:
        """Note and accept."""
        self.seen.append(tuple(moment.request.documents))
        self.prompts.append(moment.request.text)
        return Decision(False, "Sees", code="seen")


def watched() -> tuple[CascadeLLM, Sees, FakeModel]:
    """Return a cascade whose policy notes what it sees."""
    policy, small = Sees(), FakeModel(RIGHT, name="small")
    return CascadeLLM([small, FakeModel("no", name="large")], policy), policy, small


PROGRAMS = [
    *(
        programs.query_engine(INDEX, mode, ASKED)
        for mode in ("compact", "refine", "tree_summarize", "simple_summarize", "accumulate")
    ),
    programs.chat_engine(INDEX, "context", (ASKED,)),
    programs.chat_engine(INDEX, "condense_plus_context", (ASKED,)),
    programs.chat_engine(INDEX, "condense_question", (ASKED,)),
]


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_policies_see_what_a_query_engine_retrieved(program: Any) -> None:
    """Every mode, in every way, hands each call the passages that its prompt holds, and no more."""
    bare = CascadeLLM([FakeModel(RIGHT, name="alone")])
    for way, go in program.ways.items():
        if "accumulate" in program.name and "stream" in way:
            continue  # upstream does not stream this mode
        llm, policy, small = watched()
        go(llm)
        assert policy.seen, way
        assert len(small.calls) == len(policy.seen), way
        # calls that run together are judged in any order
        for prompt, documents in zip(policy.prompts, policy.seen, strict=True):
            held = "\n".join(documents)
            found = {fact for fact in FACTS if fact in held}
            assert found
            assert found == {fact for fact in FACTS if fact in prompt}
            assert ASKED not in held
        model: Any = bare.tiers[0].model
        model.calls.clear()
        go(bare)
        # the prompt is the one that a single model gets
        assert sorted(map(str, model.calls)) == sorted(map(str, small.calls))


def test_a_later_call_does_not_see_earlier_documents() -> None:
    """What a query engine retrieved is gone when its call has ended."""
    llm, policy, _ = watched()
    INDEX.as_query_engine(llm=llm).query(ASKED)
    llm.complete("Where does Nia live?")
    assert [True, False] == [bool(documents) for documents in policy.seen]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_documents_set_around_a_call_reach_every_endpoint(endpoint: str) -> None:
    """`call_context` and `cascade_documents` hand over nodes, in tasks and in threads."""
    nodes = [TextNode(text=fact) for fact in FACTS[:2]]
    llm, policy, small = watched()
    with call_context(documents=nodes):
        asked(llm, endpoint, ASKED)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(copy_context().run, asked, llm, endpoint, ASKED).result()
    asked(llm, endpoint, ASKED, cascade_documents=nodes)
    asked(llm, endpoint, ASKED)
    assert [FACTS[:2]] * 3 + [()] == policy.seen
    assert 1 == len({str(call) for call in small.calls})


def test_documents_of_concurrent_tasks_stay_apart() -> None:
    """Each task sees its own passages, streamed or not."""
    llm, policy, _ = watched()

    async def one(number: int) -> None:
        with call_context(documents=[f"passage {number}"]):
            await asyncio.sleep(0.001 * (number % 3))
            await ask(llm, "astream_chat" if number % 2 else "achat", ASKED)

    async def go() -> None:
        await asyncio.gather(*(one(number) for number in range(12)))

    run(go())
    assert {(f"passage {number}",) for number in range(12)} == set(policy.seen)


def test_structured_prediction_and_hand_made_synthesis_hand_over_passages() -> None:
    """Prompts with upstream's variables hand over their passages wherever they are used."""
    llm, policy, _ = watched()
    prompt = PromptTemplate("Context: {context_str}\nWho is it?")
    value = CascadeLLM([FakeModel('{"name": "Ada", "age": 1, "home": "Orla"}', tools=False)] * 1)
    value.structured_predict(programs.Person, prompt, context_str=FACTS[0])
    llm.predict(prompt, context_str="\n\n".join(FACTS))
    get_response_synthesizer(llm=llm).get_response(ASKED, list(FACTS))
    assert policy.seen == [FACTS, FACTS]


MEASURES = {
    "overlap": Grounded(0.7),
    "embedding": Grounded(0.7, embed=WordCountEmbedding()),
    "judge": Grounded(judge=FakeModel(lambda m: str("Orla" not in str(m)), name="judge")),
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("draft", [RIGHT, WRONG, "The context does not contain that."])
@pytest.mark.parametrize("mode", ["compact", "refine", "context"])
def test_an_unsupported_answer_is_deferred(mode: str, draft: str, measure: str) -> None:
    """By each measure, in every way: supported answers stand, invented and empty ones do not."""
    if mode == "context":
        program = programs.chat_engine(INDEX, mode, (ASKED,))
    else:
        program = programs.query_engine(INDEX, mode, ASKED)

    def build() -> CascadeLLM:
        small = FakeModel(draft, name="small")
        return CascadeLLM([small, FakeModel(RIGHT, name="large")], MEASURES[measure])

    # a judge's tokens are the decision's, not a tier's
    text, found = run_everywhere(program.ways, build)
    assert RIGHT == text
    wanted = {RIGHT: {"small"}}.get(draft, {"large"})
    assert wanted == {name for name, *_ in found}
    codes = {attempts[0][2] for _, attempts, _ in found}
    if draft.startswith("The context"):
        assert {"no_answer"} == codes
    else:
        assert codes == ({"judge"} if measure == "judge" else {"score"})


def test_the_question_supports_nothing_where_passages_are_known() -> None:
    """Words of the question do not count as support when the passages are handed over."""
    question = "Is it true that Nia lives in Orla?"
    small = FakeModel("Nia lives in Orla", name="small")
    llm = CascadeLLM([small, FakeModel(RIGHT, name="large")], Grounded(0.7))
    assert "small" == asked(llm, "complete", question)[0].raw["cascade"]["answered_by"]
    assert RIGHT == str(INDEX.as_query_engine(llm=llm).query(question))


def test_a_provider_judges_through_its_own_client() -> None:
    """A LlamaIndex LLM is a judge as it is; its prompt holds the passages and the answer."""
    verdicts = [Said.text("False, it is Fenland."), Said.text("True")]
    with OpenAIServer(verdicts) as server:
        policy = Grounded(judge=openai(server))
        small = FakeModel([WRONG, RIGHT], name="small")
        llm = CascadeLLM([small, FakeModel(RIGHT, name="large")], policy)
        engine = INDEX.as_query_engine(llm=llm, similarity_top_k=1)
        assert [RIGHT, RIGHT] == [str(engine.query(ASKED)) for _ in range(2)]
    prompts = [request["messages"][0]["content"] for request in server.requests]
    assert [WRONG in prompts[0], RIGHT in prompts[1]] == [True, True]
    assert all(f"Context:\n{FACTS[0]}\n\nAnswer" in prompt for prompt in prompts)


def test_an_embedding_that_fails_defers() -> None:
    """A measure that breaks never accepts."""

    class Broken(WordCountEmbedding):
        def _get_text_embedding(self, text: str) -> list[float]:
            raise ConnectionError("no embedding today")

    small = FakeModel(RIGHT, name="small")
    llm = CascadeLLM([small, FakeModel("large", name="large")], Grounded(0.5, embed=Broken()))
    attempt = llm.chat([ChatMessage(content=ASKED)]).raw["cascade"]["attempts"][0]
    assert ("escalate", "policy_error") == (attempt["action"], attempt["code"])
    assert "no embedding today" in attempt["reason"]


def test_would_notice_documents_that_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the hand-over the question counts as support, so the check above has power."""
    from llamaindex_cascade import base

    monkeypatch.setattr(base, "passages", lambda prompt, prompt_args: ())
    small = FakeModel("Nia lives in Orla", name="small")
    llm = CascadeLLM([small, FakeModel(RIGHT, name="large")], Grounded(0.7))
    question = "Is it true that Nia lives in Orla?"
    assert "Nia lives in Orla" == str(INDEX.as_query_engine(llm=llm).query(question))


def test_extraction_is_checked_against_the_node() -> None:
    """An ingestion extractor's invention about a node is deferred too."""
    from llama_index.core.extractors import SummaryExtractor

    small = FakeModel("Orla and Dover are towns.", name="small")
    llm = CascadeLLM([small, FakeModel("Nia's home is Fenland.", name="large")], Grounded(0.5))
    nodes = SentenceSplitter().get_nodes_from_documents([Document(text=FACTS[0])])
    (found,) = run(SummaryExtractor(llm=llm, num_workers=1).aextract(nodes))
    assert "Nia's home is Fenland." == found["section_summary"]
    assert Always() != Grounded(0.5)
