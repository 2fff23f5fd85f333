"""Budgets: stop deferring when the money, the time or the tokens are spent."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from cascadellm.answer import Attempt, Decision, SideCall, Trace
from cascadellm.effects import Compute, Plan
from cascadellm.errors import BudgetExceededError, ConfigurationError
from cascadellm.policies.base import Moment, Policy

__all__ = ["Budget", "Spending"]


@dataclass(frozen=True, slots=True)
class _Spent:
    """What one finished call took."""

    time_s: float
    usd: float | None
    tokens: int


class _Account:
    """Running sums, so that asking costs the same however many calls were counted."""

    def __init__(self, windowed: bool) -> None:
        self._calls: deque[_Spent] | None = deque() if windowed else None
        self.usd, self.unknown, self.tokens = 0.0, 0, 0

    def add(self, spent: _Spent, sign: int = 1) -> None:
        self.usd += sign * (spent.usd or 0.0)
        self.unknown += sign * (spent.usd is None)
        self.tokens += sign * spent.tokens
        if self._calls is not None and sign > 0:
            self._calls.append(spent)

    def forget(self, until_s: float) -> None:
        calls = self._calls
        while calls and calls[0].time_s <= until_s:
            self.add(calls.popleft(), -1)
        if calls is not None and not calls:
            # no rounding is carried over from calls that are gone
            self.usd = 0.0


class Spending:
    """What finished calls have spent, per user, thread or any other key; in this process.

    An event handler: hand it to the cascade as a handler and to `Budget(spending=)`. It is
    shared state on purpose; everything else in a policy is a value.

    Args:
        key: Key of `Request.metadata` (see `call_context`) that calls are counted by; None =
            all calls together.
        window_s: Seconds that count, up to now; None = since the object was made.
        clock: Seconds; replaced in tests.

    Raises:
        ConfigurationError: The window is not positive.
    """

    blocking: ClassVar[bool] = False
    """Whether asking may wait for a disk, and so belongs in a thread."""

    def __init__(
        self,
        key: str | None = None,
        *,
        window_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if window_s is not None and not 0 < window_s < float("inf"):
            raise ConfigurationError(f"window_s must be seconds > 0 or None, got {window_s!r}")
        self.key = key
        self.window_s = window_s
        self._clock = clock
        self._lock = threading.Lock()
        self._accounts: dict[Any, _Account] = {}

    def on_event(self, event: Any) -> None:
        """Count a finished call, failed ones too."""
        trace = getattr(event, "trace", None)
        if not isinstance(trace, Trace):
            return
        tokens = sum(sum(counts.values()) for counts in trace.tokens_by_tier.values())
        spent = _Spent(self._clock(), trace.cost_usd, tokens)
        with self._lock:
            self._recent(self._owner(event.request)).add(spent)

    def usd(self, request: Any) -> float | None:
        """Return the money that calls with this request's key have spent; None if unknown."""
        with self._lock:
            account = self._recent(self._owner(request))
            return None if account.unknown else account.usd

    def tokens(self, request: Any) -> int:
        """Return the tokens that calls with this request's key have taken, in and out."""
        with self._lock:
            return self._recent(self._owner(request)).tokens

    def _owner(self, request: Any) -> Any:
        return None if self.key is None else str(request.metadata.get(self.key))

    def _recent(self, owner: Any) -> _Account:
        account = self._accounts.setdefault(owner, _Account(self.window_s is not None))
        if self.window_s is not None:
            account.forget(self._clock() - self.window_s)
        return account


