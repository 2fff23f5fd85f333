"""What LangChain asks about the model itself (T26, T30, T33, T35), pins, config, swaps."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import HumanMessage
from langchain_core.runnables import ConfigurableField
from pydantic import BaseModel
from typing_extensions import TypedDict

import cascadellm
import langchain_cascade
from cascadellm.answer import ToolCall
from cascadellm.events import Decided
from cascadellm.testing import EventRecorder, FakeModel
from langchain_cascade import (
    Always,
    CascadeLLM,
    ConfigurationError,
    LocalChatModel,
    Never,
    Policy,
    Price,
    Score,
    Threshold,
    Tier,
    Valid,
    mean_logprob,
)
from tests.langchain.lc_tools import CHOW, PATHS, cascade, fakes


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def _structured(messages: Any) -> Any:
    return ToolCall("Person", {"name": "Ada", "age": 36})


def test_t26_no_attribute_says_a_model_name():
    """Agents read model names to choose a strategy; the cascade has none."""
    llm = CascadeLLM([Tier(fakes()[0], name="gpt-4o"), fakes()[1]], CHOW)
    for name in ("model_name", "model", "model_id"):
        assert not hasattr(llm, name)


@pytest.mark.parametrize("able", [True, False])
def test_t26_an_agent_follows_the_cascades_profile(able):
    """`response_format=Schema` uses provider output iff every tier's profile allows it."""
    seen: list[Any] = []

    def reply(messages: Any) -> Any:
        return json.dumps({"name": "Ada", "age": 36}) if able else _structured(messages)

    class Keeping(FakeModel):
        def generate(self, messages: Any, **kwargs: Any) -> Any:
            seen.append(kwargs.get("tools"))
            return super().generate(messages, **kwargs)

    profile = {"structured_output": able, "tool_calling": True}
    small = LocalChatModel(Keeping(reply, name="gpt-4o"), profile=profile)
    large = LocalChatModel(fakes()[1], profile={**profile, "structured_output": True})
    agent = create_agent(CascadeLLM([small, large], Never()), response_format=Person)
    state = agent.invoke({"messages": [("user", "who?")]})
    assert Person(name="Ada", age=36) == state["structured_response"]
    assert (not able) == bool(seen[0])


@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
def test_an_agent_escalates_malformed_structured_output(strategy):
    """With either strategy a draft that breaks the schema is deferred and the agent succeeds."""
    tool = strategy is ToolStrategy
    bad = ToolCall("Person", {"name": "Ada"}) if tool else '{"name": "Ada"}'
    good = _structured(None) if tool else '{"name": "Ada", "age": 36}'
    small, large = FakeModel(bad, name="small"), FakeModel(good, name="large")
    agent = create_agent(CascadeLLM([small, large], Valid()), response_format=strategy(Person))
    state = agent.invoke({"messages": [("user", "who?")]})
    assert Person(name="Ada", age=36) == state["structured_response"]
    assert 1 == len(large.calls)


class PersonDict(TypedDict):
    """A person."""

    name: str
    age: int


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("escalates", [False, True])
def test_structured_output_works_on_accept_and_on_defer(escalates, path):
    """`with_structured_output` gives the parsed object, whichever tier answered."""
    if path == "astream_events":
        pytest.skip("events of a chain end with the parser's own output")
    small = FakeModel(ToolCall("Person", {"name": "Ada"}) if escalates else _structured)
    llm = CascadeLLM([small, FakeModel(_structured, name="large")], Valid())
    parsed = (
        llm.with_structured_output(Person).invoke("who?")
        if "stream" in path
        else PATHS[path](llm.with_structured_output(Person), "who?", {})
    )
    assert Person(name="Ada", age=36) == parsed


def test_structured_output_of_a_typed_dict_is_a_dict():
    """A TypedDict schema gives a dict."""
    reply = ToolCall("PersonDict", {"name": "Ada", "age": 36})
    llm = CascadeLLM([FakeModel(reply, name="small"), fakes()[1]], Valid())
    assert {"name": "Ada", "age": 36} == llm.with_structured_output(PersonDict).invoke("who?")


def test_structured_output_keeps_the_raw_message():
    """`include_raw=True` returns the cascade's message with its record."""
    llm = CascadeLLM([FakeModel(_structured, name="small"), fakes()[1]], Valid())
    result = llm.with_structured_output(Person, include_raw=True).invoke("who?")
    assert "small" == result["raw"].response_metadata["cascade"]["answered_by"]
    assert result["parsing_error"] is None


