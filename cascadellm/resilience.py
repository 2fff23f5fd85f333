"""Retry, timeout, and why a tier failed."""

from __future__ import annotations

import contextvars
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import tenacity

from cascadellm.answer import Answer
from cascadellm.effects import Call, Interrupted, Plan, Relay, Sleep
from cascadellm.errors import (
    ConfigurationError,
    ContextWindowError,
    MissingDependencyError,
    OutOfMemoryError,
)

__all__ = ["ask", "classify", "retrying", "unbilled", "with_timeout"]

T = TypeVar("T")

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
_FINAL = frozenset({"auth", "configuration", "context_window", "content_policy", "bad_request"})
_UNBILLED = frozenset({"rate_limit", "auth", "configuration", "not_found", "context_window"})


def classify(error: BaseException) -> str:
    """Return the reason code of a tier's error, by type, status and name.

    Codes: `rate_limit`, `timeout`, `context_window`, `content_policy`, `auth`,
    `connection`, `out_of_memory`, `malformed`, `bad_request`, `not_found`, `server`,
    `configuration`, `error`.
    """
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
            wait=tenacity.wait_exponential_jitter(initial=0.5, max=20),
            retry=tenacity.retry_if_exception(_worth_retrying),
            reraise=True,
        )
    raise ConfigurationError(
        f"retry expects a number of attempts >= 1 or a tenacity.Retrying object, got {setting!r}"
    )


def ask(call: Call, *, live: bool) -> Plan[Answer]:
    """Ask a tier with its retries; `live` shows the answer while it grows.

    The only retry loop: sync and async drivers share it, and waiting is an effect.
    """
    effect = Relay(call) if live else call
    policy = retrying(call.tier.retry)
    if policy is None:
        return (yield effect)
    own = policy.copy(reraise=True)
    own.begin()
    state = tenacity.RetryCallState(own, None, (), {})
    while True:
        step = own.iter(retry_state=state)
        if isinstance(step, tenacity.DoAttempt):
            try:
                answer = yield effect
            except Interrupted:
                raise
            except Exception:
                state.set_exception(sys.exc_info())  # type: ignore[arg-type]
            else:
                state.set_result(answer)
        elif isinstance(step, tenacity.DoSleep):
            state.prepare_for_next_attempt()
            yield Sleep(float(step))
        else:
            return step


def with_timeout(function: Callable[[], T], timeout_s: float | None, name: str) -> T:
    """Call a function, giving up after `timeout_s` seconds.

    The abandoned call runs to its end in a daemon thread, because a sync call of a
    provider cannot be cancelled; its result is dropped.

    Raises:
        TimeoutError: The function took longer; the message names the tier.
    """
    if timeout_s is None:
        return function()
    outcome: list[Any] = []
    done = threading.Event()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            outcome.append((True, context.run(function)))
        except BaseException as error:  # handed to the waiting thread below
            outcome.append((False, error))
        done.set()

    threading.Thread(target=run, daemon=True, name=f"cascade-{name}").start()
    if not done.wait(timeout_s):
        raise TimeoutError(timeout_message(name, timeout_s))
    succeeded, value = outcome[0]
    if succeeded:
        return value  # type: ignore[no-any-return]
    raise value


def timeout_message(name: str, timeout_s: float) -> str:
    """Return the sentence of a tier's time-out."""
    return f"tier {name!r} did not answer within {timeout_s:g} s (its timeout_s)"
