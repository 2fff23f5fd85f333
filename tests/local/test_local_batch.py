"""Batches: requests of all callers share one, join and leave it, and get their own answers."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
import torch

from cascadellm.answer import Answer
from cascadellm.errors import ModelError
from cascadellm.local import LocalModel, batch, forward
from cascadellm.local.decoding import Decoding
from tests.local.likeness import same
from tests.local.tiny_models import tiny_llama

QUESTIONS = ["Hi", "What is the capital of the moon?", "x", "Tell me more, please, than that."]


@pytest.fixture(params=["llama", "qwen2", "mistral", "t5"])
def model(request: pytest.FixtureRequest) -> LocalModel:
    """Each family in turn."""
    found: LocalModel = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of jobs in every step."""
    seen: list[int] = []
    advance = Decoding.advance

    def counted(self: Decoding, new: Any = ()) -> None:
        seen.append(len(self.jobs) + len(new))
        advance(self, new)

    monkeypatch.setattr(Decoding, "advance", counted)
    return seen


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"repetition_penalty": 1.3},
        {"temperature": 0.8, "seed": 4, "top_k": 20, "top_p": 0.9},
        {"temperature": 1.0, "seed": 4, "repetition_penalty": 1.1},
    ],
)
def test_a_batch_gives_the_answers_of_single_calls(
    model: LocalModel, overrides: dict[str, Any]
) -> None:
    """Padding, masks and positions change nothing; each request draws from its own stream."""
    batch = model.batch(QUESTIONS, **overrides)
    for question, answer in zip(QUESTIONS, batch, strict=True):
        assert same(model.generate(question, **overrides), answer)


def test_a_batch_without_its_mask_is_noticed(
    llama: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mutant that lets sequences see their padding does not pass for single calls."""
    prepare = forward.CausalSteps._prepare

    def unmasked(self: Any) -> None:
        prepare(self)
        self._mask = None

    monkeypatch.setattr(forward.CausalSteps, "_prepare", unmasked)
    batch = llama.batch(QUESTIONS)
    singles = [llama.generate(question) for question in QUESTIONS]
    assert not all(map(same, singles, batch))


def test_sequences_leave_a_batch_when_they_end(writer: LocalModel, llama: LocalModel) -> None:
    """Answers of different length share a batch; an early end does not disturb the others."""
    stop = writer.generate("Hi").text[4:7]
    for model, overrides in ((writer, {}), (writer, {"stop": [stop]}), (llama, {"stop": [" "]})):
        batch = model.batch([*QUESTIONS, "Hi"], **overrides)
        for question, answer in zip([*QUESTIONS, "Hi"], batch, strict=True):
            assert same(model.generate(question, **overrides), answer)


def test_a_batch_of_none_and_more_than_one_batch(llama: LocalModel) -> None:
    """Any number of requests is answered, in their order, at most batch_size at a time."""
    assert [] == llama.batch([])
    many = [f"{number} times {number}" for number in range(20)]
    answers = llama.batch(many, max_new_tokens=4)
    assert [llama.generate(q, max_new_tokens=4).text for q in many] == [a.text for a in answers]


def test_the_short_way_through_a_batch_gives_equal_rows(llama: LocalModel) -> None:
    """Running the layers directly on a padded batch gives the forward pass's rows, bit for bit."""
    quick = llama._runner.loaded.quick
    assert quick is not None
    for prompts in ([llama.encode(q) for q in QUESTIONS], [llama.encode("Hi")] * 2):
        ways = [forward.CausalSteps(llama.module, way) for way in (quick, None)]
        rows = [steps.start(prompts) for steps in ways]
        for _ in range(300):
            assert torch.equal(*rows)
            tokens = rows[0].argmax(dim=-1)
            rows = [steps.step(tokens) for steps in ways]


def test_a_request_joins_a_batch_that_runs(llama: LocalModel, sizes: list[int]) -> None:
    """Longer and shorter prompts join between steps and change nobody's answer."""
    for first, later in (("Hi", QUESTIONS[1]), (QUESTIONS[1], "x")):
        expected = [llama.generate(first), llama.generate(later)]
        sizes.clear()
        one = llama.stream(first)
        pieces = [next(one) for _ in range(5)]
        two = llama.stream(later)
        others = [next(two)]
        pieces.extend(one)
        others.extend(two)
        assert 2 in sizes
        found = [pieces[-1].answer, others[-1].answer]
        for right, answer in zip(expected, found, strict=True):
            assert same(right, answer)


def _ask(model: LocalModel, calls: list[tuple[str, dict[str, Any]]]) -> list[Answer]:
    """Ask all at once, each from a thread of its own."""
    found: dict[int, Answer] = {}
    barrier = threading.Barrier(len(calls))

    def ask(place: int, question: str, overrides: dict[str, Any]) -> None:
        barrier.wait()
        found[place] = model.generate(question, **overrides)

    threads = [
        threading.Thread(target=ask, args=(place, *call)) for place, call in enumerate(calls)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[place] for place in range(len(calls))]


def test_threads_share_forward_passes_and_get_their_own_answers(
    model: LocalModel, sizes: list[int]
) -> None:
    """Callers with different settings meet in one batch without mixing anything up."""
    settings: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0, "seed": 3},
        {"repetition_penalty": 1.3, "max_new_tokens": 9},
        {"temperature": 0.7, "seed": 3, "top_k": 5, "top_logprobs": 2},
    ]
    calls = [(question, overrides) for question in QUESTIONS for overrides in settings]
    expected = [model.generate(question, **overrides) for question, overrides in calls]
    alone = len(sizes)
    for right, answer in zip(expected, _ask(model, calls), strict=True):
        assert same(right, answer)
        assert answer.tokens is not None
        assert right.tokens is not None
        assert len(right.tokens[0].top) == len(answer.tokens[0].top)
    assert max(sizes) > 4
    assert len(sizes) - alone < alone / 2


