"""A tier: a named model with a price, ordered cheap to costly."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, runtime_checkable

from cascadellm.answer import Answer, Piece, Usage
from cascadellm.breaker import Breaker
from cascadellm.bulkhead import Bulkhead
from cascadellm.errors import ConfigurationError

__all__ = ["LocalLike", "Price", "Tier", "named"]


@runtime_checkable
class LocalLike(Protocol):
    """A model that the engine can call without a framework.

    `cascadellm.local.LocalModel`, `SpeculativePair` and `cascadellm.testing.FakeModel`
    are such models. Messages are chat dicts (`role`, `content`, `tool_calls`, ...) or a
    plain string for models without a chat template.
    """

    @property
    def model_name(self) -> str:
        """Short name of the model."""

    @property
    def context_window(self) -> int:
        """Most tokens of prompt plus answer."""

    def generate(self, messages: Any, **kwargs: Any) -> Answer:
        """Answer once."""

    def stream(self, messages: Any, **kwargs: Any) -> Iterator[Piece]:
        """Yield pieces; the last one carries the whole answer."""

    def batch(self, requests: Sequence[Any], **kwargs: Any) -> list[Answer]:
        """Answer many requests at once."""

    async def agenerate(self, messages: Any, **kwargs: Any) -> Answer:
        """Answer once without blocking the event loop."""

    def astream(self, messages: Any, **kwargs: Any) -> AsyncIterator[Piece]:
        """Yield pieces without blocking the event loop."""


@dataclass(frozen=True, slots=True)
class Price:
    """What a call costs.

    Attributes:
        input: USD per million input tokens.
        output: USD per million output tokens.
        per_second: USD per second of the call, for a rented GPU.
    """

    input: float = 0.0
    output: float = 0.0
    per_second: float = 0.0

    def __post_init__(self) -> None:
        for name in ("input", "output", "per_second"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise ConfigurationError(
                    f"Price.{name} must be a finite number >= 0 (USD), got {value!r}"
                )

    def cost(self, usage: Usage | None, latency_s: float = 0.0) -> float | None:
        """Return the cost of one call in USD, None when the tokens are unknown."""
        timed = self.per_second * latency_s
        if self.input == 0 and self.output == 0:
            return timed
        if usage is None:
            return None
        tokens = usage.input_tokens * self.input + usage.output_tokens * self.output
        return tokens / 1e6 + timed


@dataclass(frozen=True, slots=True, init=False)
class Tier:
    """A model of the cascade with its name, price and call settings.

    Args:
        model: Any model that the adapter knows: a LangChain Runnable, a LlamaIndex LLM,
            a local model, or a string that names one.
        name: Name in records and traces; derived from the model when not given.
        price: What a call costs; None = unknown (never zero).
        retry: Number of attempts (exponential backoff with jitter), or a tenacity
            `Retrying` object; None = one attempt.
        timeout_s: Seconds after which the tier counts as failed.
        kwargs: Extra call arguments for this tier only.
        breaker: A `Breaker` that spares a tier which keeps failing.
        bulkhead: A `Bulkhead` that bounds how many calls run at once.

    Raises:
        ConfigurationError: A name is empty, or a number is out of range.
    """

    model: Any = field(repr=False)
    name: str | None
    price: Price | None
    retry: Any
    timeout_s: float | None
    kwargs: Mapping[str, Any] = field(repr=False)
    breaker: Breaker | None = field(repr=False)
    bulkhead: Bulkhead | None = field(repr=False)

    def __init__(
        self,
        model: Any,
        *,
        name: str | None = None,
        price: Price | None = None,
        retry: Any = None,
        timeout_s: float | None = None,
        kwargs: Mapping[str, Any] | None = None,
        breaker: Breaker | None = None,
        bulkhead: Bulkhead | None = None,
    ) -> None:
        if model is None:
            raise ConfigurationError("Tier(model) expects a model or its name, got None")
        if name is not None and (not isinstance(name, str) or not name.strip()):
            raise ConfigurationError(f"a tier's name must be a non-empty string, got {name!r}")
        if price is not None and not isinstance(price, Price):
            raise ConfigurationError(
                f"price must be a Price (USD per million tokens) or None, got {price!r}"
            )
        if timeout_s is not None and not 0 < timeout_s < float("inf"):
            raise ConfigurationError(
                f"timeout_s must be a positive number of seconds or None, got {timeout_s!r}"
            )
        _expect("breaker", breaker, Breaker)
        _expect("bulkhead", bulkhead, Bulkhead)
        for key, value in (
            ("model", model),
            ("name", name),
            ("price", price),
            ("retry", retry),
            ("timeout_s", timeout_s),
            ("kwargs", dict(kwargs or {})),
            ("breaker", breaker),
            ("bulkhead", bulkhead),
        ):
            object.__setattr__(self, key, value)

    def but(self, **changes: Any) -> Tier:
        """Return a copy with some settings changed."""
        settings = {f.name: getattr(self, f.name) for f in fields(self)} | changes
        return Tier(settings.pop("model"), **settings)

    @property
    def label(self) -> str:
        """The tier's name, derived from the model when none was given."""
        return self.name if self.name is not None else _derived_name(self.model)

    def cost(self, usage: Usage | None, latency_s: float = 0.0) -> float | None:
        """Return what a call cost in USD; None when price or tokens are unknown."""
        return None if self.price is None else self.price.cost(usage, latency_s)


def _derived_name(model: Any) -> str:
    """Return the last path part of a model's name, else its class name."""
    seen = model
    for _ in range(8):
        if isinstance(seen, str):
            return seen.rstrip("/").replace("\\", "/").rsplit("/", 1)[-1].rsplit(":", 1)[-1]
        for attribute in ("model_name", "model", "model_id"):
            value = getattr(seen, attribute, None)
            if isinstance(value, str) and value.strip():
                return value.rstrip("/").rsplit("/", 1)[-1]
        inner = getattr(seen, "bound", None) or getattr(seen, "runnable", None)
        if inner is None:
            break
        seen = inner
    return type(model).__name__


def named(tiers: Sequence[Tier]) -> tuple[Tier, ...]:
    """Give every tier its final, unique name.

    Equal derived names get `-2`, `-3`; equal explicit names are an error.

    Raises:
        ConfigurationError: Two tiers were given the same name.
    """
    explicit = [tier.name for tier in tiers if tier.name is not None]
    for name in explicit:
        if explicit.count(name) > 1:
            raise ConfigurationError(
                f"tier names must differ, got {name!r} {explicit.count(name)} times; "
                "give each Tier its own name="
            )
    taken = set(explicit)
    result = []
    for tier in tiers:
        if tier.name is None:
            base = name = tier.label
            count = 1
            while name in taken:
                count += 1
                name = f"{base}-{count}"
            taken.add(name)
            result.append(tier.but(name=name))
        else:
            result.append(tier)
    return tuple(result)


def _expect(name: str, value: Any, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise ConfigurationError(f"{name} must be a {kind.__name__} or None, got {value!r}")
