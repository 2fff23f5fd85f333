"""CascadeMiddleware: sticky escalation and budgets per thread, for `create_agent`.

It drives a `CascadeLLM` by saying at which tier a call begins, so tracing, streaming and the
record stay the model's own; the state it keeps is plain data, which checkpointers save.
"""

from __future__ import annotations

import operator
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, NotRequired

from cascadellm.errors import BudgetExceededError, ConfigurationError, MissingDependencyError
from langchain_cascade.chat_model import CascadeLLM

try:
    from langchain.agents.middleware import (
        AgentMiddleware,
        AgentState,
        ExtendedModelResponse,
        ModelRequest,
        ModelResponse,
    )
    from langchain.agents.middleware.types import PrivateStateAttr
    from langgraph.types import Command
except ImportError as error:
    raise MissingDependencyError.for_extra("langchain", "agents") from error

__all__ = ["CascadeMiddleware", "CascadeState"]


class CascadeState(AgentState[Any]):
    """What the middleware keeps per thread, beside the messages.

    Attributes:
        cascade_trail: The record of every model step, oldest first.
        cascade_sticky: The tier that the thread stays on, and steps left there.
        cascade_spent: Money and tokens of the thread so far; the money is None once unknown.
    """

    cascade_trail: NotRequired[Annotated[list[dict[str, Any]], operator.add]]
    cascade_sticky: NotRequired[Annotated[dict[str, Any] | None, PrivateStateAttr]]
    cascade_spent: NotRequired[Annotated[dict[str, Any], PrivateStateAttr]]


class CascadeMiddleware(AgentMiddleware[CascadeState, Any, Any]):
    """Keeps a thread on the larger tier after a deferral, and within its budget.

    A step that stays begins at the tier that answered; its policy may defer further up. A spent
    budget asks the first tier alone, unjudged. A step that raises leaves no record in the state;
    `record_cascade` has it.

    Args:
        sticky_steps: Model steps that stay on the tier that answered after a deferral;
            0 = every step starts at the first tier.
        until: `steps` counts them down; `answer` also ends the stay at the agent's success: the
            first step that answers without calling a tool, or with a valid structured response.
        budget_usd: Most money per thread; needs prices on all tiers.
        budget_tokens: Most tokens (input and output, all tiers) per thread.
        on_budget: Once a budget is spent: `first` keeps the thread on the first tier,
            `raise` raises `BudgetExceededError` before the next call.

    Raises:
        ConfigurationError: A number is out of range.
    """

    state_schema = CascadeState

    def __init__(
        self,
        *,
        sticky_steps: int = 3,
        until: Literal["steps", "answer"] = "answer",
        budget_usd: float | None = None,
        budget_tokens: int | None = None,
        on_budget: Literal["first", "raise"] = "first",
    ) -> None:
        super().__init__()
        if not isinstance(sticky_steps, int) or sticky_steps < 0:
            raise ConfigurationError(f"sticky_steps must be an integer >= 0, got {sticky_steps!r}")
        for name, budget in (("budget_usd", budget_usd), ("budget_tokens", budget_tokens)):
            if budget is not None and not budget > 0:
                raise ConfigurationError(f"{name} must be positive or None, got {budget!r}")
        if until not in ("steps", "answer") or on_budget not in ("first", "raise"):
            raise ConfigurationError(
                "until is 'steps' or 'answer' and on_budget is 'first' or 'raise', "
                f"got {until!r} and {on_budget!r}"
            )
        self.sticky_steps = sticky_steps
        self.until = until
        self.budget_usd = budget_usd
        self.budget_tokens = budget_tokens
        self.on_budget = on_budget

    def wrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], ModelResponse[Any]],
    ) -> ExtendedModelResponse[Any]:
        """Begin at the tier that the thread is on, and note what happened."""
        return self._noted(request, handler(self._routed(request)))

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ExtendedModelResponse[Any]:
        """Begin at the tier that the thread is on, and note what happened."""
        return self._noted(request, await handler(self._routed(request)))

    def _routed(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        model = request.model
        if not isinstance(model, CascadeLLM):
            raise ConfigurationError(
                "CascadeMiddleware drives a CascadeLLM; pass create_agent(model=CascadeLLM(...)), "
                f"got {type(model).__name__}"
            )
        where = self._where(request.state, model)
        return request.override(model_settings={**request.model_settings, **where})

    def _where(self, state: Any, model: CascadeLLM) -> dict[str, Any]:
        """Return the call arguments that choose the thread's tiers."""
        if self._spent_out(state):
            if self.on_budget == "raise":
                raise BudgetExceededError(
                    f"the thread spent {state['cascade_spent']!r}, its budget is "
                    f"{self.budget_usd!r} USD and {self.budget_tokens!r} tokens; raise the "
                    "budget, or set on_budget='first'"
                )
            return {"model": model.engine.tiers[0].label}
        sticky = state.get("cascade_sticky")
        return {"cascade_from": sticky["tier"]} if sticky and sticky["steps"] > 0 else {}

    def _spent_out(self, state: Any) -> bool:
        spent = state.get("cascade_spent") or {}
        if self.budget_tokens is not None and spent.get("tokens", 0) >= self.budget_tokens:
            return True
        if self.budget_usd is None:
            return False
        usd = spent.get("usd", 0.0)
        # money that cannot be known may already be too much
        return usd is None or usd >= self.budget_usd

    def _noted(
        self, request: ModelRequest[Any], response: ModelResponse[Any]
    ) -> ExtendedModelResponse[Any]:
        message = response.result[0] if response.result else None
        record = getattr(message, "response_metadata", {}).get("cascade")
        if record is None:
            return ExtendedModelResponse(response)
        state: Any = request.state
        update = {
            "cascade_trail": [record],
            "cascade_sticky": self._stay(state, record, _succeeded(response, message)),
            "cascade_spent": _added(state.get("cascade_spent"), record, message),
        }
        return ExtendedModelResponse(response, Command(update=update))

    def _stay(self, state: Any, record: dict[str, Any], success: bool) -> dict[str, Any] | None:
        if self.until == "answer" and success:
            return None
        if record["escalated"] and self.sticky_steps:
            return {"tier": record["answered_by"], "steps": self.sticky_steps}
        sticky = state.get("cascade_sticky")
        if not sticky or sticky["steps"] <= 1:
            return None
        return {"tier": sticky["tier"], "steps": sticky["steps"] - 1}


def _succeeded(response: ModelResponse[Any], message: Any) -> bool:
    """Return whether a step ends the agent's run: structured responses may be tool calls."""
    return response.structured_response is not None or not getattr(message, "tool_calls", None)


def _added(spent: dict[str, Any] | None, record: dict[str, Any], message: Any) -> dict[str, Any]:
    """Add one call's money and tokens to the thread's."""
    before = spent or {"usd": 0.0, "tokens": 0}
    if (getattr(message, "usage_metadata", None) or {}).get("total_cost") == 0:
        # LangChain's mark of a cached answer, whose record tells what the first call cost
        return before
    counts = record["tokens_by_tier"].values()
    tokens = sum(count["input"] + count["output"] for count in counts)
    known = before["usd"] is not None and record["cost_usd"] is not None
    return {
        "usd": before["usd"] + record["cost_usd"] if known else None,
        "tokens": before["tokens"] + tokens,
    }
