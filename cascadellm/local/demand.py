"""What a framework's tool options and schemas ask of a local model; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Demand", "visible_tools"]


def visible_tools(tools: Sequence[Any], choice: Any) -> list[Any]:
    """Return the tools that a `tool_choice` leaves: the named one, none, or all."""
    if choice == "none":
        return []
    named = [tool for tool in tools if _name(tool) == _chosen(choice)]
    return named or list(tools)


def _name(tool: Any) -> Any:
    return tool.get("function", tool).get("name") if isinstance(tool, Mapping) else None


def _chosen(choice: Any) -> Any:
    if isinstance(choice, Mapping):
        return (choice.get("function") or choice).get("name")
    return choice or ""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a call asks of a model's answer.

    Attributes:
        schema: JSON schema that the text must fit, or None.
        tools: The visible tools.
        choice: The framework's `tool_choice`.
        required: Whether the answer must call a tool.
        parallel: Whether it may hold several calls.
        strict: True demands that everything fits, False leaves it free, None constrains where
            that is possible.
        constrain: Overrides what `strict` says about grammars that cannot be made.
    """

    schema: Mapping[str, Any] | None = None
    tools: Sequence[Any] = ()
    choice: Any = None
    required: bool = False
    parallel: bool = True
    strict: bool | None = None
    constrain: str | None = None

    def settings(self, model: Any) -> dict[str, Any]:
        """Return the constraining settings of the model's call; none for models without them."""
        # other local models may not know what a constraint is
        if self.strict is False or not callable(getattr(model, "settings", None)):
            return {}
        found: dict[str, Any] = {}
        if self.schema is not None:
            found["response_schema"] = self.schema
        if self.tools:
            found["constrain_tools"] = self._calls()
        if found:
            found["constrain"] = self.constrain or ("must" if self.strict else "may")
        return found

    def _calls(self) -> bool | str:
        forced = any(_name(tool) == _chosen(self.choice) for tool in self.tools)
        if forced:
            return "one"
        if not self.required:
            return True
        return "required" if self.parallel else "one"
