"""Threads of the user's own: what stands around a call reaches it there, in both frameworks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from langchain_core.callbacks import get_usage_metadata_callback
from langsmith import Client, traceable, tracing_context
from llama_index.core.instrumentation import get_dispatcher

import langchain_cascade
import llamaindex_cascade
from cascadellm import Recorder, call_context, in_this_context, record_cascade
from cascadellm.testing import FakeModel
from llamaindex_cascade import tracing
from tests.langchain.lc_tools import CHOW
from tests.llamaindex.li_support import user
from tests.servers.langsmith_server import LangSmithServer

# the instrumentor calls pydantic's old `json`; a warning there would lose the span silently
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CALLS = 4
BOTH = ["langchain", "llamaindex"]


def _tiers() -> list[FakeModel]:
    return [FakeModel("Lyon?", name="small", logprob=-2.0), FakeModel("Paris.", name="large")]


def _asking(framework: str, policy: Any = CHOW, **options: Any) -> Callable[[Any], Any]:
    """Return what asks a cascade one question, together with the other threads."""
    together = Barrier(CALLS)
    if framework == "langchain":
        chain = langchain_cascade.CascadeLLM(_tiers(), policy, **options)
        ask: Callable[[Any], Any] = chain.invoke
    else:
        index = llamaindex_cascade.CascadeLLM(_tiers(), policy, **options)

        def ask(question: Any) -> Any:
            return index.chat(user(question))

    def asked(question: Any) -> Any:
        together.wait(30)
        return ask(question)

    return asked


def _in_threads(work: Callable[[Any], Any]) -> None:
    with ThreadPoolExecutor(CALLS) as executor:
        assert len(list(executor.map(work, ["hi"] * CALLS))) == CALLS


@pytest.mark.parametrize("framework", BOTH)
def test_an_executors_calls_are_recorded_when_the_context_is_handed_over(framework: str) -> None:
    """`in_this_context` takes the recorder along, to threads that run at the same time."""
    with record_cascade() as recorder:
        _in_threads(in_this_context(_asking(framework)))
    assert [trace.answered_by for trace in recorder.traces] == ["large"] * CALLS
    assert recorder.summary().calls == CALLS


@pytest.mark.parametrize("framework", BOTH)
def test_without_the_context_an_executors_calls_are_not_recorded(framework: str) -> None:
    """The check has power: an executor of one's own begins without the recorder (mutation)."""
    with record_cascade() as recorder:
        _in_threads(_asking(framework))
    assert not recorder.traces


@pytest.mark.parametrize("framework", BOTH)
def test_a_recorder_as_handler_sees_every_thread(framework: str) -> None:
    """A `Recorder` among a cascade's handlers needs no context."""
    recorder = Recorder()
    _in_threads(_asking(framework, handlers=[recorder]))
    assert [trace.answered_by for trace in recorder.traces] == ["large"] * CALLS


@pytest.mark.parametrize("framework", BOTH)
def test_metadata_of_a_call_reaches_policies_in_threads(framework: str) -> None:
    """What `call_context` sets is there too."""
    seen: list[Any] = []

    class Noting(langchain_cascade.Policy):
        def after(self, moment: Any) -> Any:
            seen.append(moment.request.metadata.get("user"))
            return langchain_cascade.Decision(False, self.name)

    with call_context(metadata={"user": "u1"}):
        _in_threads(in_this_context(_asking(framework, Noting())))
    assert seen == ["u1"] * CALLS


def test_langsmith_keeps_one_tree_across_threads() -> None:
    """Calls in threads hang below the function that started them, tokens counted once."""
    asked = _asking("langchain")

    @traceable(name="asks")
    def asks() -> None:
        _in_threads(in_this_context(asked))

    with LangSmithServer() as server:
        client = Client(api_url=server.url, api_key="ls-none")
        with (
            tracing_context(enabled=True, client=client, project_name="p"),
            get_usage_metadata_callback() as usage,
        ):
            asks()
        client.flush()
        client.cleanup()
        root = server.tree()
    below = [child.shape()[:2] for child in root.children]
    assert below == [["chain", "CascadeLLM"]] * CALLS
    assert sum(one["total_tokens"] for one in usage.usage_metadata.values()) == root.total_tokens


def test_openinference_keeps_one_tree_across_threads() -> None:
    """LlamaIndex calls in threads hang below the span that started them."""
    asked = _asking("llamaindex")

    @get_dispatcher("tests.threads").span
    def asks() -> None:
        _in_threads(in_this_context(asked))

    with LangSmithServer() as server:
        with tracing.to_langsmith("p", api_key="none", endpoint=server.url):
            asks()
        (root,) = server.trees()
    assert len([child for child in root.children if child.name == "CascadeLLM.chat"]) == CALLS
    assert len(server.filtered(cascade_escalated=True)) == CALLS
