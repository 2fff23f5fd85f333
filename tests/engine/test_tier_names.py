"""Tiers: names, prices, settings."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cascadellm import ConfigurationError, Price, Tier, Usage
from cascadellm.testing import FakeModel
from cascadellm.tier import named


class Wrapped:
    """A model behind a binding, as frameworks wrap them."""

    def __init__(self, bound: Any) -> None:
        self.bound = bound


class Nameless:
    """A model without any name."""


class ByModel:
    """A model that calls its name `model`."""

    model = "org/By-Model"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("hf:Qwen/Qwen3-0.6B", "Qwen3-0.6B"),
        ("openai:gpt-5", "gpt-5"),
        ("/models/tiny/", "tiny"),
        ("C:\\models\\tiny", "tiny"),
        (FakeModel(name="org/fake-1"), "fake-1"),
        (Wrapped(Wrapped(FakeModel(name="inner"))), "inner"),
        (ByModel(), "By-Model"),
        (Nameless(), "Nameless"),
        (Wrapped(Nameless()), "Wrapped"),
    ],
)
def test_name_when_it_is_derived(model: Any, name: str) -> None:
    """A name not given is the last path part or model name, else the class name."""
    assert name == Tier(model).label


def test_names_when_derived_ones_are_equal() -> None:
    """Equal derived names get -2, -3, also around an explicit one."""
    tiers = [Tier("a/x"), Tier("b/x"), Tier("c/x"), Tier("d/y", name="x-2")]

    assert ["x", "x-3", "x-4", "x-2"] == [tier.label for tier in named(tiers)]


def test_names_when_explicit_ones_are_equal() -> None:
    """Equal explicit names raise."""
    with pytest.raises(ConfigurationError, match="'x' 2 times"):
        named([Tier("a", name="x"), Tier("b", name="x")])


def test_named_when_settings_are_kept() -> None:
    """Naming a tier keeps every other setting."""
    price = Price(1, 2)
    (tier,) = named([Tier("m", price=price, retry=3, timeout_s=4, kwargs={"a": 1})])

    assert (price, 3, 4, {"a": 1}) == (tier.price, tier.retry, tier.timeout_s, dict(tier.kwargs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "non-empty string"),
        ({"name": "  "}, "non-empty string"),
        ({"name": 3}, "non-empty string"),
        ({"price": 0.5}, "price must be a Price"),
        ({"timeout_s": 0}, "positive number of seconds"),
        ({"timeout_s": -1}, "positive number of seconds"),
        ({"timeout_s": math.inf}, "positive number of seconds"),
    ],
)
def test_tier_when_an_option_is_wrong(options: dict[str, Any], message: str) -> None:
    """Wrong settings are found at construction."""
    with pytest.raises(ConfigurationError, match=message):
        Tier("m", **options)


def test_tier_when_the_model_is_none() -> None:
    """A missing model is refused."""
    with pytest.raises(ConfigurationError, match="got None"):
        Tier(None)


def test_tier_when_call_arguments_are_changed_later() -> None:
    """A tier keeps a copy of its call arguments."""
    given = {"a": 1}
    tier = Tier("m", kwargs=given)
    given["a"] = 2

    assert {"a": 1} == dict(tier.kwargs)


@pytest.mark.parametrize("field", ["input", "output", "per_second"])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "1"])
def test_price_when_it_is_no_price(field: str, value: Any) -> None:
    """Negative, infinite and non-numeric prices are refused, with the field's name."""
    with pytest.raises(ConfigurationError, match=rf"Price\.{field}"):
        Price(**{field: value})


@pytest.mark.parametrize(
    ("price", "usage", "expected"),
    [
        (Price(1, 10), Usage(1_000_000, 100_000), 2.0),
        (Price(1, 10, per_second=0.5), Usage(0, 0), 1.0),
        (Price(per_second=0.5), None, 1.0),
        (Price(), None, 0.0),
        (Price(1, 0), None, None),
        (Price(0, 1), None, None),
    ],
)
def test_price_when_a_call_took_two_seconds(
    price: Price, usage: Usage | None, expected: float | None
) -> None:
    """Tokens are priced per million, time per second; unknown tokens give no cost."""
    found = price.cost(usage, 2.0)

    assert expected == (None if found is None else pytest.approx(found))


def test_tier_when_it_has_no_price() -> None:
    """A tier without a price has no cost, never zero."""
    assert None is Tier("m").cost(Usage(1, 1), 1.0)
    assert 2 == Usage(1, 1).total_tokens
