"""Retrieved documents reach the policies of a LangChain cascade, and the prompt stays as it is."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from cascadellm import Decision, ToolCall, call_context, record_cascade
from cascadellm.demo.langchain import WordCountEmbeddings
from cascadellm.policies import Moment, Policy
from cascadellm.testing import FakeModel
from langchain_cascade import CascadeLLM, Grounded, RetrievedDocuments
from tests.langchain.lc_openai import OpenAIFake, chat_openai

FACTS = ("Nia lives in Fenland.", "Tom is a baker in Marlow.", "Ida has a parrot.")
RIGHT = "Nia lives in Fenland."
WRONG = "Nia lives in Orla, near Dover."
WAYS = ("invoke", "ainvoke", "stream", "astream", "batch", "abatch")


class Sees(Policy):
    """Notes the documents of each call, and accepts."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, ...]] = []

    def after(self, moment: Moment) -> Decision:
        """Note and accept."""
        self.seen.append(tuple(moment.request.documents))
        return Decision(False, "Sees", code="seen")


def retriever(k: int = 1) -> Any:
    """Return a retriever over the facts, by shared words."""
    store = InMemoryVectorStore.from_texts(list(FACTS), WordCountEmbeddings())
    return store.as_retriever(search_kwargs={"k": k})


def chain_of(llm: Any) -> Any:
    """Return a retrieval chain as any tutorial writes it."""
    prompt = ChatPromptTemplate.from_template("Context:\n{context}\n\nQuestion: {question}")
    found = retriever() | (lambda documents: "\n".join(d.page_content for d in documents))
    start: Any = {"context": found, "question": RunnablePassthrough()}
    return start | prompt | llm | StrOutputParser()


def cascade(policy: Any, draft: Any = RIGHT) -> tuple[CascadeLLM, FakeModel]:
    """Return a cascade of two fakes."""
    small = FakeModel(draft, name="small")
    return CascadeLLM(tiers=[small, FakeModel(RIGHT, name="large")], policy=policy), small


def called(chain: Any, way: str, question: str = "Where does Nia live?") -> str:
    """Call a chain in one way."""

    async def go() -> str:
        if way == "ainvoke":
            return str(await chain.ainvoke(question))
        if way == "abatch":
            return str((await chain.abatch([question]))[0])
        return "".join([piece async for piece in chain.astream(question)])

    if way.startswith("a"):
        return asyncio.run(go())
    if way == "batch":
        return str(chain.batch([question])[0])
    return str(chain.invoke(question)) if way == "invoke" else "".join(chain.stream(question))


@pytest.mark.parametrize("way", WAYS)
def test_a_chains_retrievals_reach_the_policy(way: str) -> None:
    """With the handler on the chain the policy sees the passages; the prompt is the same."""
    policy = Sees()
    llm, small = cascade(policy)
    chain = chain_of(llm)
    handler = RetrievedDocuments()
    called(chain, way)
    assert RIGHT == called(chain.with_config(callbacks=[handler]), way)
    assert [(), (FACTS[0],)] == policy.seen
    assert small.calls[0] == small.calls[1]
    assert not handler._parents
    assert not handler._found


def test_runs_of_a_batch_keep_their_own_documents() -> None:
    """Concurrent runs under one handler do not mix, and later calls see nothing of them."""
    policy = Sees()
    llm, _ = cascade(policy)
    handler = RetrievedDocuments()
    chain = chain_of(llm).with_config(callbacks=[handler])
    asked = ["Where does Nia live?", "Where is Tom a baker?", "Has Ida a parrot?"] * 5
    chain.batch(asked, config={"max_concurrency": 4})
    asyncio.run(chain.abatch(asked))
    assert sorted([(fact,) for fact in FACTS] * 10) == sorted(policy.seen)
    llm.invoke("Where does Nia live?", config={"callbacks": [handler]})
    assert () == policy.seen[-1]


def test_the_nearest_run_with_a_retrieval_counts() -> None:
    """A chain inside a larger run sees what was retrieved for it, else what was before it."""
    policy = Sees()
    llm, _ = cascade(policy)
    inner = chain_of(llm)

    def both(question: str) -> list[str]:
        return [inner.invoke("Has Ida a parrot?"), inner.invoke(question), llm.invoke("So?").text]

    outer = RunnableLambda(both).with_config(callbacks=[RetrievedDocuments()])
    outer.invoke("Where does Nia live?")
    assert [(FACTS[2],), (FACTS[0],), (FACTS[2], FACTS[0])] == policy.seen


