"""Retry, and why a tier failed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any, cast

import tenacity

from cascadellm.answer import Answer
from cascadellm.effects import Call, Enter, Interrupted, Plan, Relay, Sleep
from cascadellm.errors import (
    CircuitOpenError,
    ConfigurationError,
    ContextWindowError,
    MissingDependencyError,
    OutOfMemoryError,
    TierBusyError,
)
from cascadellm.limits import Deadline

__all__ = ["ask", "classify", "retry_after", "retrying", "unbilled"]

_BY_STATUS = {
    400: "bad_request",
    401: "auth",
    403: "auth",
    404: "not_found",
    408: "timeout",
    413: "context_window",
    422: "bad_request",
    429: "rate_limit",
}
_BY_WORD = (
    ("ratelimit", "rate_limit"),
    ("timeout", "timeout"),
    ("deadline", "timeout"),
    ("authentication", "auth"),
    ("permission", "auth"),
    ("outofmemory", "out_of_memory"),
    ("contextwindow", "context_window"),
    ("contentpolicy", "content_policy"),
    ("contentfilter", "content_policy"),
    ("connect", "connection"),
    ("protocol", "connection"),
    ("jsondecode", "malformed"),
    ("validation", "malformed"),
    ("outputparser", "malformed"),
)
_SPARED = frozenset({"circuit_open", "busy"})
_FINAL = _SPARED | {"auth", "configuration", "context_window", "content_policy", "bad_request"}
_UNBILLED = _SPARED | {"rate_limit", "auth", "configuration", "not_found", "context_window"}


def classify(error: BaseException) -> str:
    """Return the reason code of a tier's error, by type, status and name.

    Codes: `rate_limit`, `timeout`, `context_window`, `content_policy`, `auth`,
    `connection`, `out_of_memory`, `malformed`, `bad_request`, `not_found`, `server`,
    `configuration`, `circuit_open`, `busy`, `error`.
    """
    if isinstance(error, CircuitOpenError):
        return "circuit_open"
    if isinstance(error, TierBusyError):
        return "busy"
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ContextWindowError):
        return "context_window"
    if isinstance(error, (OutOfMemoryError, MemoryError)):
        return "out_of_memory"
    if isinstance(error, (ConfigurationError, MissingDependencyError)):
        return "configuration"
    if isinstance(error, ConnectionError):
        return "connection"
    detail = f"{getattr(error, 'code', '')} {error}".lower()
    if "context_length" in detail or "context window" in detail or "maximum context" in detail:
        return "context_window"
    if "content_filter" in detail or "content_policy" in detail:
        return "content_policy"
    status = getattr(error, "status_code", None)
    if status is None:
        status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return _BY_STATUS.get(status, "server" if status >= 500 else "bad_request")
    for cls in type(error).__mro__:
        name = cls.__name__.lower()
        for word, code in _BY_WORD:
            if word in name:
                return code
    return "error"


def unbilled(code: str) -> bool:
    """Return whether a failure of this kind is known to cost nothing."""
    return code in _UNBILLED


def _worth_retrying(error: BaseException) -> bool:
    return isinstance(error, Exception) and classify(error) not in _FINAL


def retrying(setting: Any) -> tenacity.BaseRetrying | None:
    """Return the tenacity object of a tier's `retry` setting.

    Args:
        setting: None, the number of attempts, or a tenacity retrying object.

    Raises:
        ConfigurationError: The setting is something else.
    """
    if setting is None or isinstance(setting, tenacity.BaseRetrying):
        return setting
    if isinstance(setting, int) and not isinstance(setting, bool) and setting >= 1:
        return tenacity.Retrying(
            stop=tenacity.stop_after_attempt(setting),
            wait=retry_after(tenacity.wait_exponential(0.5, 20) + tenacity.wait_random(0, 0.5)),
            retry=tenacity.retry_if_exception(_worth_retrying),
            reraise=True,
        )
    raise ConfigurationError(
        f"retry expects a number of attempts >= 1 or a tenacity.Retrying object, got {setting!r}"
    )


def retry_after(
    fallback: Callable[[tenacity.RetryCallState], float], *, most_s: float = 60.0
) -> Callable[[tenacity.RetryCallState], float]:
    """Return a tenacity wait that honours a provider's `Retry-After` header.

    Args:
        fallback: The wait where the error carries no such header.
        most_s: Longest wait that a provider may ask for.
    """

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = _asked_wait(error)
        return fallback(state) if asked is None else min(asked, most_s)

    return wait


def _asked_wait(error: BaseException | None) -> float | None:
    """Read Retry-After (seconds or an HTTP date) from an error's response."""
    headers: Any = getattr(getattr(error, "response", None), "headers", None)
    value = headers.get("retry-after") if hasattr(headers, "get") else None
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def ask(call: Call, *, live: bool, deadline: Deadline | None = None) -> Plan[Answer]:
    """Ask a tier with its retries; `live` shows the answer while it grows.

    The only retry loop: sync and async drivers share it, and waiting is an effect. Each attempt
    is cut to what is then left of the deadline, and a wait that would pass it is not begun.
    """
    tier = call.tier
    policy = retrying(tier.retry)
    if policy is None and tier.breaker is None and tier.bulkhead is None:
        call = _in_time(call, deadline)
        return cast("Answer", (yield Relay(call) if live else call))
    if policy is None:
        return (yield from _once(_in_time(call, deadline), live))
    own = policy.copy(reraise=True)
    own.begin()
    state = tenacity.RetryCallState(own, None, (), {})
    while True:
        step = own.iter(retry_state=state)
        if isinstance(step, tenacity.DoAttempt):
            try:
                answer = yield from _once(_in_time(call, deadline), live)
            except Interrupted:
                raise
            except Exception:
                state.set_exception(sys.exc_info())  # type: ignore[arg-type]
            else:
                state.set_result(answer)
        elif isinstance(step, tenacity.DoSleep):
            left = None if deadline is None else deadline.left_s
            if left is not None and step >= left:
                return cast("Answer", state.outcome.result())  # type: ignore[union-attr]
            state.prepare_for_next_attempt()
            yield Sleep(float(step))
        else:
            return cast("Answer", step)


def _in_time(call: Call, deadline: Deadline | None) -> Call:
    if deadline is None or deadline.left_s is None:
        return call
    return replace(call, tier=deadline.limited(call.tier))


def _once(call: Call, live: bool) -> Plan[Answer]:
    """Ask once, inside the tier's bulkhead and breaker."""
    breaker, bulkhead = call.tier.breaker, call.tier.bulkhead
    effect = Relay(call) if live else call
    if breaker is not None:
        breaker.enter(call.tier.label)
    ended = False
    try:
        if bulkhead is not None:
            yield Enter(call.tier, call.tier.timeout_s)
        try:
            answer: Answer = yield effect
        finally:
            if bulkhead is not None:
                bulkhead.leave()
        ended = True
        if breaker is not None:
            breaker.leave(None)
        return answer
    except Exception as error:
        ended = True
        if breaker is not None:
            cause = error.cause if isinstance(error, Interrupted) else error
            breaker.leave(classify(cause))
        raise
    finally:
        # a cancelled or abandoned call says nothing about the tier's health
        if breaker is not None and not ended:
            breaker.abandon()
