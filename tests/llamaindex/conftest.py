"""Recorders that leave the global dispatcher as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from llama_index.core.instrumentation import get_dispatcher

from tests.llamaindex.li_support import CLIENTS, Events, Spans


@pytest.fixture
def events() -> Iterator[Events]:
    """Record every instrumentation event."""
    root = get_dispatcher()
    before = list(root.event_handlers)
    handler = Events(events=[])
    root.add_event_handler(handler)
    yield handler
    root.event_handlers = before


@pytest.fixture
def spans() -> Iterator[Spans]:
    """Record every span."""
    root = get_dispatcher()
    before = list(root.span_handlers)
    handler = Spans(open_spans={}, completed_spans=[], dropped_spans=[])
    root.add_span_handler(handler)
    yield handler
    root.span_handlers = before


@pytest.fixture(autouse=True)
def clients() -> Iterator[None]:
    """Close the OpenAI clients of a test."""
    yield
    for llm in CLIENTS:
        if llm._client is not None:
            llm._client.close()
    CLIENTS.clear()
