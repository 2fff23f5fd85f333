"""The how-to for policies of your own: short as it says, and at work in both frameworks."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from cascadellm import Tier
from cascadellm.testing import FakeModel
from tests.engine.running import MODES
from tests.policies.both_frameworks import FRAMEWORKS, record_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "policies.md"
MOMENTS = ("Before a tier is asked", "While it writes", "After it has answered")
LONGEST = 10


def section(title: str) -> str:
    """Return the code of a section of the page."""
    text = PAGE.read_text("utf-8").split(f"### {title}\n")[1].split("\n##")[0]
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S))


def imports() -> str:
    """Return the imports that the sections share."""
    text = PAGE.read_text("utf-8").split("## Write your own policy")[1]
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)[0]


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """What the page defines."""
    space: dict[str, Any] = {"__name__": "own_policies"}
    # dataclasses look their module up
    import sys
    import types

    module = types.ModuleType("own_policies")
    sys.modules["own_policies"] = module
    for code in (imports(), *map(section, MOMENTS)):
        exec(compile(code, str(PAGE), "exec", dont_inherit=True), space)
    return space


@pytest.mark.parametrize("moment", MOMENTS)
def test_length_when_a_policy_is_written(moment: str) -> None:
    """Each policy of the how-to takes at most ten lines."""
    made = [
        node
        for node in ast.parse(section(moment)).body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
    ]
    assert made
    for node in made:
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        lines = section(moment).splitlines()[first - 1 : node.end_lineno]
        assert len([line for line in lines if line.strip()]) <= LONGEST


CASES = {
    "LongQuestion": ("skip", "LongQuestion"),
    "NoRambling": ("stopped", "NoRambling"),
    "no_number": ("escalate", "no_number"),
    "Polite": ("escalate", "Polite"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("framework", ["engine", *FRAMEWORKS])
@pytest.mark.parametrize("name", CASES)
def test_decision_when_an_own_policy_runs(
    name: str, framework: str, mode: str, written: dict[str, Any]
) -> None:
    """Policies of all three moments work in both frameworks, sync, async and streamed."""
    judge = Tier(FakeModel("No.", name="judge"), name="judge")
    made = {
        "LongQuestion": lambda: written["LongQuestion"](3),
        "NoRambling": lambda: written["NoRambling"](20),
        "no_number": lambda: written["no_number"],
        "Polite": lambda: written["Polite"](judge),
    }
    tiers = [FakeModel("word " * 50, name="small"), FakeModel("42", name="large")]
    found = record_of(framework, mode, tiers, made[name]())
    first = found["attempts"][0]

    assert ("large", *CASES[name]) == (found["answered_by"], first["action"], first["policy"])
    assert [call["name"] for call in first["calls"]] == (["judge"] if name == "Polite" else [])
