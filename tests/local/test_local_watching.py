"""Growing drafts of local models: scores on the way, and stopping within one token."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from cascadellm import Cascade, EarlyAbort, PrefixCommit, Request, Threshold, mean_logprob
from cascadellm.perform import AsyncLocalPerformer, adrive
from cascadellm.testing import FakeModel
from cascadellm.watching import Gate, Growing
from tests.engine.running import MODES, run

torch = pytest.importorskip("torch")

QUESTION = "Nia has 3 apples and buys 4 more. How many apples does Nia have?"


@pytest.fixture(scope="module")
def model() -> Any:
    """The demo's small model."""
    from cascadellm.demo import load

    return load("small")


def messages() -> list[dict[str, str]]:
    """Return a question as chat messages."""
    return [{"role": "user", "content": QUESTION}]


def test_pieces_when_streamed_carry_the_scores_of_the_answer(model: Any) -> None:
    """The scores on the way are those of the finished answer, in order, without gaps."""
    pieces = list(model.stream(messages(), max_new_tokens=40))
    whole = pieces[-1].answer
    found = tuple(token for piece in pieces for token in piece.tokens)

    assert whole.tokens[: len(found)] == found
    assert len(found) >= len(whole.tokens) - 3
    assert {whole.usage.input_tokens} == {p.input_tokens for p in pieces if p.tokens}


@pytest.mark.parametrize("mode", MODES)
def test_abort_when_a_local_draft_is_hopeless(model: Any, mode: str) -> None:
    """At most one token is generated after the deciding one, and the record charges it."""
    written: list[int] = []
    policy = EarlyAbort(mean_logprob, 1.0, after_tokens=4)
    cascade = Cascade([model, FakeModel("large", name="large")], policy)
    outcome = run(cascade, mode, Request(messages(), QUESTION))
    first = outcome.trace.attempts[0]
    written.append(first.output_tokens or 0)

    assert ("large", "stopped", "early_abort") == (outcome.answer.text, first.action, first.code)
    assert 4 <= written[0] <= 5


def test_stop_when_a_local_stream_is_closed(model: Any) -> None:
    """A stopped draft's model writes no further token."""
    steps: list[int] = []
    decoding = type(model._runner._batch)
    assert decoding is not None
    gate = Gate(lambda answer: "stop" if len(answer.tokens or ()) >= 3 else "go_on", Growing())
    count = 0
    for _ in gate.through(model.stream(messages(), max_new_tokens=200)):
        count += 1
    steps.append(len(gate.answer.tokens or ()) if gate.answer is not None else 0)
    begun = time.perf_counter()
    model.generate(messages(), max_new_tokens=1)

    assert 0 == count
    assert 3 <= steps[0] <= 4
    # 200 tokens take far longer than the one that may still have been on its way
    assert time.perf_counter() - begun < 5


def test_commit_when_a_local_draft_is_good(model: Any) -> None:
    """A committed local draft comes out piece by piece and equals the whole answer."""
    watch = PrefixCommit(mean_logprob, -9.0, tokens=3).watch(_moment())
    gate = Gate(watch, Growing())
    pieces = list(gate.through(model.stream(messages(), max_new_tokens=30)))
    whole = model.generate(messages(), max_new_tokens=30)

    assert whole.text == "".join(piece.text for piece in pieces)
    assert gate.shown
    assert len(pieces) > 3


async def test_policy_when_local_and_async(model: Any) -> None:
    """The async path takes the same decision as the sync one."""
    policy = EarlyAbort(mean_logprob, -3.0, after_tokens=4) | Threshold(mean_logprob, -9.0)
    cascade = Cascade([model, FakeModel("large", name="large")], policy)
    plan = cascade.plan(Request(messages(), QUESTION))
    there = await adrive(plan, AsyncLocalPerformer())
    here = await asyncio.to_thread(run, cascade, "invoke", Request(messages(), QUESTION))

    assert here.answer.text == there.answer.text
    assert here.trace.answered_by == there.trace.answered_by


def _moment() -> Any:
    from cascadellm.policies import Moment

    return Moment(Request(messages(), QUESTION), 0, "small", ())
