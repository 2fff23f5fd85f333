"""Settings: every value is checked where it is made, and one call can change them."""

from __future__ import annotations

import math

import pytest

from cascadellm.errors import ConfigurationError
from cascadellm.local import Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("top_k", 2.5),
        ("repetition_penalty", 0),
        ("max_new_tokens", 0),
        ("max_new_tokens", True),
        ("top_logprobs", -1),
        ("top_logprobs", None),
        ("seed", "abc"),
        ("seed", 2**63),
        ("stop", 3),
        ("stop", [""]),
        ("stop", [1]),
    ],
)
def test_settings_refuse_a_value_out_of_range(name: str, value: object) -> None:
    """A value out of range is named together with what was expected."""
    expected = "stop" if name == "stop" else f"{name} must be"
    with pytest.raises(ConfigurationError, match=expected):
        Settings(**{name: value})  # type: ignore[arg-type]


def test_override_changes_only_what_is_given() -> None:
    """An override keeps what it does not name; None keeps a value too."""
    base = Settings(temperature=0.5, seed=3)
    changed = base.override(seed=4, temperature=None)
    assert Settings(temperature=0.5, seed=4) == changed
    assert base is base.override()


def test_override_refuses_an_unknown_name_and_lists_the_known() -> None:
    """A misspelt argument is an error that names those that exist."""
    with pytest.raises(ConfigurationError, match=r"unknown argument 'max_tokens'.*max_new_tokens"):
        Settings().override(max_tokens=3)


def test_one_stop_string_and_many_mean_the_same_form() -> None:
    """A single stop string is a tuple of one; None is none."""
    assert ("a",) == Settings(stop="a").stop  # type: ignore[arg-type]
    assert ("a", "b") == Settings(stop=["a", "b"]).stop  # type: ignore[arg-type]
    assert () == Settings(stop=None).stop  # type: ignore[arg-type]


def test_zero_temperature_is_greedy() -> None:
    """Greedy is temperature 0 and nothing else."""
    assert Settings().greedy
    assert not Settings(temperature=0.01).greedy
