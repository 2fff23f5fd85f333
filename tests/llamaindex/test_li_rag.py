"""A cascade inside query engines, chat engines and retrieval, unchanged code around it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool
from pydantic import BaseModel

from cascadellm import ToolCall, record_cascade
from cascadellm.demo.llamaindex import WordCountEmbedding
from cascadellm.testing import FakeModel
from llamaindex_cascade import Always, CascadeLLM, Never, Valid
from tests.llamaindex.li_support import CHOW, Spans, pair, run, user

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

FACTS = (
    "Paris is the capital of France.",
    "Rome is the capital of Italy.",
    "Ada works as a baker.",
)
MODES = ("compact", "refine", "tree_summarize", "simple_summarize")
ENGINES = ("simple", "context", "condense_plus_context", "condense_question")


@pytest.fixture(scope="module")
def index() -> VectorStoreIndex:
    """An index over three facts, by shared words."""
    documents = [Document(text=fact) for fact in FACTS]
    splitter = SentenceSplitter(chunk_size=64, chunk_overlap=0)
    return VectorStoreIndex.from_documents(
        documents, embed_model=WordCountEmbedding(), transformations=[splitter]
    )


def _query(engine: Any, way: str) -> str:
    question = "What is the capital of France?"
    if way == "query":
        return str(engine.query(question))
    if way == "stream":
        return "".join(engine.query(question).response_gen)

    async def go() -> str:
        response = await engine.aquery(question)
        if way == "aquery":
            return str(response)
        return "".join([token async for token in response.async_response_gen()])

    return run(go())


@pytest.mark.parametrize("way", ["query", "stream", "aquery", "astream"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("logprob", [-0.1, -2.0])
def test_query_engines(index: VectorStoreIndex, mode: str, way: str, logprob: float) -> None:
    """Every response mode answers by the right tier, sync, async and streamed."""
    llm, small, large = pair(logprob)
    streaming = "stream" in way
    engine = index.as_query_engine(
        llm=llm, response_mode=mode, streaming=streaming, similarity_top_k=2
    )
    with record_cascade() as recorder:
        text = _query(engine, way)
    expected = "Maybe five?" if logprob > -1 else "Four, I am certain."
    assert text == expected
    assert {t.answered_by for t in recorder.traces} == {"small" if logprob > -1 else "large"}
    assert "Paris is the capital" in str(small.calls[0][0])
    assert bool(large.calls) == (logprob < -1)


def _chat_engine(index: VectorStoreIndex, mode: str, llm: CascadeLLM) -> Any:
    # the default memory leaves a database connection open
    memory = ChatMemoryBuffer.from_defaults(llm=llm)
    return index.as_chat_engine(chat_mode=mode, llm=llm, memory=memory)


@pytest.mark.parametrize("mode", ENGINES)
@pytest.mark.parametrize("streaming", [False, True])
def test_chat_engines(index: VectorStoreIndex, mode: str, streaming: bool) -> None:
    """Every chat engine answers twice in a row, streamed and not."""
    llm, _, _ = pair()
    engine = _chat_engine(index, mode, llm)
    for question in ("What is the capital of France?", "And of Italy?"):
        if streaming:
            text = "".join(engine.stream_chat(question).response_gen)
        else:
            text = str(engine.chat(question))
        assert text == "Four, I am certain."
    assert len(engine.chat_history) == 4


@pytest.mark.parametrize("mode", ENGINES)
def test_chat_engines_async(index: VectorStoreIndex, mode: str) -> None:
    """Async chat engines answer and stream."""
    llm, _, _ = pair()

    async def go() -> tuple[str, str]:
        engine = _chat_engine(index, mode, llm)
        first = str(await engine.achat("What is the capital of France?"))
        stream = await engine.astream_chat("And of Italy?")
        return first, "".join([token async for token in stream.async_response_gen()])

    assert run(go()) == ("Four, I am certain.", "Four, I am certain.")


def test_the_tree_is_the_same_inside_a_query_engine(index: VectorStoreIndex, spans: Spans) -> None:
    """Inside RAG the attempts hang under the cascade's span, and that under the engine's."""
    index.as_query_engine(llm=pair()[0]).query("France?")
    attempts = spans.named("CascadeTier.attempt")
    assert len(attempts) == 2
    for attempt in attempts:
        ancestors = spans.ancestors(attempt)
        assert ancestors[0] == "CascadeLLM.chat"
        assert ancestors[-1].endswith(".query")


class City(BaseModel):
    """A city."""

    name: str
    country: str


def test_output_cls_query_engine(index: VectorStoreIndex) -> None:
    """A query engine with `output_cls` returns an object of the accepted tier."""
    good = FakeModel(ToolCall("City", {"name": "Paris", "country": "France"}), name="large")
    bad = FakeModel(ToolCall("City", {"name": "Paris"}), name="small")
    llm = CascadeLLM([bad, good], Never())
    engine = index.as_query_engine(llm=llm, output_cls=City, response_mode="compact")
    assert engine.query("Capital of France?").response == City(name="Paris", country="France")


@pytest.fixture
def settings() -> Iterator[None]:
    """Leave the global settings as they were."""
    before = Settings._llm, Settings._embed_model
    yield
    Settings._llm, Settings._embed_model = before


def test_settings_llm(index: VectorStoreIndex, settings: None) -> None:
    """`Settings.llm = CascadeLLM(...)` is all that a program needs."""
    Settings.llm = pair()[0]
    assert str(index.as_query_engine().query("France?")) == "Four, I am certain."


def test_router_query_engine_escalates_an_unreadable_selection(index: VectorStoreIndex) -> None:
    """A selector's parser works as validator, so unreadable choices escalate."""
    small = FakeModel("I choose the first one!", name="small")

    def choose(messages: Any) -> str:
        if "choice" in str(messages).lower():
            return '[{"choice": 1, "reason": "capitals"}]'
        return "Paris."

    llm = CascadeLLM([small, FakeModel(choose, name="large")], Never())
    tool = QueryEngineTool.from_defaults(
        index.as_query_engine(llm=CascadeLLM([FakeModel("Paris.", name="one")])),
        name="facts",
        description="capitals",
    )
    engine = RouterQueryEngine(
        selector=LLMSingleSelector.from_defaults(llm=llm), query_engine_tools=[tool], llm=llm
    )
    with record_cascade() as recorder:
        assert str(engine.query("Capital of France?")) == "Paris."
    assert recorder.traces[0].attempts[0].policy == "Usable"


