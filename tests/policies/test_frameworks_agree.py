"""What policies read is the same in both frameworks: text, windows, tool support, spending."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from llama_index.core.base.llms.types import LLMMetadata
from llama_index.core.llms import ChatMessage, MockLLM

import langchain_cascade
import llamaindex_cascade
from cascadellm import (
    Agreement,
    Always,
    Answer,
    Budget,
    ContextFits,
    Judge,
    NeedsTools,
    Never,
    Policy,
    Request,
    Tier,
    Usage,
)
from cascadellm.policies import Moment
from cascadellm.policies import budget as budget_module
from cascadellm.testing import FakeModel
from tests.engine.running import MODES
from tests.policies.both_frameworks import FRAMEWORKS, record_of
from tests.policies.every_policy import PAID, TOOL

frameworks = pytest.mark.parametrize("framework", FRAMEWORKS)


@pytest.mark.parametrize("turns", [1, 2, 4])
def test_text_when_a_conversation_is_read(turns: int) -> None:
    """Routers, judges and gates read one text, whichever framework asks."""
    read: list[str] = []

    class Reads(Policy):
        def before(self, moment: Moment) -> Any:
            read.append(moment.request.text)

    roles = (("system", SystemMessage), ("user", HumanMessage), ("assistant", AIMessage),
             ("user", HumanMessage))  # fmt: skip
    said = [(role, kind, f"turn {i}") for i, (role, kind) in enumerate(roles)][-turns:]
    tiers = [FakeModel("ok", name="small"), FakeModel("ok", name="large")]
    langchain_cascade.CascadeLLM(tiers=tiers, policy=Reads()).invoke(
        [kind(text) for _, kind, text in said]
    )
    llamaindex_cascade.CascadeLLM(tiers=tiers, policy=Reads()).chat(
        [ChatMessage(role=role, content=text) for role, _, text in said]
    )

    assert read[0] == read[1]
    assert ("turn 3" if turns == 1 else "user: turn 3") in read[0]


class Sized(GenericFakeChatModel):
    """A LangChain model with a profile."""


def langchain_model(window: int, tools: bool) -> Sized:
    """Return a model that says of itself, in its profile, what it can."""
    profile: Any = {"max_input_tokens": window, "tool_calling": tools}
    return Sized(messages=iter([AIMessage("ok")] * 9), profile=profile)


class Stated(MockLLM):
    """A LlamaIndex model with metadata."""

    window: int = 100
    able: bool = False

    @property
    def metadata(self) -> LLMMetadata:
        """What it says of itself."""
        return LLMMetadata(context_window=self.window, is_function_calling_model=self.able)


def stated(framework: str, window: int, tools: bool) -> Any:
    """Return a model of a framework."""
    if framework == "langchain":
        return langchain_model(window, tools)
    made = Stated(max_tokens=3)
    made.window, made.able = window, tools
    return made


@pytest.mark.parametrize("mode", MODES)
@frameworks
def test_window_when_models_state_it(framework: str, mode: str) -> None:
    """`ContextFits` reads a LangChain profile and LlamaIndex metadata."""
    tiers = [
        Tier(stated(framework, 600, True), name="t0"),
        Tier(stated(framework, 700, True), name="t1"),
        Tier(stated(framework, 9000, True), name="t2"),
    ]
    policy = [ContextFits(512) | Never(), ContextFits(512) | Never()]
    short = record_of(framework, mode, tiers, policy, "hi")
    long = record_of(framework, mode, tiers, policy, "word " * 200)

    assert ("t0", "t2") == (short["answered_by"], long["answered_by"])
    assert ["context_window", "context_window"] == [a["code"] for a in long["attempts"][:-1]]


@frameworks
@pytest.mark.parametrize(("able", "skipped"), [(True, False), (False, True)])
def test_tools_when_models_state_them(framework: str, able: bool, skipped: bool) -> None:
    """`NeedsTools` reads a LangChain profile and LlamaIndex metadata."""
    tiers = tuple(Tier(stated(framework, 9000, a), name=str(i)) for i, a in enumerate((able, True)))
    moment = Moment(Request("q", "q", tools=(TOOL,)), 0, "0", tiers)
    decision: Any = NeedsTools().before(moment)

    assert skipped == (decision is not None)
    assert not skipped or 1 == decision.goto


def test_window_when_a_langchain_model_is_wrapped() -> None:
    """A bound model, or one with fallbacks, states what the model inside it states."""
    model = langchain_model(600, False)
    request = Request("q", "word " * 2000, tools=(TOOL,), input_tokens=400)
    for wrapped in (model.bind(stop=["x"]), model.with_fallbacks([model]), model.with_retry()):
        moment = Moment(request, 0, "t", (Tier(wrapped, name="t"), Tier(model, name="u")))
        assert NeedsTools().before(moment) is not None
        plan: Any = ContextFits(512).before(moment)
        assert 912 == next(plan).function()[0] + 512
        with pytest.raises(StopIteration) as stopped:
            plan.send((400, ""))
        assert "context_window" == stopped.value.value.code


def priced(said: str, name: str, tokens: int = 500_000) -> Tier:
    """Return a fake whose call takes so many tokens in and out, at a dollar a million."""
    usage = Usage(tokens, tokens)
    return Tier(FakeModel(Answer(said, usage=usage, finish_reason="stop"), name=name), price=PAID)


SPENT = {
    "judge": lambda: Judge(priced("Score: 1", "judge")),
    "agreement": lambda: Agreement([priced("no", "a", 250_000), priced("no", "b", 250_000)]),
}
LIMITS = {"usd": 1.9, "tokens": 1_900_000}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("framework", ["engine", *FRAMEWORKS])
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("asks", SPENT)
def test_budget_when_a_judge_was_asked(asks: str, limit: str, framework: str, mode: str) -> None:
    """What judges and voters of the same decision took counts towards the budget."""
    tiers = [priced("x", "small"), priced("y", "large")]
    # one dollar for the draft and one for the calls: together they break the limit
    for most, answered_by in ((LIMITS[limit], "small"), (LIMITS[limit] * 2, "large")):
        policy = SPENT[asks]() & Budget(**{limit: most})  # type: ignore[arg-type]
        found = record_of(framework, mode, tiers, policy)
        assert answered_by == found["answered_by"]


def test_budget_when_judges_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check has power: a budget that reads what stood before the judge is noticed."""
    over = budget_module.Budget._over

    def stale(self: Budget, moment: Moment, *, following: bool) -> str | None:
        from dataclasses import replace

        return over(self, replace(moment, meter=None), following=following)

    monkeypatch.setattr(budget_module.Budget, "_over", stale)
    with pytest.raises(AssertionError):
        test_budget_when_a_judge_was_asked("judge", "usd", "engine", "invoke")


def test_budget_when_a_later_tier_is_decided() -> None:
    """What an earlier boundary's judge took counts at every later one."""
    tiers = [priced("x", "t0"), priced("y", "t1"), priced("z", "t2")]
    policy = [Judge(priced("Score: 1", "judge")), Budget(usd=2.9) & Always()]

    assert "t1" == record_of("engine", "invoke", tiers, policy)["answered_by"]
