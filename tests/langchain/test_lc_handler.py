"""CascadeCallbackHandler: typed events through LangChain's callbacks."""

from __future__ import annotations

from typing import Any

import pytest

from cascadellm.testing import FakeModel
from langchain_cascade import CascadeCallbackHandler, CascadeLLM
from tests.langchain.lc_tools import CHOW, PATHS, cascade, fakes


class Keeping(CascadeCallbackHandler):
    """Keeps the names of the events and who they are about."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_tier_started(self, event):
        self.seen.append(("started", event.name))

    def on_tier_answered(self, event):
        self.seen.append(("answered", event.name))

    def on_tier_skipped(self, event):
        self.seen.append(("skipped", event.attempt.name))

    def on_tier_failed(self, event):
        self.seen.append(("failed", event.attempt.name))

    def on_decided(self, event):
        self.seen.append(("decided", event.decision.defer))

    def on_accepted(self, event):
        self.seen.append(("accepted", event.trace.answered_by))

    def on_failed(self, event):
        self.seen.append(("ended", type(event.error).__name__))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("where", ["config", "constructor"])
def test_typed_events_arrive_once_and_in_order(path, where):
    """A handler in the config or the constructor is told every step once, on every path."""
    handler = Keeping()
    options = {"callbacks": [handler]} if where == "constructor" else {}
    config = {"callbacks": [handler]} if where == "config" else {}
    PATHS[path](cascade(options=options), "hi", config)
    assert [
        ("started", "small"),
        ("answered", "small"),
        ("decided", True),
        ("started", "large"),
        ("answered", "large"),
        ("accepted", "large"),
    ] == handler.seen


def test_failures_are_told():
    """A failed tier and a failed call are told, and the error still reaches the caller."""
    handler = Keeping()
    tiers = [FakeModel(TimeoutError("a"), name="small"), FakeModel(OSError("b"), name="large")]
    with pytest.raises(OSError, match="b"):
        CascadeLLM(tiers, CHOW).invoke("hi", {"callbacks": [handler]})
    kinds = [kind for kind, _ in handler.seen]
    assert ["started", "failed", "started", "failed", "ended"] == kinds


def test_a_handler_that_raises_breaks_no_answer():
    """What a typed handler raises is logged and the answer comes."""

    class Breaking(CascadeCallbackHandler):
        def on_decided(self, event):
            raise RuntimeError("planted")

    assert "large says so" == cascade().invoke("hi", {"callbacks": [Breaking()]}).text


def test_a_nested_cascade_tells_the_same_handler():
    """A cascade that is a tier of another one tells the handler too."""
    inner = CascadeLLM(list(fakes(logprob=-0.1)), CHOW)
    handler = Keeping()
    CascadeLLM([inner, fakes()[1]], lambda answer: False).invoke("hi", {"callbacks": [handler]})
    assert [("accepted", "small"), ("accepted", "CascadeLLM")] == [
        seen for seen in handler.seen if seen[0] == "accepted"
    ]
