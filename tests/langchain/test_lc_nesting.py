"""Runs of tiers and decisions nest below the cascade's run (T1 to T5)."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda

from langchain_cascade import CascadeLLM, LocalChatModel, Threshold, mean_logprob
from langchain_cascade.tracing import Outer
from tests.langchain.lc_tools import CHOW, PATHS, Recording, cascade, fakes

TREE = [["CascadeLLM", [["small", []], ["cascade_decision", []], ["large", []]]]]


def lookup(name: str) -> str:
    """Look a name up."""
    return name


@pytest.mark.parametrize("path", PATHS)
def test_t01_tier_and_decision_runs_are_children_of_the_cascade(path):
    """On every path there is one root, with the tiers and the decision below it."""
    seen = Recording()
    PATHS[path](cascade(), "hi", {"callbacks": [seen]})
    assert TREE == seen.tree()


@pytest.mark.parametrize("path", PATHS)
def test_t02_the_run_tree_of_a_chain_is_the_same_on_every_path(path):
    """Inside `prompt | cascade` the cascade keeps its children, streaming or not."""
    seen = Recording()
    chain = ChatPromptTemplate.from_messages([("user", "{q}")]) | cascade()
    PATHS[path](chain, {"q": "hi"}, {"callbacks": [seen]})
    (root,) = seen.tree()
    assert root[0] == "RunnableSequence"
    assert TREE[0] in root[1]


@pytest.mark.parametrize("path", PATHS)
def test_t02_private_arguments_reach_no_run(path):
    """No run's parameters or metadata name the private call arguments."""
    seen = Recording()
    PATHS[path](cascade().bind_tools([lookup]), "hi", {"callbacks": [seen]})
    for run in seen.runs.values():
        assert "_cascade" not in str(run.params) + str(run.metadata)


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
def test_t02_v3_events_keep_the_tree():
    """`stream_events` v3 opens the run by itself and the tree is the same."""
    seen = Recording()
    stream = cascade().stream_events("hi", {"callbacks": [seen]}, version="v3")
    assert str(stream.output.text) == "large says so"
    assert TREE == seen.tree()


@pytest.mark.parametrize("path", ["invoke", "ainvoke", "stream"])
def test_t03_a_bound_tier_inside_a_chain_is_no_sibling(path):
    """With tools bound, three models start, and both tiers are children of the cascade."""
    seen = Recording()
    chain = ChatPromptTemplate.from_messages([("user", "{q}")]) | cascade().bind_tools([lookup])
    PATHS[path](chain, {"q": "hi"}, {"callbacks": [seen]})
    top, small, large = seen.models
    assert ["CascadeLLM", "small", "large"] == [top.name, small.name, large.name]
    assert small.parent == large.parent == top.run_id


def test_t03_threads_and_tasks_do_not_mix():
    """Eight threads and eight tasks leave sixteen separate trees."""
    llm = cascade()
    recordings = [Recording() for _ in range(16)]
    threads = [
        threading.Thread(target=llm.invoke, args=("hi", {"callbacks": [seen]}))
        for seen in recordings[:8]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def together() -> None:
        calls = [llm.ainvoke("hi", {"callbacks": [seen]}) for seen in recordings[8:]]
        await asyncio.gather(*calls)

    asyncio.run(together())
    assert [TREE] * 16 == [seen.tree() for seen in recordings]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("chained", [False, True])
def test_t04_decision_events_belong_to_the_cascade_run(path, chained):
    """Every `cascade_decision` event carries the cascade's run id, bare and in a chain."""
    seen = Recording()
    llm: Any = cascade()
    PATHS[path](RunnableLambda(lambda x: x) | llm if chained else llm, "hi", {"callbacks": [seen]})
    ((name, data, run_id),) = seen.events
    assert name == "cascade_decision"
    assert run_id == seen.named("CascadeLLM")[0].run_id
    assert data["defer"] is True
    assert data["threshold"] == -0.35
    assert data == seen.named("cascade_decision")[0].end


@pytest.mark.parametrize("path", ["invoke", "ainvoke", "stream", "astream"])
def test_t05_tier_runs_show_their_own_ls_parameters(path):
    """A tier's `ls_provider` and `ls_model_name` are those of the tier run alone."""
    seen, alone = Recording(), Recording()
    small, large = fakes()
    PATHS[path](CascadeLLM([small, large], CHOW), "hi", {"callbacks": [seen]})
    LocalChatModel(small).invoke("hi", {"callbacks": [alone]})
    expected = {k: v for k, v in alone.models[0].metadata.items() if k.startswith("ls_")}
    tier = seen.named("small")[0].metadata
    assert expected == {k: v for k, v in tier.items() if k.startswith("ls_")}


def test_t05_v3_events_leak_no_ls_parameters():
    """Where LangChain opens the run itself, its inherited parameters are taken out again."""
    manager = type("Manager", (), {})()
    manager.handlers = manager.inheritable_handlers = []
    manager.inheritable_tags, manager.inheritable_metadata = [], {"ls_provider": "cascade", "u": 1}
    assert {"u": 1} == Outer.of(manager, None).child_manager(False).metadata


def test_a_policys_own_calls_nest_below_the_decision():
    """A model that a policy calls without a config becomes a child of the decision run."""
    seen = Recording()
    judge = LocalChatModel(fakes()[1])

    def ask_a_judge(answer: Any) -> bool:
        return "large" in judge.invoke("is this right?", {"run_name": "judge"}).text

    cascade(ask_a_judge).invoke("hi", {"callbacks": [seen]})
    assert seen.named("judge")[0].parent == seen.named("cascade_decision")[0].run_id


def test_the_users_context_is_restored_after_a_broken_policy():
    """A policy that raises leaves no decision run behind as the parent of later calls."""
    seen = Recording()
    llm = cascade(Threshold(mean_logprob, -0.35, missing="raise"), logprob=None)
    with pytest.raises(Exception, match="logprobs"):
        llm.invoke("hi", {"callbacks": [seen]})
    assert "logprobs" in str(seen.named("cascade_decision")[0].error)
    later = Recording()
    LocalChatModel(fakes()[0]).invoke("hi", {"callbacks": [later]})
    assert later.models[0].parent is None


def test_tier_callbacks_off_leaves_one_run():
    """With `tier_callbacks=False` handlers see the cascade's run alone."""
    seen = Recording()
    cascade(options={"tier_callbacks": False}).invoke("hi", {"callbacks": [seen]})
    assert [["CascadeLLM", []]] == seen.tree()


def test_nesting_is_noticed_when_broken(monkeypatch):
    """The tree check fails when tiers run without the child manager (mutation)."""
    monkeypatch.setattr(Outer, "child_manager", lambda self, asynchronous, **_: None)
    seen = Recording()
    cascade().invoke("hi", {"callbacks": [seen]})
    assert TREE != seen.tree()