def test_t30_repr_is_short_and_holds_no_secret():
    """`repr` names tiers and policy, no key, no weights."""
    openai = pytest.importorskip("langchain_openai")
    tier = openai.ChatOpenAI(model="gpt-x", api_key="sk-planted-secret")
    llm = CascadeLLM([fakes()[0], tier], CHOW, api_key="sk-planted-secret")
    assert len(repr(llm)) < 200
    assert "planted" not in repr(llm) + repr(llm.bind_tools([Person]))
    assert not CascadeLLM.is_lc_serializable()


def test_t30_config_round_trip_is_equal():
    """`to_config` is JSON data, and `from_config` builds an equal cascade from it."""
    small, large = fakes()
    tiers = [Tier(small, name="a", price=Price(0.1, 0.2), timeout_s=3.0, retry=2), large]
    llm = CascadeLLM(tiers, Valid() | Threshold(mean_logprob, -math.inf), on_exhausted="best")
    config = json.loads(json.dumps(llm.to_config()))
    again = CascadeLLM.from_config(config, {"a": small, "large": large})
    assert llm._get_llm_string() == again._get_llm_string()
    assert llm.engine.tiers[0].price == again.engine.tiers[0].price
    assert llm.to_config() == CascadeLLM.from_config(config, [small, large]).to_config()
    with pytest.raises(ConfigurationError, match="the config names a tier 'a'"):
        CascadeLLM.from_config(config, {"large": large})
    with pytest.raises(ConfigurationError, match="has 2 tiers"):
        CascadeLLM.from_config(config, [large])
    with pytest.raises(ConfigurationError, match="unknown options in the config: colour"):
        CascadeLLM.from_config({**config, "colour": 1}, [small, large])


def test_t30_copies_and_pickles_answer():
    """A deep copy and a pickle of a cascade answer like the original."""
    llm = CascadeLLM([FakeListChatModel(responses=["a"]), FakeListChatModel(responses=["b"])], CHOW)
    assert (
        "b"
        == copy.deepcopy(llm).invoke("hi").text
        == pickle.loads(pickle.dumps(llm)).invoke("hi").text
    )


def test_t33_tokens_are_counted_without_a_download():
    """Token counting works with sockets blocked, by the last tier or approximately."""
    messages = [HumanMessage("one two three")]
    assert 0 < cascade().get_num_tokens_from_messages(messages)
    assert 0 < cascade().get_num_tokens("one two three")
    unknown = CascadeLLM([fakes()[0], FakeListChatModel(responses=["b"])], CHOW)
    assert 0 < unknown.get_num_tokens_from_messages(messages)
    assert len(b"one") == len(unknown.get_token_ids("one"))
    counting = FakeListChatModel(responses=["b"], custom_get_token_ids=lambda text: [1, 2, 3])
    assert 3 == CascadeLLM([fakes()[0], counting], CHOW).get_num_tokens("x")


def test_t35_standard_arguments_are_accepted_and_not_forwarded():
    """Standard init arguments are swallowed: temperature and max_tokens reach no tier."""
    small, large = fakes()
    llm = CascadeLLM(
        [small, large],
        CHOW,
        temperature=0.9,
        max_tokens=5,
        timeout=1.0,
        max_retries=2,
        api_key="sk-none",
        streaming=False,
        stop=["END"],
    )
    llm.invoke("hi")
    assert {"stop": ["END"]} == small.calls[0][1] == large.calls[0][1]


def test_unknown_options_are_refused():
    """A misspelled option raises at construction."""
    with pytest.raises(ValueError, match="polcy"):
        CascadeLLM([fakes()[0]], polcy=CHOW)
    with pytest.raises(ConfigurationError, match="2 tiers need a policy"):
        CascadeLLM(list(fakes()))
    with pytest.raises(ConfigurationError, match="on_exhausted must be one of"):
        CascadeLLM(list(fakes()), CHOW, on_exhausted="worst")


@pytest.mark.parametrize("path", ["invoke", "ainvoke", "stream", "astream"])
def test_a_pin_asks_that_tier_alone(path):
    """`model="<tier>"` asks one tier; an unknown name raises and lists the tiers."""
    small, large = fakes()
    llm = CascadeLLM([small, large], Always())
    message = PATHS[path](llm.bind(model="small"), "hi", {})
    assert "small" == message.response_metadata["cascade"]["answered_by"]
    assert not large.calls
    with pytest.raises(ValueError, match=r"'medium'.*tiers: 'small', 'large'"):
        PATHS[path](llm.bind(model="medium"), "hi", {})


