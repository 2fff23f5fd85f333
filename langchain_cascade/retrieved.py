"""RetrievedDocuments: what a chain's retrievers found, handed to the policies of its cascade."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document

from langchain_cascade.muting import Muted
from langchain_cascade.tracing import Outer

__all__ = ["RetrievedDocuments", "documents_of"]


class RetrievedDocuments(BaseCallbackHandler):
    """Remembers what the retrievers of a run found, for the cascades in the same run.

    Pass it once to the whole chain, graph or agent, in `with_config(callbacks=[...])` or in a
    call's config. A cascade inside then finds the documents of the nearest run around it that
    retrieved any; the prompt is not changed. Concurrent runs keep their own documents, and a
    run that has ended is forgotten.
    """

    # told in order with the run, also when the run is async
    run_inline = True

    def __init__(self) -> None:
        self._parents: dict[UUID, UUID | None] = {}
        self._found: dict[UUID, list[str]] = {}
        self._lock = threading.Lock()

    def documents(self, run_id: UUID | None) -> tuple[str, ...]:
        """Return the passages found so far in the nearest run around a run."""
        with self._lock:
            for around in self._around(run_id):
                if around in self._found:
                    return tuple(self._found[around])
        return ()

    def _around(self, run_id: UUID | None) -> list[UUID]:
        around = []
        while run_id is not None:
            around.append(run_id)
            run_id = self._parents.get(run_id)
        return around

    def _begin(self, run_id: UUID, parent_run_id: UUID | None) -> None:
        with self._lock:
            self._parents[run_id] = parent_run_id

    def _end(self, run_id: UUID) -> None:
        with self._lock:
            self._parents.pop(run_id, None)
            self._found.pop(run_id, None)

    def on_retriever_end(
        self,
        documents: Sequence[Document],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep what was found for every run around the retriever."""
        texts = [document.page_content for document in documents]
        with self._lock:
            for around in self._around(parent_run_id):
                self._found.setdefault(around, []).extend(texts)

    def on_chain_start(self, *args: Any, run_id: UUID, **kwargs: Any) -> None:
        """Learn where a run stands."""
        self._begin(run_id, kwargs.get("parent_run_id"))

    def on_chat_model_start(self, *args: Any, run_id: UUID, **kwargs: Any) -> None:
        """Learn where a model's run stands."""
        self._begin(run_id, kwargs.get("parent_run_id"))

    def on_tool_start(self, *args: Any, run_id: UUID, **kwargs: Any) -> None:
        """Learn where a tool's run stands."""
        self._begin(run_id, kwargs.get("parent_run_id"))

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Forget a run."""
        self._end(run_id)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Forget a run."""
        self._end(run_id)

    def on_llm_end(self, response: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Forget a model's run."""
        self._end(run_id)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Forget a model's run."""
        self._end(run_id)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Forget a tool's run."""
        self._end(run_id)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Forget a tool's run."""
        self._end(run_id)


def documents_of(outer: Outer | None) -> tuple[str, ...]:
    """Return what a call's handlers know to be retrieved for it."""
    if outer is None:
        return ()
    for seen in outer.handlers:
        handler = seen.handler if isinstance(seen, Muted) else seen
        if isinstance(handler, RetrievedDocuments):
            return handler.documents(outer.run_id)
    return ()
