"""What many calls add up to: share per tier, deferral rates, cost, savings, latency."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cascadellm.errors import MissingDependencyError
from cascadellm.tier import Price

__all__ = ["Summary", "TierSummary", "finite", "left", "percentile", "summarise", "to_frame", "usd"]

_DONE = ("accept", "escalate", "stopped")
"""Actions of attempts that answered."""


@dataclass(frozen=True, slots=True)
class TierSummary:
    """One tier over many calls. Times in seconds, cost in USD.

    Attributes:
        tier: Its index.
        name: Its name.
        asked: Calls that asked it.
        answered: Calls whose answer it gave.
        share: `answered` over all answered calls.
        deferred: Decisions at its boundary that deferred.
        deferral_rate: `deferred` over all decisions at its boundary; None without any.
        errors: Times it raised or timed out.
        skipped: Times it was passed over unasked.
        p50_s: Median time of its answers.
        p95_s: 95th percentile of the same.
        input_tokens: Sum over its own calls, where known.
        output_tokens: Sum over its own calls, where known.
        cost_usd: Sum over its own calls; None when any is unknown.
    """

    tier: int
    name: str
    asked: int
    answered: int
    share: float
    deferred: int
    deferral_rate: float | None
    errors: int
    skipped: int
    p50_s: float | None
    p95_s: float | None
    input_tokens: int
    output_tokens: int
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """Many calls in one table. Times in seconds, cost in USD.

    Attributes:
        calls: Finished calls.
        failed: Calls without an answer, because of an error.
        abandoned: Calls whose caller left before the end.
        escalated: Calls in which a later tier was asked or wrote something.
        tiers: One row per tier.
        side_calls: Judges, resamples and lost races, in number.
        side_cost_usd: What these cost; None when any is unknown.
        cost_usd: All paid calls; None when any is unknown.
        known_cost_usd: The part of the cost that is known.
        unknown_cost_calls: Calls whose cost is unknown.
        large_alone_usd: Cost of the last tier alone for the same calls; None when unknown.
        large_alone_basis: How that number came about.
        savings: 1 - cost / large_alone, as a fraction; None when either is unknown.
        p50_s: Median time of a whole call.
        p95_s: 95th percentile of the same.
        written: Name -> share of the answers' characters that it wrote.
    """

    calls: int
    failed: int
    abandoned: int
    escalated: int
    tiers: tuple[TierSummary, ...]
    side_calls: int
    side_cost_usd: float | None
    cost_usd: float | None
    known_cost_usd: float
    unknown_cost_calls: int
    large_alone_usd: float | None
    large_alone_basis: str
    savings: float | None
    p50_s: float | None
    p95_s: float | None
    written: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        head = ("tier", "asked", "answered", "share", "deferred", "errors", "p50 s", "p95 s", "USD")
        rows = [head] + [
            (
                row.name,
                str(row.asked),
                str(row.answered),
                f"{row.share:.1%}",
                "-" if row.deferral_rate is None else f"{row.deferral_rate:.1%}",
                str(row.errors),
                _seconds(row.p50_s),
                _seconds(row.p95_s),
                usd(row.cost_usd),
            )
            for row in self.tiers
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        saved = "unknown" if self.savings is None else f"{self.savings:.1%}"
        lines.append(
            f"{self.calls} calls, {self.failed} failed, {self.abandoned} abandoned, "
            f"{self.escalated} escalated, "
            f"p50 {_seconds(self.p50_s)} s, p95 {_seconds(self.p95_s)} s"
        )
        lines.append(
            f"cost {usd(self.cost_usd)} USD ({self.side_calls} side calls "
            f"{usd(self.side_cost_usd)}); large model alone {usd(self.large_alone_usd)} USD "
            f"({self.large_alone_basis}); saved {saved}"
        )
        return "\n".join(lines)


def usd(value: float | None) -> str:
    """Return a sum of money with four significant digits, `unknown` for None."""
    if value is None:
        return "unknown"
    return "0" if value == 0 else f"{value:.4g}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def finite(value: Any) -> float | None:
    """Return a finite number, None for anything else (the record writes inf as text)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def left(row: Mapping[str, Any]) -> bool:
    """Return whether the caller left before the call had ended."""
    attempts = row["attempts"]
    return bool(attempts) and attempts[-1].get("code") == "abandoned"


def percentile(values: Sequence[float], level: float) -> float | None:
    """Return the `level` quantile by linear interpolation, None without values."""
    if not values:
        return None
    ordered = sorted(values)
    place = level * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def summarise(records: Iterable[Any], *, large_price: Price | None = None) -> Summary:
    """Add up finished calls.

    Args:
        records: `Record` or `Trace` objects, or their `to_dict` data.
        large_price: Price of the last tier. With it the cost of the large model alone prices
            the prompt and the accepted answer of every call; without it, calls that did not
            ask the last tier count as the mean of those that did.
    """
    rows = [row if isinstance(row, Mapping) else row.to_dict() for row in records]
    tiers = _tiers(rows)
    costs = [finite(row.get("cost_usd")) for row in rows]
    side = [call for row in rows for a in row["attempts"] for call in a.get("calls") or ()]
    alone, basis = _large_alone(rows, tiers, large_price)
    total = _sum_or_none(costs)
    latencies = [t for row in rows if (t := finite(row.get("latency_s"))) is not None]
    return Summary(
        calls=len(rows),
        failed=sum(row.get("answered_by") is None and not left(row) for row in rows),
        abandoned=sum(left(row) for row in rows),
        escalated=sum(bool(row.get("escalated")) for row in rows),
        tiers=tiers,
        side_calls=len(side),
        side_cost_usd=_sum_or_none([finite(call.get("cost_usd")) for call in side]),
        cost_usd=total,
        known_cost_usd=math.fsum(cost for cost in costs if cost is not None),
        unknown_cost_calls=costs.count(None),
        large_alone_usd=alone,
        large_alone_basis=basis,
        savings=None if total is None or not alone else 1 - total / alone,
        p50_s=percentile(latencies, 0.5),
        p95_s=percentile(latencies, 0.95),
        written=_written(rows),
    )