@pytest.mark.parametrize("path", PATHS)
def test_a_call_may_begin_at_a_later_tier(path):
    """`cascade_from="<tier>"` leaves out the tiers before it; the policies go on deciding."""
    medium = FakeModel("medium says so", name="medium", logprob=-0.1)
    small, large = fakes()
    llm = CascadeLLM([small, medium, large], CHOW)
    for kwargs in ({}, {"tools": []}):
        message = PATHS[path](llm.bind(cascade_from="medium", **kwargs), "hi", {})
        record = message.response_metadata["cascade"]
        assert ("medium", 1, False) == (record["answered_by"], record["tier"], record["escalated"])
        assert "Threshold" == record["attempts"][0]["policy"]
    assert not small.calls
    assert all("cascade_from" not in arguments for _, arguments in medium.calls)
    with pytest.raises(ValueError, match=r"'huge'.*tiers: 'small', 'medium', 'large'"):
        PATHS[path](llm.bind(cascade_from="huge"), "hi", {})


def test_the_policy_is_configurable_at_call_time():
    """`configurable_fields(policy=...)` and `configurable_alternatives` swap the decision."""
    small, large = fakes()
    llm = CascadeLLM([small, large], CHOW)
    open_policy = llm.configurable_fields(policy=ConfigurableField(id="policy"))
    assert "large says so" == open_policy.invoke("hi").text
    never = {"configurable": {"policy": Never()}}
    assert "small says so" == open_policy.invoke("hi", never).text
    plain = {"configurable": {"policy": Threshold(mean_logprob, -9.0).to_config()}}
    assert "small says so" == open_policy.invoke("hi", plain).text
    choice = llm.configurable_alternatives(ConfigurableField(id="which"), cheap=CascadeLLM([small]))
    assert "small says so" == choice.invoke("hi", {"configurable": {"which": "cheap"}}).text


def test_a_changed_field_takes_effect():
    """Assigning another policy changes the next call."""
    llm = cascade()
    llm.policy = Never()
    assert "small says so" == llm.invoke("hi").text
    assert "large says so" == llm.model_copy(update={"policy": Always()}).invoke("hi").text
    assert "small says so" == llm.invoke("hi").text


def test_the_profile_is_what_every_tier_can_do():
    """Abilities are ANDed, limits are the least, unknown ones are left out."""
    able = {"tool_calling": True, "max_input_tokens": 100, "image_inputs": True}
    tiers = [
        FakeListChatModel(responses=["a"], profile=able),
        FakeListChatModel(responses=["b"], profile={**able, "max_input_tokens": 50}),
        LocalChatModel(FakeModel("c", name="c")),
    ]
    profile = CascadeLLM(tiers, CHOW).profile
    assert (True, 50, False) == tuple(
        profile[k] for k in ("tool_calling", "max_input_tokens", "image_inputs")
    )
    assert CascadeLLM([*tiers, FakeListChatModel(responses=["d"])], CHOW).profile is None


def test_handlers_are_told_the_engines_events():
    """Event handlers of the engine receive typed events on every path."""
    for path in ("invoke", "astream"):
        recorder = EventRecorder()
        PATHS[path](cascade(options={"handlers": [recorder]}), "hi", {})
        assert [True] == [event.decision.defer for event in recorder.of(Decided)]


def test_public_names_are_importable():
    """Every public name exists, and the engine's policies, scores and errors are among them."""
    for name in langchain_cascade.__all__:
        assert getattr(langchain_cascade, name) is not None
    for name in cascadellm.__all__:
        value = getattr(cascadellm, name)
        if isinstance(value, Score) or (
            isinstance(value, type) and issubclass(value, (Policy, Exception))
        ):
            assert name in langchain_cascade.__all__


def test_importing_loads_no_heavy_library():
    """`import langchain_cascade` loads no torch, transformers, numpy or llama_index."""
    code = (
        "import langchain_cascade, sys;"
        "print({'torch','transformers','numpy','llama_index','langchain'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "set()" == done.stdout.strip()


def test_a_fallback_around_a_cascade_keeps_both():
    """`with_fallbacks(...).bind_tools` binds the cascade and its fallback."""
    broken = CascadeLLM([FakeModel(TimeoutError("x"), name="small")])
    working = CascadeLLM([FakeModel(_structured, name="spare")])
    chain = broken.with_fallbacks([working]).bind_tools([Person])
    assert "Person" == chain.invoke("hi").tool_calls[0]["name"]