@dataclass(frozen=True, slots=True)
class Budget(Policy):
    """Defers while the budget lasts, and then accepts what there is, or raises.

    Join it with `&`: `Budget(usd=0.01) & Threshold(mean_logprob, -0.35)` defers only when the
    score is low and money is left. Without `spending` the limits are those of one call;
    with it, those of all calls that it counts, this one included.

    A tier that has a price is not asked when its prompt alone would break the limit. A cost
    that is unknown cannot be compared with a limit in money and counts as spent.

    Args:
        usd: Most money.
        seconds: Most time of one call before the next tier is asked.
        tokens: Most tokens, in and out.
        at_limit: `accept` the best answer so far, or `raise` a `BudgetExceededError` that
            carries it.
        spending: What other calls have spent.

    Raises:
        ConfigurationError: No limit is given, or one is negative.
    """

    usd: float | None = None
    seconds: float | None = field(default=None, kw_only=True)
    tokens: int | None = field(default=None, kw_only=True)
    at_limit: Literal["accept", "raise"] = field(default="accept", kw_only=True)
    spending: Spending | None = field(default=None, kw_only=True, hash=False)

    def __post_init__(self) -> None:
        limits = {"usd": self.usd, "seconds": self.seconds, "tokens": self.tokens}
        if all(limit is None for limit in limits.values()):
            raise ConfigurationError("Budget expects at least one of usd=, seconds=, tokens=")
        for name, limit in limits.items():
            bad = isinstance(limit, bool) or not isinstance(limit, (int, float, type(None)))
            if bad or (limit is not None and not 0 <= limit < float("inf")):
                raise ConfigurationError(f"Budget({name}=) must be a number >= 0, got {limit!r}")
        if self.at_limit not in ("accept", "raise"):
            raise ConfigurationError(f"at_limit must be 'accept' or 'raise', got {self.at_limit!r}")

    def before(self, moment: Moment) -> Plan[None] | None:
        """Refuse a call whose budget other calls have spent, where that is wanted.

        Raises:
            BudgetExceededError: The budget is spent and `at_limit` is `raise`.
        """
        if self.spending is None or self.at_limit != "raise" or moment.attempts:
            return None
        if self.spending.blocking:
            return self._refused_elsewhere(moment)
        _refuse(self._over(moment, following=False))
        return None

    def _refused_elsewhere(self, moment: Moment) -> Plan[None]:
        _refuse((yield Compute(lambda: self._over(moment, following=False))))

    def after(self, moment: Moment) -> Decision | Plan[Decision]:
        if self.spending is not None and self.spending.blocking:
            return self._decided_elsewhere(moment)
        return self._decision(moment, self._over(moment, following=True))

    def _decided_elsewhere(self, moment: Moment) -> Plan[Decision]:
        over: str | None = yield Compute(lambda: self._over(moment, following=True))
        return self._decision(moment, over)

    def _decision(self, moment: Moment, over: str | None) -> Decision:
        if over is None:
            return Decision(True, self.name, code="within_budget", reason="the budget allows it")
        if self.at_limit == "raise":
            raise BudgetExceededError(
                f"{over}, so no further tier is asked; raise the limit of Budget, or set "
                "at_limit='accept'",
                moment.answer,
            )
        return Decision(False, self.name, code="budget", reason=f"{over}: accepted as it is")

    def _over(self, moment: Moment, *, following: bool) -> str | None:
        """Return which limit is met, None when none is."""
        try:
            return self._met(moment, following=following)
        except Exception as error:
            if self.spending is None:
                raise
            # what cannot be read may be spent: a broken account must not open the purse
            return f"what is spent cannot be read ({type(error).__name__}: {error})"[:200]

    def _met(self, moment: Moment, *, following: bool) -> str | None:
        elapsed_s = (moment.meter or moment).elapsed_s
        if self.seconds is not None and elapsed_s >= self.seconds:
            return f"{elapsed_s:.3g} s of {self.seconds:g} s are spent"
        if self.tokens is not None:
            used = self._tokens(moment)
            if used >= self.tokens:
                return f"{used} of {self.tokens} tokens are spent"
        return None if self.usd is None else self._over_money(moment, following=following)

    def _tokens(self, moment: Moment) -> int:
        used = 0 if self.spending is None else self.spending.tokens(moment.request)
        paid_for: list[Attempt | SideCall] = [*moment.attempts]
        paid_for += [call for attempt in moment.attempts for call in attempt.calls]
        paid_for += () if moment.meter is None else moment.meter.calls
        for paid in paid_for:
            used += (paid.input_tokens or 0) + (paid.output_tokens or 0)
        if moment.answer is not None and moment.answer.usage is not None:
            used += moment.answer.usage.total_tokens
        return used

    def _over_money(self, moment: Moment, *, following: bool) -> str | None:
        assert self.usd is not None
        earlier = 0.0 if self.spending is None else self.spending.usd(moment.request)
        usage = None if moment.answer is None else moment.answer.usage
        own: float | None = 0.0
        if moment.answer is not None:
            tier = moment.asked or moment.tiers[moment.tier]
            earlier_s = sum(attempt.latency_s for attempt in moment.attempts)
            own = tier.cost(usage, max(0.0, moment.elapsed_s - earlier_s))
        # a judge that has just been asked in this decision counts too
        others = (moment.meter or moment).cost_usd
        if earlier is None or own is None or others is None:
            return "what is spent is unknown (a price or a token count is missing)"
        spent = earlier + own + others
        if spent >= self.usd:
            return f"{spent:.4g} of {self.usd:g} USD are spent"
        if following and usage is not None and moment.tier + 1 < len(moment.tiers):
            price = moment.tiers[moment.tier + 1].price
            least = 0.0 if price is None else usage.input_tokens * price.input / 1e6
            if spent + least > self.usd:
                return f"{spent:.4g} USD and the next prompt's {least:.4g} exceed {self.usd:g}"
        return None


def _refuse(over: str | None) -> None:
    if over is not None:
        raise BudgetExceededError(f"{over}; wait, or raise the limit of Budget", None)
