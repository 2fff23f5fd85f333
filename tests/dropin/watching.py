"""What the drop-in tests of both frameworks share: what a caller sees, and the common checks."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from cascadellm import Record

__all__ = [
    "Seen",
    "Watcher",
    "decisions",
    "leaks",
    "run_ways",
    "settled",
    "strings",
    "told",
    "total",
    "was_asked",
]

_WORD = re.compile(r"\w+")


@dataclass
class Seen:
    """What a program's caller sees.

    Attributes:
        text: The final answer.
        shown: Pieces of text in the order in which they were streamed; None = not streamed.
        state: Whatever stays or was passed on: memory, history, events, sources.
    """

    text: str
    shown: list[str] | None = None
    state: Any = field(default=None, repr=False)


async def settled() -> None:
    """Wait until the loop has done what frameworks leave to it, e.g. closed a stream.

    A generator that was dropped becomes a task a round later, so it takes some quiet rounds.
    """
    quiet = 0
    while quiet < 20:
        await asyncio.sleep(0)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        quiet = 0 if others else quiet + 1
        if others:
            await asyncio.wait(others, timeout=5)


async def was_asked(model: Any) -> None:
    """Wait until a fake model was asked."""
    for _ in range(30_000):
        if model.calls:
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"{model.name} was not asked in half a minute")


class Watcher(Protocol):
    """Records one run of a program."""

    records: list[Record]

    def __enter__(self) -> Self: ...

    def __exit__(self, *raised: object) -> None: ...


def decisions(records: list[Record]) -> list[Any]:
    """Return who answered each call and why, in an order that no scheduler changes."""
    return sorted(
        (
            record.trace.answered_by or "nobody",
            tuple(
                (a.name, a.action, a.code, a.policy, None if a.score is None else round(a.score, 3))
                for a in record.trace.attempts
            ),
            record.output,
        )
        for record in records
    )


def run_ways(
    ways: Mapping[str, Callable[[Any], list[Seen]]],
    build: Callable[[], Any],
    watch_of: Callable[[Any], Watcher],
    problems: Callable[[Any, Seen], list[str]],
    never: tuple[str, ...] = (),
) -> tuple[str, list[Any]]:
    """Run a program in each of its ways and assert that all are faultless and agree.

    Args:
        ways: Each runs the program once or, as a batch, several times at once.
        build: Makes a fresh cascade.
        watch_of: Makes the watch of a run.
        problems: Finds what is wrong with a watched run.
        never: Words that nothing may show, e.g. those of a rejected tool call.

    Returns: The final answer, and the decisions of one run.
    """
    results = {}
    for way, go in ways.items():
        llm = build()
        with watch_of(llm) as watch:
            seen = go(llm)
        faults = [fault for one in seen for fault in problems(watch, one)]
        dumped = [text for one in seen for text in strings([one.text, one.shown, one.state])]
        faults += [f"{w!r} is in {text!r}" for w in never for text in dumped if w in text.lower()]
        assert not faults, f"{way}: {faults}"
        found = decisions(watch.records)
        # the runs of a batch decide alike, so sorting put each decision's copies side by side
        assert found == [one for one in found[:: len(seen)] for _ in seen], way
        results[way] = {one.text for one in seen}, found[:: len(seen)]
    texts, first = next(iter(results.values()))
    assert all(one == (texts, first) for one in results.values()), results
    (text,) = texts
    return text, first


def strings(value: Any) -> list[str]:
    """Return every string inside a value; the cascade's own record is left out.

    The record may quote a draft in the reason of its decision.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        items = [(k, v) for k, v in value.items() if k not in ("cascade", "cascade_trail")]
        return [s for k, v in items for s in (*strings(k), *strings(v))]
    if isinstance(value, (list, tuple, set)):
        return [s for item in value for s in strings(item)]
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        try:
            return strings(dump())
        except Exception:
            # events that hold live objects
            return strings(dict(value))
    if hasattr(value, "__dict__"):
        return strings({k: v for k, v in vars(value).items() if not k.startswith("_")})
    return [str(value)]


def leaks(records: list[Record], seen: Seen) -> list[str]:
    """Return where a stream differs from the answer, and where words of rejected drafts are."""
    found = []
    if seen.shown is not None and "".join(seen.shown) != seen.text:
        found.append(f"the stream shows {''.join(seen.shown)!r}, the answer is {seen.text!r}")
    kept = _words(*(text for r in records for text in (r.input, r.output)))
    dumped = strings([seen.text, seen.shown or [], seen.state])
    for record in records:
        pairs = zip(record.trace.attempts, record.drafts, strict=False)
        for attempt, draft in pairs:
            if attempt.action == "accept" or not draft:
                continue
            for word in _words(draft) - kept:
                where = [text for text in dumped if word in _words(text)]
                if where:
                    found.append(f"{word!r} of the rejected draft {draft!r} is in {where[0]!r}")
    return found


def _words(*texts: str) -> set[str]:
    return {word.lower() for text in texts for word in _WORD.findall(text) if len(word) > 2}


def total(records: list[Record]) -> int:
    """Return all tokens of all tiers."""
    rows = [row for r in records for row in r.trace.to_dict()["tokens_by_tier"].values()]
    return sum(row["input"] + row["output"] for row in rows)


def told(records: list[Record]) -> list[tuple[str, bool, str]]:
    """Return the decisions that policies took, as traces must show them: (tier, defer, code)."""
    return sorted(
        (a.name, a.action == "escalate", a.code)
        for record in records
        for a in record.trace.attempts
        if a.policy is not None and a.action in ("accept", "escalate")
    )
