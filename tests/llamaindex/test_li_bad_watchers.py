"""Tracers and handlers that raise, hang or are slow; and calls that nobody watches."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from pydantic import PrivateAttr

from llamaindex_cascade import observe, spans, tracing
from tests.llamaindex.li_support import ENDPOINTS, asked, pair, text_of, user
from tests.servers.otlp_server import OtlpServer

# the instrumentor calls pydantic's old `json`; a warning there would lose the span silently
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SAID = "Four, I am certain."
SOME = ["chat", "achat", "stream_chat", "astream_chat"]


class Acting(BaseEventHandler):
    """Does something at every event."""

    act: Callable[[], None]

    def handle(self, event: Any, **kwargs: Any) -> None:
        """Do it."""
        self.act()


class ActingSpans(BaseSpanHandler[Any]):
    """Does something at every span."""

    _act: Callable[[], None] = PrivateAttr()

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self._act = act

    def new_span(self, *args: Any, **kwargs: Any) -> None:
        """Do it."""
        self._act()

    def prepare_to_exit_span(self, *args: Any, **kwargs: Any) -> None:
        """Do it."""
        self._act()

    def prepare_to_drop_span(self, *args: Any, **kwargs: Any) -> None:
        """Do it."""
        self._act()


class ActingProcessor(SpanProcessor):
    """An OpenTelemetry processor that does something at every span."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.act()

    def on_end(self, span: Any) -> None:
        self.act()


@pytest.fixture
def attach() -> Iterator[Callable[[str, Callable[[], None]], None]]:
    """Attach a handler of one kind that acts; detach it afterwards."""
    root = get_dispatcher()
    events_before, spans_before = list(root.event_handlers), list(root.span_handlers)
    running: list[Any] = []

    def attached(kind: str, act: Callable[[], None]) -> None:
        if kind == "event handler":
            root.add_event_handler(Acting(act=act))
        elif kind == "span handler":
            root.add_span_handler(ActingSpans(act=act))
        else:
            provider = TracerProvider()
            provider.add_span_processor(ActingProcessor(act))
            running.append(tracing.instrument(provider))

    yield attached
    for one in running:
        one.close()
    root.event_handlers, root.span_handlers = events_before, spans_before


KINDS = ["event handler", "span handler", "tracer"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_watcher_that_raises_breaks_no_answer(endpoint: str, kind: str, attach: Any) -> None:
    """What a handler or tracer raises at any event or span never reaches the caller."""

    def act() -> None:
        raise RuntimeError("planted")

    attach(kind, act)
    assert text_of(asked(pair()[0], endpoint)[-1]) == SAID


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("endpoint", SOME)
def test_a_slow_watcher_delays_an_answer_by_its_own_callbacks_alone(
    endpoint: str, kind: str, attach: Any
) -> None:
    """The delay is the time that the watcher's own callbacks took, and no more."""
    spent: list[float] = []

    def act() -> None:
        begun = time.perf_counter()
        time.sleep(0.01)
        spent.append(time.perf_counter() - begun)

    attach(kind, act)
    # a tracer imports what it needs at its first span
    asked(pair()[0], endpoint)
    spent.clear()
    begun = time.perf_counter()
    assert text_of(asked(pair()[0], endpoint)[-1]) == SAID
    assert spent
    assert time.perf_counter() - begun < sum(spent) + 0.5


@pytest.mark.parametrize("endpoint", SOME)
def test_a_receiver_that_hangs_delays_no_answer(endpoint: str) -> None:
    """A destination that takes the connection and never answers costs an answer nothing."""
    released = threading.Event()
    with OtlpServer(hold=released) as server:
        traced = tracing.to_otlp(server.url)
        begun = time.perf_counter()
        assert text_of(asked(pair()[0], endpoint)[-1]) == SAID
        took = time.perf_counter() - begun
        assert not server.spans
        released.set()
        traced.close()
        assert len(server.spans) == 6
    assert took < 2


def test_a_watcher_that_hangs_in_one_call_holds_up_no_other(attach: Any) -> None:
    """No lock is shared: while one call waits for its handler, others are answered."""
    released, entered = threading.Event(), threading.Event()
    stuck_in: list[int] = []

    def act() -> None:
        if not stuck_in or threading.get_ident() == stuck_in[0]:
            stuck_in.append(threading.get_ident())
            entered.set()
            released.wait(30)

    attach("event handler", act)
    llm = pair()[0]
    stuck = threading.Thread(target=llm.chat, args=(user(),))
    stuck.start()
    assert entered.wait(10)
    assert text_of(llm.chat(user())) == SAID
    assert text_of(asyncio.run(llm.achat(user()))) == SAID
    assert stuck.is_alive()
    released.set()
    stuck.join(10)
    assert not stuck.is_alive()


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count every span, event, copy and serialisation."""
    count: Counter[str] = Counter()

    def counted(owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            count[name] += 1
            return inner(*args, **kwargs)

        monkeypatch.setattr(owner, name, outer)

    for owner, name in (
        (spans, "instrumentation_event"),
        (spans, "DeferralPolicy"),
        (spans, "trace_attributes"),
        (observe, "event_copy"),
        (json, "dumps"),
    ):
        counted(owner, name)
    return count


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_without_a_watcher_nothing_is_built_or_serialised(
    endpoint: str, built: Counter[str]
) -> None:
    """No handler, no tracer: no decision span, no event, no copy, no serialisation at all."""
    assert text_of(asked(pair()[0], endpoint)[-1]) == SAID
    assert not built


@pytest.mark.parametrize("endpoint", SOME)
def test_a_decision_span_that_nobody_sees_is_noticed(
    endpoint: str, built: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count has power: a cascade that takes itself for watched builds spans (mutation)."""
    monkeypatch.setattr(spans, "_handlers", lambda dispatcher: (True, True))
    asked(pair()[0], endpoint)
    assert built["DeferralPolicy"] == 1
    assert built["instrumentation_event"] >= 4
