"""CascadeMiddleware in real agents: sticky tiers, budgets, a trail that is saved."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import GenericFakeChatModel
from langgraph.checkpoint.memory import InMemorySaver

from cascadellm import BudgetExceededError, ConfigurationError, Price, Threshold, Tier, ToolCall
from cascadellm.scores import mean_logprob
from cascadellm.testing import FakeModel
from langchain_cascade import CascadeLLM
from langchain_cascade.middleware import CascadeMiddleware

pytestmark = pytest.mark.dropin


def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


def caller(name: str, logprob: float) -> FakeModel:
    """Call the tool until two results are there, then answer."""

    def reply(messages: Any) -> Any:
        results = [m for m in messages if m["role"] == "tool"]
        if len(results) < 2:
            return ToolCall("add", {"a": 1, "b": len(results)}, id=f"c{len(results)}")
        return f"{name} is done"

    return FakeModel(reply, name=name, logprob=logprob)


def build(small_logprob: float = -1.0, price: Price | None = None, **options: Any):
    small, large = caller("small", small_logprob), caller("large", -0.01)
    cascade = CascadeLLM(
        tiers=[Tier(small, price=price), Tier(large, price=price)],
        policy=Threshold(mean_logprob, -0.5, over="all"),
    )
    saver = InMemorySaver()
    agent = create_agent(
        cascade, [add], middleware=[CascadeMiddleware(**options)], checkpointer=saver
    )
    return agent, small, large


ASK = {"messages": [("user", "add them")]}


def config(thread: str = "t") -> Any:
    return {"configurable": {"thread_id": thread}}


@pytest.mark.parametrize("mode", ["invoke", "ainvoke", "stream"])
async def test_a_deferral_keeps_the_thread_on_the_larger_tier(mode: str) -> None:
    """After one escalation the small tier is not asked again until the agent answers."""
    agent, small, large = build(sticky_steps=5)
    if mode == "invoke":
        state = agent.invoke(ASK, config())
    elif mode == "ainvoke":
        state = await agent.ainvoke(ASK, config())
    else:
        list(agent.stream(ASK, config(), stream_mode="updates"))
        state = agent.get_state(config()).values
    assert (1, 3) == (len(small.calls), len(large.calls))
    assert "large is done" == state["messages"][-1].content
    trail = state["cascade_trail"]
    assert [("large", True), ("large", False), ("large", False)] == [
        (record["answered_by"], record["escalated"]) for record in trail
    ]
    assert 3 == len(agent.get_state(config()).values["cascade_trail"])
    # the stay ended with the answer: the next question starts at the first tier
    agent.invoke(ASK, config())
    assert 2 == len(small.calls)


def test_without_stickiness_every_step_starts_at_the_first_tier() -> None:
    """sticky_steps=0 only keeps the trail."""
    agent, small, large = build(sticky_steps=0)
    agent.invoke(ASK, config())
    assert (3, 3) == (len(small.calls), len(large.calls))


def test_stickiness_ends_after_its_steps() -> None:
    """One sticky step, then the small tier is asked again."""
    agent, small, large = build(sticky_steps=1, until="steps")
    agent.invoke(ASK, config())
    assert (2, 3) == (len(small.calls), len(large.calls))


def test_a_spent_budget_keeps_the_thread_on_the_first_tier() -> None:
    """Past its token budget a thread gets the first tier's answers only; others are free."""
    agent, _, large = build(sticky_steps=0, budget_tokens=1)
    agent.invoke(ASK, config())
    assert 1 == len(large.calls)
    agent.invoke(ASK, config("other"))
    assert 2 == len(large.calls)


def test_a_spent_budget_can_raise_before_the_next_call() -> None:
    """on_budget='raise' names what was spent; nothing more is paid."""
    agent, small, large = build(price=Price(1e6, 1e6), budget_usd=0.5, on_budget="raise")
    with pytest.raises(BudgetExceededError, match=r"its budget is 0\.5 USD"):
        agent.invoke(ASK, config())
    assert (1, 1) == (len(small.calls), len(large.calls))


def test_unknown_money_counts_as_spent() -> None:
    """A budget in USD cannot be kept with unpriced tiers, so it holds the thread back."""
    agent, _, large = build(sticky_steps=0, budget_usd=100.0)
    agent.invoke(ASK, config())
    assert 1 == len(large.calls)


def test_no_draft_leaks_into_the_message_stream() -> None:
    """The `messages` stream holds only what was accepted."""
    agent, _, _ = build()
    shown = [m.content for m, _ in agent.stream(ASK, config(), stream_mode="messages")]
    assert "small" not in "".join(text for text in shown if isinstance(text, str))


def test_wrong_use_is_named() -> None:
    """Another model or a bad number is an error that says what to pass."""
    other = GenericFakeChatModel(messages=iter(["x"]))
    agent = create_agent(other, [], middleware=[CascadeMiddleware()])
    with pytest.raises(ConfigurationError, match="drives a CascadeLLM"):
        agent.invoke(ASK)
    with pytest.raises(ConfigurationError, match="sticky_steps"):
        CascadeMiddleware(sticky_steps=-1)
    with pytest.raises(ConfigurationError, match="budget_tokens"):
        CascadeMiddleware(budget_tokens=0)
