"""Everything that a LangChain program shows while it runs, and the checks that hold for all.

`Watch` records the cascade's records, the usage callback, the tokens that handlers are shown, and
what the real LangSmith client sends. `problems` compares them; each test suite asserts that it
finds none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.runnables.config import var_child_runnable_config
from langsmith import Client, tracing_context

from cascadellm import Record, record_cascade
from langchain_cascade import CascadeLLM
from tests.dropin.watching import Seen, decisions, leaks, run_ways, strings, told, total
from tests.servers.langsmith_server import LangSmithServer, Node

__all__ = ["Bare", "Seen", "Watch", "decisions", "problems", "run_everywhere", "strings"]


class _Tokens(BaseCallbackHandler):
    """Keeps every token that callbacks are shown."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self._lock = threading.Lock()

    def on_llm_new_token(self, token: str | list[Any], **kwargs: Any) -> None:
        """Keep a token and its chunk."""
        with self._lock:
            self.shown += strings([token, kwargs.get("chunk")])


class Bare:
    """Records alone: nobody listens, as in most programs."""

    def __init__(self, llm: CascadeLLM) -> None:
        self._stack = ExitStack()
        self.records: list[Record] = []

    def __enter__(self) -> Self:
        self.records = self._stack.enter_context(record_cascade()).records
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


class Watch(Bare):
    """Use it around one run of a program: a tracer, a usage counter and a handler listen."""

    def __enter__(self) -> Self:
        super().__enter__()
        self.server = self._stack.enter_context(LangSmithServer(zstd=False))
        self.client = Client(api_url=self.server.url, api_key="ls-none")
        self._stack.callback(self.client.cleanup)
        self._stack.enter_context(
            tracing_context(enabled=True, client=self.client, project_name="p")
        )
        self.usage = self._stack.enter_context(get_usage_metadata_callback())
        self.handler = _Tokens()
        ambient = var_child_runnable_config.set({"callbacks": [self.handler]})
        self._stack.callback(var_child_runnable_config.reset, ambient)
        return self

    def nodes(self) -> list[Node]:
        """Return every run that LangSmith was sent."""
        self.client.flush()
        return [node for root in self.server.trees() for node in root.all()]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.traced = self.nodes()
        self._stack.close()


def problems(watch: Bare, seen: Seen) -> list[str]:
    """Return what is wrong with a run: drafts that leak, tokens, missing decisions."""
    if not isinstance(watch, Watch):
        return leaks(watch.records, seen)
    shown = Seen(seen.text, state=watch.handler.shown)
    return [
        *leaks(watch.records, seen),
        *(f"in callbacks: {leak}" for leak in leaks(watch.records, shown)),
        *_miscounts(watch),
        *_untraced(watch),
    ]


def run_everywhere(
    ways: Mapping[str, Callable[[CascadeLLM], list[Seen]]],
    build: Callable[[], CascadeLLM],
    never: tuple[str, ...] = (),
) -> tuple[str, list[Any]]:
    """Run a program in each of its ways, watched and not; assert that all agree.

    Args:
        ways: Each runs the program once or, as a batch, several times at once.
        build: Makes a fresh cascade.
        never: Words that nothing may show, e.g. those of a rejected tool call.

    Returns: The final answer, and the decisions of one run.
    """
    watched = run_ways(ways, build, Watch, problems, never)
    assert watched == run_ways(ways, build, Bare, problems, never)
    return watched


def _miscounts(watch: Watch) -> list[str]:
    found = []
    wanted = total(watch.records)
    counted = sum(one.get("total_tokens", 0) for one in watch.usage.usage_metadata.values())
    if wanted != counted:
        found.append(f"the usage callback says {counted}, the records say {wanted}")
    traced = sum(root.total_tokens for root in watch.server.trees())
    if wanted != traced:
        found.append(f"LangSmith says {traced} tokens, the records say {wanted}")
    return found


def _untraced(watch: Watch) -> list[str]:
    found = []
    recorded = told(watch.records)
    deciding = [node.run["outputs"] for node in watch.traced if node.name == "cascade_decision"]
    # a decision that was being told when its task was cancelled is one in the record alone
    shown = sorted((told["name"], told["defer"], told["code"]) for told in deciding if told)
    if recorded != shown:
        found.append(f"LangSmith shows the decisions {shown}, the records hold {recorded}")
    answered = sorted(r.trace.answered_by or "" for r in watch.records)
    named = [node for node in watch.traced if node.name == "CascadeLLM"]
    # a retry around a cascade has its name, as around any model
    roots = [node for node in named if "CascadeLLM" not in [c.name for c in node.children]]
    marked = sorted(node.metadata.get("cascade_answered_by", "") for node in roots)
    if answered != marked:
        found.append(f"LangSmith's cascades are answered by {marked}, the records by {answered}")
    known = set(watch.server.runs)
    lost = [
        node.name
        for node in watch.traced
        if node.run.get("parent_run_id") and str(node.run["parent_run_id"]) not in known
    ]
    if lost:
        found.append(f"runs without their parent: {lost}")
    if known != watch.server.ended:
        found.append(f"runs without an end: {known - watch.server.ended}")
    return found