def test_sub_question_engine(index: VectorStoreIndex) -> None:
    """The sub-question engine plans and answers through the cascade."""
    plan = '```json\n{"items": [{"sub_question": "Capital of France?", "tool_name": "facts"}]}\n```'

    def say(messages: Any) -> Any:
        return plan if "sub_question" in str(messages) else "Paris."

    llm = CascadeLLM([FakeModel("hm", name="s"), FakeModel(say, name="l", tools=False)], Always())
    tool = QueryEngineTool.from_defaults(
        index.as_query_engine(llm=llm), name="facts", description="capitals"
    )
    from llama_index.core.question_gen import LLMQuestionGenerator

    engine = SubQuestionQueryEngine.from_defaults(
        [tool],
        llm=llm,
        question_gen=LLMQuestionGenerator.from_defaults(llm=llm),
        use_async=False,
        verbose=False,
    )
    engine._response_synthesizer._llm = llm
    assert str(engine.query("Capital of France?")) == "Paris."


def test_metadata_extractors_run() -> None:
    """Ingestion with an LLM extractor runs through the cascade's async path."""
    from llama_index.core.extractors import TitleExtractor

    llm, _, _ = pair()
    extractor = TitleExtractor(llm=llm, nodes=1, num_workers=1, show_progress=False)
    nodes = SentenceSplitter().get_nodes_from_documents([Document(text=FACTS[0])])
    (found,) = run(extractor.aextract(nodes))
    assert found["document_title"] == "Four, I am certain."


def test_demo_embedding_finds_the_right_fact(index: VectorStoreIndex) -> None:
    """Retrieval by shared words ranks the right fact first, sync and async."""
    retriever = index.as_retriever(similarity_top_k=1)
    assert retriever.retrieve("What does Ada do?")[0].text == FACTS[2]
    (node,) = run(retriever.aretrieve("capital of Italy"))
    assert node.text == FACTS[1]


def test_history_of_a_conversation_reaches_each_tier_whole() -> None:
    """Both tiers read the same conversation."""
    llm, small, large = pair()
    llm.chat([*user("hi"), *user("again")])
    assert small.calls[0][0] == large.calls[0][0]
    assert llm.policy == CHOW
    assert Valid() != CHOW
