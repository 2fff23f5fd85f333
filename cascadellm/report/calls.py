"""The searchable table of calls: data for the page's script, and the empty table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cascadellm.report.page import Html, element, join, json_block
from cascadellm.summary import finite, left

__all__ = ["calls_table"]

_LONGEST = 20_000
"""Characters of one text that the page carries."""

_COLUMNS = (
    ("time", "time", ""),
    ("question", "question", ""),
    ("by", "answered by", ""),
    ("score", "score", "number"),
    ("reason", "why", ""),
    ("latency", "took", "number"),
    ("cost", "USD", "number"),
)


def calls_table(rows: Sequence[Mapping[str, Any]], colors: Mapping[str, int], most: int) -> Html:
    """Return the filter, the empty table and its data; the page's script fills it.

    Args:
        rows: Recorded calls, oldest first.
        colors: Tier name to colour index.
        most: Calls that are listed; the latest ones.
    """
    listed = list(rows[-most:])[::-1]
    data = {
        "day": _day(listed),
        "colors": {name: color % 8 for name, color in colors.items()},
        "calls": [_call(row) for row in listed],
    }
    options = [element("option", "every tier", value="")]
    answered = dict.fromkeys(str(row["answered_by"]) for row in rows if row.get("answered_by"))
    options += [element("option", name, value=name) for name in answered]
    options.append(element("option", "no answer", value="(none)"))
    escalated = [("", "escalated or not"), ("yes", "escalated"), ("no", "not escalated")]
    if any(left(row) for row in rows):
        escalated.append(("left", "abandoned"))
    search = element(
        "input",
        id="search",
        type="search",
        placeholder="Search questions, answers, reasons, errors",
        aria_label="Search calls",
        autocomplete="off",
    )
    choose = element("select", *options, id="tier", aria_label="Answered by")
    moved = (element("option", text, value=value) for value, text in escalated)
    filters = element(
        "div",
        search,
        choose,
        element("select", *moved, id="escalated", aria_label="Escalated"),
        element("span", id="count", role="status", class_="note"),
        class_="filters",
    )
    head = (
        element(
            "th",
            element("button", text, type="button", data_key=key),
            class_=kind or None,
            scope="col",
            aria_sort="none",
        )
        for key, text, kind in _COLUMNS
    )
    body = element("tbody", id="calls")
    written = element("table", element("thead", element("tr", *head)), body)
    more = element("button", "Show more", id="more", type="button", hidden=True)
    plain = element("noscript", "The table of calls needs JavaScript.")
    left_out = len(rows) - len(listed)
    note = element("p", f"{left_out:,} earlier calls are not listed.", class_="note")
    parts = [filters, plain, element("div", written, class_="scroll"), more]
    return join([*parts, *([note] if left_out else []), json_block("data", data)])


def _day(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the day of all calls; empty where there are several."""
    days = {_written(t)[:10] for row in rows if (t := finite(row.get("time"))) is not None}
    return days.pop() if len(days) == 1 else ""


def _call(row: Mapping[str, Any]) -> dict[str, Any]:
    attempts = row["attempts"]
    # what a reader asks for is the last score, else why the first tier did not answer
    scored = [a for a in attempts if a.get("policy") is not None]
    last = scored[-1] if scored else attempts[0] if attempts else {}
    moment = finite(row.get("time"))
    drafts = list(row.get("drafts") or ())
    return {
        "time": "" if moment is None else _written(moment),
        "asked": _asked(row.get("input")),
        "question": _cut(row.get("input")),
        "answer": _cut(row.get("output")),
        "by": row.get("answered_by"),
        "escalated": bool(row.get("escalated")),
        "left": left(row),
        "score": finite(last.get("score")),
        "threshold": finite(last.get("threshold")),
        "reason": str(last.get("error") or last.get("reason") or last.get("code") or ""),
        "latency": finite(row.get("latency_s")),
        "cost": finite(row.get("cost_usd")),
        "error": None if row.get("error") is None else str(row["error"]),
        "spans": list(row.get("spans") or ()),
        "speculation": _scalars(row.get("speculation")),
        "attempts": [
            {**_attempt(a), "text": _cut(drafts[i]) if i < len(drafts) else None}
            for i, a in enumerate(attempts)
        ],
    }


def _attempt(attempt: Mapping[str, Any]) -> dict[str, Any]:
    texts = ("name", "action", "policy", "score_name", "code", "reason", "error")
    kept: dict[str, Any] = {
        key: None if attempt.get(key) is None else str(attempt[key]) for key in texts
    }
    numbers = ("score", "threshold", "latency_s", "first_token_s", "input_tokens")
    for key in (*numbers, "output_tokens", "cost_usd"):
        kept[key] = finite(attempt.get(key))
    sides = ("name", "purpose", "error", "latency_s", "cost_usd", "input_tokens", "output_tokens")
    kept["calls"] = [{key: call.get(key) for key in sides} for call in attempt.get("calls") or ()]
    return kept


def _scalars(data: Any) -> dict[str, Any] | None:
    if not isinstance(data, Mapping):
        return None
    plain = (str, int, float, bool)
    return {str(k): v for k, v in data.items() if isinstance(v, plain) and v == v}


def _asked(text: Any) -> str:
    """Return the part of a conversation that tells one call from another, for its row."""
    whole = str(text or "")
    last = re.split(r"^(?:user|human): ", whole, flags=re.IGNORECASE | re.MULTILINE)[-1]
    marked = re.findall(r"(?:Query|Question): *(.+?)(?:\nAnswer:|$)", last, flags=re.DOTALL)
    return (marked[-1] if marked else last).strip()[:400]


def _cut(text: Any) -> str | None:
    if text is None:
        return None
    whole = str(text)
    return whole if len(whole) <= _LONGEST else whole[:_LONGEST] + " […]"


def _written(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
