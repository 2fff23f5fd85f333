"""CascadeMiddleware in real agents: sticky tiers, budgets, a trail that is saved."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

from cascadellm import (
    BudgetExceededError,
    ConfigurationError,
    Price,
    Threshold,
    Tier,
    ToolCall,
    record_cascade,
)
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


def build(
    small_logprob: float = -1.0,
    price: Price | None = None,
    saver: Any = None,
    pair: Any = None,
    **options: Any,
):
    small, large = pair or (caller("small", small_logprob), caller("large", -0.01))
    cascade = CascadeLLM(
        tiers=[Tier(small, price=price), Tier(large, price=price)],
        policy=Threshold(mean_logprob, -0.5, over="all"),
    )
    schema = options.pop("schema", None)
    agent = create_agent(
        cascade,
        [add],
        middleware=[CascadeMiddleware(**options)],
        checkpointer=saver or InMemorySaver(),
        response_format=schema,
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


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
@pytest.mark.parametrize("mode", ["messages", "updates", "values", "v3"])
@pytest.mark.parametrize("sticky_steps", [0, 3])
def test_no_draft_leaks_into_a_stream(mode: str, sticky_steps: int) -> None:
    """No stream and no checkpoint holds a word of what was rejected."""
    small = FakeModel("zebra zonk", name="small", logprob=-1.0)
    agent, _, _ = build(pair=(small, caller("large", -0.01)), sticky_steps=sticky_steps)
    if mode == "v3":
        shown = list(agent.stream_events(ASK, config(), version="v3"))
    else:
        shown = list(agent.stream(ASK, config(), stream_mode=mode))
    kept = [one.values for one in agent.get_state_history(config())]
    assert small.calls
    assert "done" in str(shown)
    assert "zonk" not in str(shown) + str(kept)


def test_a_leaked_draft_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A middleware that asks a tier itself shows its draft, so the check has power (mutation)."""

    def asks_itself(self: Any, request: Any, handler: Any) -> Any:
        handler(request.override(model=request.model.tiers[0].model))
        return handler(request)

    monkeypatch.setattr(CascadeMiddleware, "wrap_model_call", asks_itself)
    small = FakeModel("zebra zonk", name="small", logprob=-1.0)
    agent, _, _ = build(pair=(small, caller("large", -0.01)))
    assert "zonk" in str(list(agent.stream(ASK, config(), stream_mode="messages")))


def test_the_trail_is_the_records_of_the_threads_steps() -> None:
    """State holds the record of every step in order, as `record_cascade` has them; no other."""
    agent, _, _ = build(sticky_steps=1, until="steps")
    with record_cascade() as recorder:
        for thread in ("a", "b"):
            agent.invoke(ASK, config(thread))
    trails = [agent.get_state(config(t)).values["cascade_trail"] for t in ("a", "b")]
    assert [trace.to_dict() for trace in recorder.traces] == trails[0] + trails[1]
    tokens = sum(t["input"] + t["output"] for r in trails[1] for t in r["tokens_by_tier"].values())
    assert tokens == agent.get_state(config("b")).values["cascade_spent"]["tokens"]


def test_a_stay_and_a_budget_survive_in_the_checkpoint() -> None:
    """A new process over the same checkpoints goes on where the thread stood."""
    saver = InMemorySaver()
    pair = caller("small", -1.0), caller("large", -0.01)
    first, small, large = build(saver=saver, pair=pair, sticky_steps=9, until="steps")
    first.invoke(ASK, config())
    assert (1, 3) == (len(small.calls), len(large.calls))
    spent = first.get_state(config()).values["cascade_spent"]
    second, _, _ = build(saver=saver, pair=pair, sticky_steps=9, until="steps")
    second.invoke(ASK, config())
    assert 1 == len(small.calls)
    assert second.get_state(config()).values["cascade_spent"]["tokens"] > spent["tokens"]
    frugal, _, _ = build(saver=saver, pair=pair, budget_tokens=1, on_budget="raise")
    with pytest.raises(BudgetExceededError, match="its budget is"):
        frugal.invoke(ASK, config())


