"""How one call decodes: a frozen value, checked where it is made; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from cascadellm.errors import ConfigurationError

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How one call decodes.

    Attributes:
        temperature: 0 = greedy; above 0 = sampling at that temperature.
        top_k: Sample from the k likeliest tokens; 0 = off, None = the checkpoint's own or off.
        top_p: Sample from the smallest set with this probability mass; 1 = off, None as above.
        repetition_penalty: Divides the score of tokens already seen; 1 = off, None as above.
        max_new_tokens: Most tokens to write; None = all that fit the context window.
        stop: Strings that end the answer; they are not part of it.
        seed: Seed of this call's own random stream; None = a fresh one.
        top_logprobs: Number of alternatives kept per token.
        logprobs: Whether token scores are computed at all.
        response_schema: JSON schema that the answer is made to fit; needs the extra
            `structured`. Property order is the schema's.
        constrain_tools: True: tool calls are made to name a tool that was given, with arguments
            that fit its schema; `required`: besides, the answer is one or more calls; `one`: it
            is exactly one. Needs the same extra.
        constrain: Where no grammar can be made (the extra is missing, a schema cannot be
            compiled, the form of calls is unknown), `must` raises and `may` leaves the answer
            free.

    Raises:
        ConfigurationError: A value is out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = 256
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_logprobs: int = 5
    logprobs: bool = True
    response_schema: Mapping[str, Any] | None = None
    constrain_tools: bool | Literal["required", "one"] = False
    constrain: Literal["must", "may"] = "must"

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        _check("temperature", self.temperature, _number, lambda v: v >= 0, ">= 0 (0 is greedy)")
        _check("top_p", self.top_p, _number, lambda v: 0 < v <= 1, "in (0, 1] or None")
        _check(
            "repetition_penalty", self.repetition_penalty, _number, lambda v: v > 0, "> 0 or None"
        )
        _check("top_k", self.top_k, _whole, lambda v: v >= 0, ">= 0 (0 is off) or None")
        _check("max_new_tokens", self.max_new_tokens, _whole, lambda v: v >= 1, ">= 1 or None")
        _check("top_logprobs", self.top_logprobs, _whole, lambda v: v >= 0, ">= 0")
        if self.response_schema is not None and not isinstance(self.response_schema, Mapping):
            raise ConfigurationError(
                "response_schema must be a JSON schema as a dict, "
                f"got {self.response_schema!r:.200}"
            )
        _one_of("constrain_tools", self.constrain_tools, (False, True, "required", "one"))
        _one_of("constrain", self.constrain, ("must", "may"))
        _check("seed", self.seed, _whole, lambda v: abs(v) < 2**63, "below 2**63 or None")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken at every step."""
        return self.temperature == 0

    def override(self, **changes: Any) -> Settings:
        """Return these settings with some of them changed; None keeps a value.

        Raises:
            ConfigurationError: A name is unknown or a value is out of range.
        """
        known = [field.name for field in fields(self)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise ConfigurationError(
                f"unknown argument {unknown[0]!r} of a local model's call; known are: "
                f"messages, tools, {', '.join(known)}"
            )
        given = {name: value for name, value in changes.items() if value is not None}
        return replace(self, **given) if given else self


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check(
    name: str,
    value: Any,
    kind: Callable[[Any], bool],
    in_range: Callable[[Any], bool],
    expected: str,
) -> None:
    optional = "None" in expected
    if (optional and value is None) or (kind(value) and in_range(value)):
        return
    noun = "a whole number" if kind is _whole else "a finite number"
    raise ConfigurationError(f"{name} must be {noun} {expected}, got {value!r}")


def _one_of(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if not any(value is one or (isinstance(one, str) and value == one) for one in known):
        names = ", ".join(map(repr, known))
        raise ConfigurationError(f"{name} must be one of {names}, got {value!r:.200}")


def _stop_strings(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    found = (stop,) if isinstance(stop, str) else stop
    if not isinstance(found, Iterable):
        raise ConfigurationError(f"stop must be a string or a list of strings, got {stop!r}")
    strings = tuple(found)
    for text in strings:
        if not isinstance(text, str) or not text:
            raise ConfigurationError(f"a stop string must be a non-empty string, got {text!r}")
    return strings
