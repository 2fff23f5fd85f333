"""What feedback needs to know of a call, read from any form of its record."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cascadellm.answer import Trace

__all__ = ["KeptCall", "kept_call", "run_id_of"]

_MESSAGE_ID = re.compile(r"^(?:lc_)?run-{1,2}(?P<id>[0-9a-fA-F-]{36})(?:-\d+)?$")


@dataclass(slots=True, eq=False)
class KeptCall:
    """A call that a policy decided.

    Attributes:
        run_id: Its id, None when its record has none.
        accepted: Whether an earlier tier's answer was kept.
        decided: Tier index -> whether the policy there accepted.
        score: Score of the last decision.
        threshold: Threshold of the last decision.
        counted: Whether monitors were told about it.
    """

    run_id: str | None
    accepted: bool
    decided: Mapping[int, bool] = field(default_factory=dict)
    score: float | None = None
    threshold: float | None = None
    counted: bool = False


def kept_call(record: Trace | Mapping[str, Any], run_id: str | None) -> KeptCall | None:
    """Return what a record says; None where no policy decided, as in a call of one tier."""
    data = record.to_dict() if isinstance(record, Trace) else record
    # a route that skips a tier decides too, but not about an answer
    made = [a for a in data.get("attempts") or () if a.get("policy") and a["action"] != "skip"]
    if not made:
        return None
    last = made[-1]
    decided = {a["tier"]: a["action"] == "accept" for a in made}
    answered = data.get("tier")
    accepted = answered is not None and decided.get(answered, False)
    score, threshold = _number(last.get("score")), _number(last.get("threshold"))
    return KeptCall(run_id or data.get("run_id"), accepted, decided, score, threshold)


def run_id_of(run: Any) -> tuple[str | None, Any]:
    """Return (id, record) of a call: from its id, record, message or response."""
    if isinstance(run, Trace):
        return run.run_id, run
    if isinstance(run, Mapping):
        record = run.get("cascade", run)
        return record.get("run_id"), record if "attempts" in record else None
    for name in ("response_metadata", "additional_kwargs", "raw"):
        held = getattr(run, name, None)
        if isinstance(held, Mapping) and isinstance(held.get("cascade"), Mapping):
            return run_id_of(held["cascade"])
    if hasattr(run, "trace"):
        return run_id_of(run.trace)
    key = str(getattr(run, "id", None) or run)
    found = _MESSAGE_ID.match(key)
    return (found["id"] if found else key), None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float, str)) else None
