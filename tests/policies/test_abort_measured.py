"""An aborted local draft: how many tokens the model still writes after the decision."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from cascadellm import Answer, EarlyAbort, PrefixCommit
from cascadellm.demo import questions
from cascadellm.testing import FakeModel
from tests.engine.running import MODES
from tests.policies.both_frameworks import FRAMEWORKS, record_of

torch = pytest.importorskip("torch")

QUESTION = questions(1, 3)[0].question


@pytest.fixture(scope="module")
def small() -> Iterator[Any]:
    """The demo's small model."""
    from cascadellm.demo import load

    model = load("small", max_new_tokens=120)
    yield model
    model.close()


class Steps:
    """Counts the tokens that a local model really computes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from cascadellm.local.decoding import Decoding

        self.written = 0
        self.at_decision: list[int] = []
        advance = Decoding.advance

        def counted(decoding: Any, new: Any) -> Any:
            found = advance(decoding, new)
            self.written += 1
            return found

        monkeypatch.setattr(Decoding, "advance", counted)

    def hopeless(self, answer: Answer) -> float:
        """A score that finds every draft hopeless, and notes how much was written by then."""
        self.at_decision.append(self.written)
        return -9.0

    def later(self) -> int:
        """Return the tokens written after the first decision, once nothing moves any more."""
        seen = -1
        while seen != self.written:
            seen = self.written
            time.sleep(0.05)
        return self.written - self.at_decision[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("framework", ["engine", *FRAMEWORKS])
@pytest.mark.parametrize("kind", ["abort", "commit"])
def test_tokens_when_a_local_draft_is_stopped(
    kind: str, framework: str, mode: str, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most one token is computed after the decision, on every path of both frameworks."""
    steps = Steps(monkeypatch)
    policy = (
        EarlyAbort(steps.hopeless, 0.0, after_tokens=6)
        if kind == "abort"
        else PrefixCommit(steps.hopeless, 0.0, tokens=6)
    )
    tiers = [small, FakeModel("large", name="large")]
    found = record_of(framework, mode, tiers, policy, QUESTION)

    assert steps.later() <= 1
    assert 6 <= steps.at_decision[0] <= 7
    assert ("large", "stopped") == (found["answered_by"], found["attempts"][0]["action"])
    assert 6 <= found["attempts"][0]["output_tokens"] <= 7


def test_tokens_when_a_stop_is_ignored(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check has power: a gate that goes on reading after the decision is noticed."""
    from cascadellm.watching import Gate

    def reads_on(self: Any, pieces: Any) -> Iterator[Any]:
        for piece in pieces:
            self._pass(piece)
        yield from ()

    monkeypatch.setattr(Gate, "through", reads_on)
    steps = Steps(monkeypatch)
    policy = EarlyAbort(steps.hopeless, 0.0, after_tokens=6)
    record_of("engine", "invoke", [small, FakeModel("large")], policy, QUESTION)

    assert steps.later() > 1