def _sum_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if len(known) == len(values) else None


def _tiers(rows: Sequence[Mapping[str, Any]]) -> tuple[TierSummary, ...]:
    places: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        for attempt in row["attempts"]:
            places.setdefault((attempt["tier"], attempt["name"]), []).append(attempt)
    answers = [(row.get("tier"), row.get("answered_by")) for row in rows]
    answered = sum(name is not None for _, name in answers)
    return tuple(
        _tier(place, attempts, answers.count(place), answered)
        for place, attempts in sorted(places.items())
    )


def _tier(
    place: tuple[int, str], attempts: Sequence[Mapping[str, Any]], answered: int, calls: int
) -> TierSummary:
    asked = [a for a in attempts if a["action"] != "skip"]
    decided = [a for a in asked if a.get("policy") is not None and a["action"] != "error"]
    deferred = sum(a["action"] in ("escalate", "stopped") for a in decided)
    times = [t for a in asked if (t := finite(a.get("latency_s"))) is not None]
    return TierSummary(
        tier=place[0],
        name=place[1],
        asked=len(asked),
        answered=answered,
        share=answered / calls if calls else 0.0,
        deferred=deferred,
        deferral_rate=deferred / len(decided) if decided else None,
        errors=sum(a["action"] == "error" for a in attempts),
        skipped=len(attempts) - len(asked),
        p50_s=percentile(times, 0.5),
        p95_s=percentile(times, 0.95),
        input_tokens=sum(a.get("input_tokens") or 0 for a in asked),
        output_tokens=sum(a.get("output_tokens") or 0 for a in asked),
        cost_usd=_sum_or_none([finite(a.get("cost_usd")) for a in asked]),
    )


def _large_alone(
    rows: Sequence[Mapping[str, Any]], tiers: Sequence[TierSummary], price: Price | None
) -> tuple[float | None, str]:
    """Return the cost of the last tier alone and a sentence on how it was found."""
    if not tiers:
        return None, "no calls"
    if price is not None:
        priced = _sum_or_none([_priced(row, price) for row in rows])
        basis = "tokens of some call unknown" if priced is None else "its price times the tokens"
        return priced, f"{basis} of every call" if priced is not None else basis
    last = (tiers[-1].tier, tiers[-1].name)
    asked = [
        [a for a in row["attempts"] if (a["tier"], a["name"]) == last and a["action"] in _DONE]
        for row in rows
    ]
    if any(attempt.get("policy") is not None for own in asked for attempt in own):
        # a boundary decided about it, so a tier beyond it exists
        return None, "the last tier was never asked; give its price"
    paid = [finite(own[-1].get("cost_usd")) if own else None for own in asked]
    known = [cost for cost in paid if cost is not None]
    if not known:
        return None, f"{last[1]} was never asked at a known cost"
    if len(known) == len(paid):
        return math.fsum(known), "every call asked it"
    mean = math.fsum(known) / len(known)
    return mean * len(paid), f"mean of the {len(known)} calls that asked {last[1]}"


def _priced(row: Mapping[str, Any], price: Price) -> float | None:
    """Price a call as if the last tier had read the same prompt and written the answer."""
    counted = [a for a in row["attempts"] if a.get("output_tokens") is not None]
    if not counted:
        return None
    read: int = counted[0].get("input_tokens") or 0
    written: int = counted[-1]["output_tokens"]
    return (read * price.input + written * price.output) / 1e6


def _written(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    counts: dict[str, int] = {}
    for row in rows:
        for start, end, name in row.get("spans") or ():
            counts[name] = counts.get(name, 0) + max(0, end - start)
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()} if total else {}


def to_frame(records: Iterable[Any]) -> Any:
    """Return a pandas DataFrame with one row per call; attempts stay a column of lists.

    Raises:
        MissingDependencyError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingDependencyError(
            "'pandas' is not installed; to_pandas() needs it: pip install pandas"
        ) from error
    rows = [row if isinstance(row, Mapping) else row.to_dict() for row in records]
    frame = pd.DataFrame([_flat(row) for row in rows])
    if "time" in frame:
        frame["time"] = pd.to_datetime(frame["time"], unit="s", utc=True)
    return frame


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    scored = [a for a in row["attempts"] if a.get("policy") is not None]
    last = scored[-1] if scored else {}
    decided = {key: last.get(key) for key in ("policy", "score_name", "score", "threshold", "code")}
    tokens = (row.get("tokens_by_tier") or {}).values()
    totals = {f"{kind}_tokens": sum(t.get(kind, 0) for t in tokens) for kind in ("input", "output")}
    return {**row, **decided, **totals}
