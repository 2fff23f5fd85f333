"""Async and concurrent use: nothing blocks the loop, nothing runs on after its caller left."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from cascadellm.answer import Answer, Piece
from cascadellm.errors import ConfigurationError, ModelError
from cascadellm.local import LocalModel, aio
from cascadellm.local.decoding import Decoding
from tests.local.likeness import same

QUESTIONS = [f"Question {number}?" for number in range(6)]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of every decoding step."""
    times: list[float] = []
    advance = Decoding.advance

    def counted(self: Decoding, new: Any = ()) -> None:
        times.append(time.perf_counter())
        advance(self, new)

    monkeypatch.setattr(Decoding, "advance", counted)
    return times


async def _until(condition: Callable[[], bool]) -> None:
    """Wait up to ten seconds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nothing happened in ten seconds")


async def test_async_answers_equal_blocking_ones(llama: LocalModel, t5: LocalModel) -> None:
    """agenerate, astream and abatch give what generate gives."""
    for model in (llama, t5):
        expected = model.generate("Hi")
        assert expected == await model.agenerate("Hi")
        pieces = [piece async for piece in model.astream("Hi")]
        assert expected == pieces[-1].answer
        assert expected.text == "".join(piece.text for piece in pieces)
        assert expected.text == (await model.abatch(["Hi"]))[0].text


async def test_errors_reach_the_awaiting_task(llama: LocalModel) -> None:
    """Wrong arguments and wrong messages raise where the answer is awaited."""
    with pytest.raises(ConfigurationError, match="unknown argument 'n'"):
        await llama.agenerate("Hi", n=3)
    with pytest.raises(ConfigurationError, match="at least one message"):
        await llama.agenerate([])
    with pytest.raises(ConfigurationError, match="at least one message"):
        async for _ in llama.astream([]):
            pass


async def test_the_event_loop_keeps_turning(llama: LocalModel) -> None:
    """While a model writes, other tasks run many times."""
    turns = 0
    task = asyncio.create_task(llama.agenerate("Hi", max_new_tokens=200))
    while not task.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert isinstance(await task, Answer)
    assert turns > 20


async def test_a_cancelled_task_stops_the_model_within_one_step(
    llama: LocalModel, steps: list[float]
) -> None:
    """After cancellation at most one more step starts, for answers and batches."""
    for call in (llama.agenerate("Hi", max_new_tokens=400), llama.abatch(["Hi", "Ho"])):
        steps.clear()
        task = asyncio.create_task(call)  # type: ignore[arg-type]
        await _until(lambda: len(steps) > 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        at_cancel = len(steps)
        await asyncio.sleep(0.2)
        assert len(steps) <= at_cancel + 1


async def test_a_closed_async_stream_stops_the_model_within_one_step(
    llama: LocalModel, steps: list[float]
) -> None:
    """Leaving the loop early closes the stream and with it the generation."""
    stream = llama.astream("Hi", max_new_tokens=400)
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]
    at_close = len(steps)
    await asyncio.sleep(0.2)
    assert len(steps) <= at_close + 1 < 400


async def test_a_worker_that_ignores_its_caller_is_noticed(
    llama: LocalModel, steps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mutant that never looks at the cancellation flag runs on to the end."""
    monkeypatch.setattr(aio.Caller, "leave", lambda _: None)
    task = asyncio.create_task(llama.agenerate("Hi", max_new_tokens=100))
    await _until(lambda: len(steps) > 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _until(lambda: len(steps) == 100)


def test_a_closed_stream_takes_no_further_step(llama: LocalModel, steps: list[float]) -> None:
    """Closing a blocking stream ends it where it stands."""
    stream = llama.stream("Hi", max_new_tokens=400)
    next(stream)
    taken = len(steps)
    stream.close()  # type: ignore[attr-defined]
    assert [] == list(stream)
    assert taken == len(steps)


def test_a_stream_left_open_does_not_block_other_calls(llama: LocalModel) -> None:
    """Two half-read streams and a call in between, in one thread, all get their own answer."""
    first, second, third = (llama.generate(question) for question in ("Hi", "Ho", "He"))
    one, two = llama.stream("Hi"), llama.stream("Ho")
    pieces: tuple[list[Piece], list[Piece]] = ([next(one)], [next(two)])
    assert same(third, llama.generate("He"))
    pieces[0].extend(one)
    pieces[1].extend(two)
    assert same(first, pieces[0][-1].answer)
    assert same(second, pieces[1][-1].answer)


def test_threads_get_their_own_answers(llama: LocalModel) -> None:
    """Concurrent callers, greedy and sampled, never mix up."""
    overrides: list[dict[str, Any]] = [{}, {"temperature": 1.0, "seed": 3}]
    expected = {(q, i): llama.generate(q, **o) for q in QUESTIONS for i, o in enumerate(overrides)}
    found: dict[tuple[str, int], Answer] = {}

    def ask(question: str, which: int) -> None:
        found[question, which] = llama.generate(question, **overrides[which])

    threads = [threading.Thread(target=ask, args=key) for key in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert expected.keys() == found.keys()
    assert all(same(expected[key], found[key]) for key in expected)


async def test_tasks_get_their_own_answers(llama: LocalModel) -> None:
    """The same for tasks of one event loop, answers and streams mixed."""
    expected = [llama.generate(question) for question in QUESTIONS]

    async def streamed(question: str) -> Answer | None:
        return [piece async for piece in llama.astream(question)][-1].answer

    calls = [llama.agenerate(q) if i % 2 else streamed(q) for i, q in enumerate(QUESTIONS)]
    assert all(map(same, expected, await asyncio.gather(*calls)))


async def test_a_closed_model_says_so_to_tasks() -> None:
    """An error raised in the thread arrives once, as it is."""

    def broken(_: Callable[[], bool]) -> Any:
        yield Piece(text="a")
        raise ModelError("it is closed")

    stream = aio.stream(broken)
    assert Piece(text="a") == await anext(stream)
    with pytest.raises(ModelError, match="it is closed"):
        await anext(stream)


def test_a_loop_that_is_closed_early_leaves_no_thread_behind(llama: LocalModel) -> None:
    """Ending the event loop inside a stream ends the worker."""

    async def first() -> Piece:
        async for piece in llama.astream("Hi", max_new_tokens=400):
            return piece
        raise AssertionError

    before = threading.active_count()
    assert isinstance(asyncio.run(first()), Piece)
    assert before == threading.active_count()
