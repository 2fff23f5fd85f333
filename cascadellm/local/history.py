"""A conversation in the shape that a family's template accepts, whoever wrote it.

Templates refuse what their models were not trained on: identifiers of other lengths, several
calls in a turn, two turns of one role. What they say about it is read from their text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["fit_call_ids", "fit_history"]

_SHORT_IDS, _SINGLE, _ALTERNATE = "[TOOL_CALLS]", "single tool-call", "must alternate"
_ID_LENGTH = 9

Turn = dict[str, Any]


def fit_history(turns: list[Turn], template: str) -> list[Turn]:
    """Return messages that a template accepts; those that it accepts anyway are unchanged.

    - Llama 3 allows one call in a turn: parallel calls become turns with their results.
    - Mistral wants alternating roles and identifiers of nine letters and digits.

    Args:
        turns: Normalised chat dicts.
        template: The chat template.
    """
    if _SINGLE in template:
        turns = list(_one_call_each(turns))
    if _ALTERNATE in template:
        turns = _alternating(turns)
    return fit_call_ids(turns, template)


def fit_call_ids(messages: list[Turn], template: str) -> list[Turn]:
    """Shorten the identifiers of tool calls where the template demands nine characters.

    A call and its result keep one identifier; other templates see them unchanged. A result
    without one belongs to the first call that has none yet.
    """
    if _SHORT_IDS not in template:
        return messages
    fitted: list[Turn] = []
    nameless: list[str] = []
    for place, message in enumerate(messages):
        changed = dict(message)
        if message.get("tool_calls"):
            ids = [_short(c.get("id") or f"{place}.{i}") for i, c in enumerate(_calls(message))]
            pairs = list(zip(_calls(message), ids, strict=True))
            changed["tool_calls"] = [{**call, "id": short} for call, short in pairs]
            nameless = [short for call, short in pairs if not call.get("id")]
        if message.get("role") == "tool" or "tool_call_id" in message:
            given = message.get("tool_call_id")
            waiting = nameless.pop(0) if not given and nameless else None
            changed["tool_call_id"] = waiting or _short(given or "")
        fitted.append(changed)
    return fitted


def _calls(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return message.get("tool_calls") or ()


def _short(call_id: Any) -> str:
    text = str(call_id)
    if len(text) == _ID_LENGTH and text.isascii() and text.isalnum():
        return text
    return hashlib.sha256(text.encode()).hexdigest()[:_ID_LENGTH]


def _one_call_each(turns: Sequence[Turn]) -> Iterator[Turn]:
    """Yield turns with at most one call, each followed by its result."""
    place = 0
    while place < len(turns):
        turn = turns[place]
        place += 1
        calls = _calls(turn)
        if len(calls) < 2:
            yield turn
            continue
        results = []
        while place < len(turns) and turns[place]["role"] == "tool":
            results.append(turns[place])
            place += 1
        for number, call in enumerate(calls):
            content = turn["content"] if number == 0 else ""
            yield {**turn, "content": content, "tool_calls": [call]}
            result = _result_of(call, results)
            if result is not None:
                results.remove(result)
                yield result
        yield from results


def _result_of(call: Mapping[str, Any], results: Sequence[Turn]) -> Turn | None:
    named = [one for one in results if call.get("id") and one.get("tool_call_id") == call["id"]]
    nameless = [one for one in results if not one.get("tool_call_id")]
    return next(iter(named or nameless), None)


def _alternating(turns: Sequence[Turn]) -> list[Turn]:
    """Join neighbours of one role; instructions in mid-conversation are the user's."""
    joined: list[Turn] = []
    for place, given in enumerate(turns):
        late = given["role"] == "system" and place > 0
        turn = {**given, "role": "user"} if late else given
        last = joined[-1] if joined else None
        if last is not None and _plain(last) and _plain(turn) and last["role"] == turn["role"]:
            joined[-1] = {**last, "content": f"{last['content']}\n\n{turn['content']}".strip()}
        else:
            joined.append(turn)
    return joined


def _plain(turn: Mapping[str, Any]) -> bool:
    return turn["role"] in ("system", "user", "assistant") and not _calls(turn)