def test_one_thread_computes_for_several_callers(
    llama: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch keeps a pool per computing thread, so callers who wait together share one, briefly."""
    monkeypatch.setattr(batch, "_IDLE_S", 0.05)
    at_work: list[str] = []
    advance = Decoding.advance

    def noted(self: Any, new: Any = ()) -> None:
        at_work.append(threading.current_thread().name)
        advance(self, new)

    monkeypatch.setattr(Decoding, "advance", noted)
    _ask(llama, [(f"Q{n}", {"max_new_tokens": 40}) for n in range(6)])
    workers = {name for name in at_work if name.startswith("cascade-batch")}
    assert 1 == len(workers)
    # the first caller may have begun alone, the last one stays with the worker
    assert at_work.count(workers.pop()) > len(at_work) / 2
    ended = time.monotonic() + 5
    while "cascade-batch" in {t.name for t in threading.enumerate()} and time.monotonic() < ended:
        time.sleep(0.01)
    assert "cascade-batch" not in {thread.name for thread in threading.enumerate()}
    assert llama.generate("Q0").text


def test_a_worker_that_dies_leaves_nobody_waiting(
    llama: LocalModel, monkeypatch: pytest.MonkeyPatch, ended: threading.Event
) -> None:
    """Callers whose worker is gone get an error or another worker."""
    advance, died = Decoding.advance, threading.Event()

    def dying(self: Any, new: Any = ()) -> None:
        if threading.current_thread().name == "cascade-batch" and not died.is_set():
            died.set()
            raise SystemExit
        advance(self, new)

    monkeypatch.setattr(Decoding, "advance", dying)
    outcomes: list[str] = []

    def ask(number: int) -> None:
        try:
            outcomes.append(llama.generate(f"Q{number}", max_new_tokens=30).text)
        except ModelError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert ended.wait(10)
    assert 6 == len(outcomes)


def test_a_batch_is_bounded_in_requests_and_tokens(tmp_path: Any, sizes: list[int]) -> None:
    """Neither bound is exceeded, and a request larger than the bound runs alone."""
    path = tiny_llama(tmp_path / "bounded")
    with LocalModel(path, max_new_tokens=10, batch_size=3) as model:
        answers = model.batch([f"{number}" for number in range(8)])
        assert 3 == max(sizes)
        expected = [answer.text for answer in answers]
    sizes.clear()
    with LocalModel(path, max_new_tokens=10, batch_tokens=70) as model:
        assert expected == [a.text for a in model.batch([f"{number}" for number in range(8)])]
        assert 2 == max(sizes)
        sizes.clear()
        model.batch(["x" * 80, "y" * 80])
        assert 1 == max(sizes)


def test_a_caller_who_leaves_frees_the_place(llama: LocalModel, sizes: list[int]) -> None:
    """A closed stream leaves the batch before the next step; the others go on unharmed."""
    expected = llama.generate("Hi")
    one, two = llama.stream("Hi"), llama.stream("Ho", max_new_tokens=300)
    pieces = [next(one)]
    next(two)
    two.close()  # type: ignore[attr-defined]
    sizes.clear()
    pieces.extend(one)
    assert {1} == set(sizes)
    answer = pieces[-1].answer
    assert same(expected, answer)


def test_a_fault_ends_the_calls_it_hit_and_no_others(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in a shared step reaches every caller of that step; the next call works."""
    with LocalModel(tiny_llama(tmp_path / "faulty"), max_new_tokens=30) as model:
        right = model.generate("Hi")
        streams = [model.stream("Hi"), model.stream("Ho")]
        for stream in streams:
            next(stream)
        with monkeypatch.context() as patch:

            def broken(self: Any, *_: Any, **__: Any) -> None:
                raise ValueError("a fault in a kernel")

            patch.setattr(torch.nn.Embedding, "forward", broken)
            for stream in streams:
                with pytest.raises(ValueError, match="a fault in a kernel"):
                    list(stream)
        assert right == model.generate("Hi")


def test_nan_stops_the_answer_it_belongs_to(
    llama: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row with NaN is an error for its own request; its neighbours are answered."""
    expected = llama.generate("Hi")
    rows = Decoding._rows

    def spoiled(self: Decoding, new: Any) -> torch.Tensor:
        found = rows(self, new).clone()
        for place, job in enumerate(self.jobs):
            if job.prompt.text.count("Ho") and len(job.assembler.token_ids) == 2:
                found[place, 5] = float("nan")
        return found

    monkeypatch.setattr(Decoding, "_rows", spoiled)
    good, bad = llama.stream("Hi"), llama.stream("Ho")
    pieces = [next(good)]
    with pytest.raises(ModelError, match=r"NaN.*dtype"):
        list(bad)
    pieces.extend(good)
    answer = pieces[-1].answer
    assert same(expected, answer)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Is set when a thread has ended with an exception."""
    found = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _: found.set())
    return found


@pytest.fixture
def interrupted(llama: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third step of the first answer is interrupted from the keyboard, once."""
    advance = Decoding.advance
    left = [3]

    def interrupt(self: Decoding, new: Any = ()) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        advance(self, new)

    monkeypatch.setattr(Decoding, "advance", interrupt)


@pytest.mark.usefixtures("interrupted")
def test_an_interrupted_leader_leaves_nobody_waiting(
    llama: LocalModel, ended: threading.Event
) -> None:
    """Whoever shared the interrupted step gets an error instead of waiting for ever."""
    outcomes: list[str] = []

    def ask(question: str) -> None:
        try:
            llama.generate(question)
            outcomes.append("answer")
        except KeyboardInterrupt:
            outcomes.append("interrupted")
        except ModelError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=ask, args=(f"Q{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert 4 == len(outcomes)
    # either a caller led or the worker
    assert 1 == outcomes.count("interrupted") or ended.wait(10)
    assert all(o in ("answer", "interrupted") or "interrupted" in o for o in outcomes)


def test_short_answers_do_not_wait_for_long_ones(llama: LocalModel) -> None:
    """A short request that arrives later is answered while the long one still runs."""
    ended: list[str] = []
    started = threading.Event()

    def long() -> None:
        for _ in llama.stream("Hi", max_new_tokens=400):
            started.set()
        ended.append("long")

    thread = threading.Thread(target=long)
    thread.start()
    assert started.wait(30)
    llama.generate("Ho", max_new_tokens=5)
    ended.append("short")
    thread.join()
    assert ["short", "long"] == ended


async def test_many_tasks_and_many_leavers(llama: LocalModel) -> None:
    """Under load with cancellations at random moments every remaining caller is answered."""
    expected = {q: llama.generate(q) for q in QUESTIONS}

    async def ask(number: int) -> bool:
        question = QUESTIONS[number % len(QUESTIONS)]
        task = asyncio.create_task(llama.agenerate(question))
        if number % 3 == 0:
            await asyncio.sleep(0.003 * number)
            task.cancel()
        try:
            return same(expected[question], await task)
        except asyncio.CancelledError:
            return True

    begun = time.perf_counter()
    assert all(await asyncio.gather(*(ask(number) for number in range(40))))
    assert time.perf_counter() - begun < 60
    # everybody has left, so the next call finds an empty batch
    batch = llama._runner._batch
    assert llama.generate("Hi").text == expected["Hi"].text
    assert [] == batch._waiting
    assert batch._decoding is None or [] == batch._decoding.jobs
