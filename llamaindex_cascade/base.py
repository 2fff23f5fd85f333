"""What a cascade is before it is asked: its fields, metadata, payload and callbacks."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Sequence
from typing import Any, Literal, Self

from llama_index.core.base.llms.types import ChatMessage, LLMMetadata
from llama_index.core.bridge.pydantic import Field, PrivateAttr, field_serializer
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM
from llama_index.core.prompts import BasePromptTemplate

from cascadellm import Cascade, Tier
from cascadellm.answer import Request
from cascadellm.calibration.feedback import FeedbackLoop
from cascadellm.errors import ConfigurationError
from cascadellm.policies.base import PolicyLike
from llamaindex_cascade.logprobs import can_score
from llamaindex_cascade.metadata import cascade_metadata, refuses
from llamaindex_cascade.request import Prompted, passages, request_of
from llamaindex_cascade.spans import announce
from llamaindex_cascade.tier import TierBook
from llamaindex_cascade.tools import Asked
from llamaindex_cascade.usable import with_parser

__all__ = ["CascadeBase"]


class CascadeBase(FunctionCallingLLM):
    """Fields and descriptions of a cascade; see `CascadeLLM`."""

    tiers: Any = Field(repr=False, description="Tiers, cheap to costly.")
    policy: Any = Field(default=None, description="Deferral policy per boundary.")
    on_tier_error: Literal["escalate", "raise"] = "escalate"
    on_exhausted: Literal["raise", "best"] = "raise"
    deadline_s: float | None = None
    context: Literal["min", "max"] = "min"
    function_calling: Literal["last", "any", "all"] = "last"
    handlers: Any = Field(default=(), exclude=True, repr=False)
    feedback_loop: Any = Field(default=None, exclude=True, repr=False)

    _cascade: Cascade = PrivateAttr()
    _book: TierBook = PrivateAttr()

    def __init__(
        self,
        tiers: Sequence[Any],
        policy: PolicyLike | Sequence[PolicyLike] | None = None,
        *,
        on_tier_error: Literal["escalate", "raise"] = "escalate",
        on_exhausted: Literal["raise", "best"] = "raise",
        deadline_s: float | None = None,
        handlers: Sequence[Any] = (),
        feedback_loop: FeedbackLoop | None = None,
        context: Literal["min", "max"] = "min",
        function_calling: Literal["last", "any", "all"] = "last",
        **kwargs: Any,
    ) -> None:
        _check("context", context, ("min", "max"))
        _check("function_calling", function_calling, ("last", "any", "all"))
        book = TierBook()
        if isinstance(tiers, (list, tuple)):
            tiers = [book.enter(tier) for tier in tiers]
        cascade = Cascade(
            tiers,
            policy,
            on_tier_error=on_tier_error,
            on_exhausted=on_exhausted,
            deadline_s=deadline_s,
        )
        super().__init__(
            tiers=cascade.tiers,
            policy=policy,
            on_tier_error=on_tier_error,
            on_exhausted=on_exhausted,
            deadline_s=deadline_s,
            handlers=tuple(handlers),
            feedback_loop=feedback_loop,
            context=context,
            function_calling=function_calling,
            **kwargs,
        )
        self._cascade, self._book = cascade, book
        self._share_callbacks(self.callback_manager)
        _warn_unscored(cascade, book)

    def __repr__(self) -> str:
        names = ", ".join(tier.label for tier in self._cascade.tiers)
        return f"CascadeLLM(tiers=[{names}], policy={self.policy!r})"

    __str__ = __repr__

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "callback_manager":
            self._share_callbacks(value)

    def _share_callbacks(self, manager: CallbackManager) -> None:
        """Hand a callback manager to the tiers and judges that have no handlers of their own.

        LlamaIndex assigns managers after construction and counts tokens through them.
        """
        private = self.__pydantic_private__ or {}
        book = private.get("_book")
        if book is None or not manager.handlers:
            return
        book.share(manager)
        for llm in self._llms():
            book.tell(llm)

    def _llms(self) -> list[LLM]:
        return [self._book.llm(tier.model) for tier in self._cascade.tiers]

    @field_serializer("tiers")
    def _tiers_payload(self, tiers: Any) -> list[dict[str, Any]]:
        # tiers hold credentials; what leaves the process is their public description
        return [{"name": tier.label, **self._book.llm(tier.model).to_payload()} for tier in tiers]

    @field_serializer("policy")
    def _policy_payload(self, policy: Any) -> list[str]:
        return [repr(one) for one in self._cascade.policies]

    def to_payload(self) -> dict[str, Any]:
        """Return a description without credentials, for events and traces."""
        return {
            "class_name": self.class_name(),
            **self.metadata.model_dump(),
            "tiers": self._tiers_payload(self._cascade.tiers),
            "policy": self._policy_payload(None),
        }

    @property
    def metadata(self) -> LLMMetadata:
        """What holds whichever tier answers; see the `context` and `function_calling` options."""
        return cascade_metadata(
            self._llms(),
            [tier.label for tier in self._cascade.tiers],
            context=self.context,
            function_calling=self.function_calling,
        )

    def with_policy(self, policy: PolicyLike | Sequence[PolicyLike]) -> Self:
        """Return a cheap copy under another policy; tiers are shared."""
        other = self.model_copy()
        other._cascade = self._cascade.with_policy(policy)  # noqa: SLF001 - a copy of itself
        other.policy = policy
        return other

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Return a copy that shares the tiers: they hold models and connections."""
        return self.model_copy()

    def feedback(self, run: Any, *, correct: float, reference_correct: float | None = None) -> bool:
        """Say whether an answer was right; the monitors of `feedback_loop` are told.

        Safe from any thread, and quick enough to call inside an event loop.

        Args:
            run: The response, its record, or the `run_id` in its record.
            correct: Whether the answer was right, or its quality in [0, 1].
            reference_correct: Whether the last tier would be right, where that is known.

        Returns:
            Whether it was counted: a call counts once.

        Raises:
            CalibrationError: The call is not known, or a number is out of range.
            ConfigurationError: The cascade has no `feedback_loop`.
        """
        if self.feedback_loop is None:
            raise ConfigurationError(
                "the cascade has no feedback_loop; give it FeedbackLoop([DriftMonitor(...)])"
            )
        counted, events = self.feedback_loop.feedback(
            self._cascade, run, correct=correct, reference_correct=reference_correct
        )
        for event in events:
            announce(event, self.handlers)
        return bool(counted)

    # -- one call --

    def _parts(self, asked: Asked, kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return what a session needs; takes the cascade's own arguments out of `kwargs`."""
        cascade = self._cascade
        policy = kwargs.pop("cascade_policy", None)
        if policy is not None:
            cascade = cascade.with_policy(policy)
        pin = kwargs.pop("cascade_tier", None)
        request = request_of(asked, kwargs)
        if request.parser is not None:
            cascade = with_parser(cascade)
        loop = self.feedback_loop
        run_id = None if loop is None else str(uuid.uuid4())
        plan = cascade.plan(request, pin=pin, admit=self._admit, run_id=run_id)
        if loop is not None:
            plan = loop.watched(cascade, plan, request, run_id)
        return cascade, plan, self._book, self.handlers

    def _wait(self) -> None:
        if self.rate_limiter is not None:
            self.rate_limiter.acquire()

    async def _await(self) -> None:
        if self.rate_limiter is not None:
            await self.rate_limiter.async_acquire()

    def _admit(self, tier: Tier, request: Request) -> tuple[str, str] | None:
        return refuses(self._book.llm(tier.model), request)

    def _get_messages(self, prompt: BasePromptTemplate, **prompt_args: Any) -> list[ChatMessage]:
        messages = super()._get_messages(prompt, **prompt_args)
        parser = prompt.output_parser or self.output_parser
        return Prompted(messages, parser, passages(prompt, prompt_args))


def _check(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigurationError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _warn_unscored(cascade: Cascade, book: TierBook) -> None:
    for place, unit in enumerate(cascade.units):
        if "logprobs" not in cascade.reads(place):
            continue
        if can_score(book.llm(unit.tier.model)) is False:
            warnings.warn(
                f"tier {unit.tier.label!r} gives no token logprobs, which its policy "
                f"{cascade.boundaries[place].name!r} reads; its answers count as unscored",
                stacklevel=3,
            )