def test_a_fork_from_an_earlier_checkpoint_has_that_threads_stay() -> None:
    """Going back before the deferral forgets it; the trail is the fork's own."""
    agent, small, _ = build(sticky_steps=9, until="steps")
    agent.invoke(ASK, config())
    start = next(
        s
        for s in agent.get_state_history(config())
        if s.next == ("model",) and not s.values.get("cascade_trail")
    )
    state = agent.invoke(None, start.config)
    assert 2 == len(small.calls)
    assert 3 == len(state["cascade_trail"])


class Sum(BaseModel):
    """A sum."""

    total: int


def test_a_structured_response_is_a_success() -> None:
    """With `until="answer"` a valid object, though a tool call, ends the stay."""

    def rule(messages: Any) -> Any:
        asked = [m for m in messages if m["role"] == "user"]
        results = [
            m for m in messages if m["role"] == "tool" and "structured" not in str(m).lower()
        ]
        if len(results) < len(asked):
            return ToolCall("add", {"a": 1, "b": 2}, id=f"c{len(results)}")
        return ToolCall("Sum", {"total": 3}, id=f"s{len(messages)}")

    small = FakeModel(rule, name="small", logprob=-1.0)
    large = FakeModel(rule, name="large", logprob=-0.01)
    agent, _, _ = build(pair=(small, large), sticky_steps=9, schema=ToolStrategy(Sum))
    for count in (1, 2):
        state = agent.invoke(ASK, config())
        assert Sum(total=3) == state["structured_response"]
        assert (count, 2 * count) == (len(small.calls), len(large.calls))


def test_a_cached_answer_spends_nothing() -> None:
    """What the global cache answers is in the trail and not in the bill."""
    set_llm_cache(InMemoryCache())
    try:
        agent, _, _ = build(pair=(FakeModel("hm", logprob=-1.0), FakeModel("so", name="large")))
        ask = {"messages": [HumanMessage("hi", id="1")]}
        for thread in ("a", "b"):
            agent.invoke(ask, config(thread))
    finally:
        set_llm_cache(None)
    spent = [agent.get_state(config(t)).values["cascade_spent"]["tokens"] for t in ("a", "b")]
    assert spent[0] > spent[1] == 0
    assert 1 == len(agent.get_state(config("b")).values["cascade_trail"])


async def test_concurrent_threads_keep_their_own_stay() -> None:
    """Many threads of one agent at once: each has one deferral and its own trail."""
    agent, small, large = build(sticky_steps=5)
    threads = [str(place) for place in range(20)]
    await asyncio.gather(*(agent.ainvoke(ASK, config(thread)) for thread in threads))
    assert (20, 60) == (len(small.calls), len(large.calls))
    for thread in threads:
        trail = agent.get_state(config(thread)).values["cascade_trail"]
        assert [True, False, False] == [record["escalated"] for record in trail]


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


def test_a_stay_on_a_middle_tier_is_still_judged() -> None:
    """With three tiers a step begins at the tier that answered, and may be deferred further up."""
    unsure = iter([-0.01, -1.0])

    def medium_reply(messages: Any) -> Any:
        answer = caller("medium", 0.0).reply(messages)
        medium.logprob = next(unsure, -1.0)
        return answer

    small, large = caller("small", -1.0), caller("large", -0.01)
    medium = FakeModel(medium_reply, name="medium")
    cascade = CascadeLLM([small, medium, large], Threshold(mean_logprob, -0.5, over="all"))
    agent = create_agent(cascade, [add], middleware=[CascadeMiddleware()])
    state = agent.invoke(ASK)
    assert (1, 2, 2) == (len(small.calls), len(medium.calls), len(large.calls))
    assert [["small", "medium"], ["medium", "large"], ["large"]] == [
        [attempt["name"] for attempt in record["attempts"]] for record in state["cascade_trail"]
    ]
    assert [True, True, False] == [record["escalated"] for record in state["cascade_trail"]]