@pytest.mark.parametrize("way", WAYS)
def test_documents_set_around_a_call(way: str) -> None:
    """`call_context` hands over documents on every path, also in threads."""
    policy = Sees()
    llm, _ = cascade(policy)
    documents = [Document(page_content=fact) for fact in FACTS[:2]]
    with call_context(documents=documents):
        called(llm | StrOutputParser(), way)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(copy_context().run, called, llm | StrOutputParser(), way).result()
    called(llm | StrOutputParser(), way)
    assert [FACTS[:2], FACTS[:2], ()] == policy.seen


MEASURES = {
    "overlap": Grounded(0.7),
    "embedding": Grounded(0.7, embed=WordCountEmbeddings()),
    "judge": Grounded(judge=FakeModel(lambda m: str("Orla" not in str(m)), name="judge")),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("draft", [RIGHT, WRONG, "The context does not contain that."])
def test_an_unsupported_answer_is_deferred(draft: str, measure: str, way: str) -> None:
    """By each measure and on each path supported answers stand, others are deferred."""
    llm, _ = cascade(MEASURES[measure], draft)
    chain = chain_of(llm).with_config(callbacks=[RetrievedDocuments()])
    with record_cascade() as recorder:
        assert RIGHT == called(chain, way)
    (trace,) = recorder.traces
    assert ("small" if draft == RIGHT else "large") == trace.answered_by
    code = "no_answer" if draft.startswith("The") else "judge" if measure == "judge" else "score"
    assert code == trace.attempts[0].code


def test_the_question_supports_nothing_where_passages_are_known() -> None:
    """Without the handler the prompt is the context, and the question's words count."""
    llm, _ = cascade(Grounded(0.7), "Nia lives in Orla")
    chain, question = chain_of(llm), "Is it true that Nia lives in Orla?"
    assert "Nia lives in Orla" == called(chain, "invoke", question)
    handled = chain.with_config(callbacks=[RetrievedDocuments()])
    assert RIGHT == called(handled, "invoke", question)


def test_a_provider_judges_through_its_own_client() -> None:
    """A LangChain chat model is a judge as it is; its prompt holds the passages."""
    for verdict, draft in (("False, it is Fenland.", WRONG), ("True", RIGHT)):
        fake = OpenAIFake(verdict)
        llm, _ = cascade(Grounded(judge=chat_openai(fake)), draft)
        chain = chain_of(llm).with_config(callbacks=[RetrievedDocuments()])
        assert RIGHT == called(chain, "invoke")
        (body,) = fake.bodies
        assert f"Context:\n{FACTS[0]}\n\nAnswer:\n{draft}" in body["messages"][0]["content"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_agents_retrieval_tool_counts_for_its_answer(asynchronous: bool) -> None:
    """What a tool retrieved is known to the agent's later steps, and not to its first one."""
    from langchain.agents import create_agent

    policy = Sees()

    def reply(messages: Any) -> Any:
        done = any(message["role"] == "tool" for message in messages)
        return RIGHT if done else ToolCall("search", {"query": "Where does Nia live?"}, id="c1")

    llm, _ = cascade(policy, reply)

    def search(query: str) -> str:
        """Search the facts."""
        return "\n".join(found.page_content for found in retriever().invoke(query))

    agent = create_agent(llm, [search])
    config: Any = {"callbacks": [RetrievedDocuments()]}
    question: Any = {"messages": [("user", "Where does Nia live?")]}
    if asynchronous:
        result = asyncio.run(agent.ainvoke(question, config))
    else:
        result = agent.invoke(question, config)
    assert RIGHT == result["messages"][-1].content
    assert [(), (FACTS[0],)] == policy.seen


def test_a_failed_run_is_forgotten() -> None:
    """A chain that raises after its retrieval leaves nothing behind."""
    handler = RetrievedDocuments()

    def fails(text: Any) -> Any:
        raise ValueError("no prompt")

    chain = (retriever() | RunnableLambda(fails)).with_config(callbacks=[handler])
    with pytest.raises(ValueError, match="no prompt"):
        chain.invoke("Nia")
    assert not handler._parents
    assert not handler._found
