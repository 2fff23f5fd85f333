"""Risk by action: calls of tools that change something need more than the small tier's word."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from cascadellm.answer import Answer, Decision, ToolCall
from cascadellm.effects import Call, Plan
from cascadellm.errors import ConfigurationError
from cascadellm.policies.asking import as_tier, not_asked
from cascadellm.policies.base import Moment, Policy
from cascadellm.tier import Tier

__all__ = ["ToolRisk"]


@dataclass(frozen=True, slots=True)
class ToolRisk(Policy):
    """Defers a draft that calls a consequential tool, or asks a second tier to agree to it.

    A draft that calls none of the tools is accepted; join it with the policy that decides about
    those: `ToolRisk(("pay", "delete_*")) | Threshold(mean_logprob, -0.35)`.

    Args:
        tools: Names of the tools that write, delete or pay; `*` stands for any letters.
        unless: `never`: the larger tier must speak; `agreed`: unless a second tier, asked the
            same, makes the same calls with the same arguments. When it does not, the larger
            tier speaks.
        second: The second tier; None = the next one, which is then asked again after a
            disagreement.

    Raises:
        ConfigurationError: No tool is named, or a choice is unknown.
    """

    tools: tuple[str, ...]
    unless: Literal["never", "agreed"] = field(default="never", kw_only=True)
    second: Any = field(default=None, kw_only=True, hash=False)

    def __post_init__(self) -> None:
        if isinstance(self.tools, str) or not self.tools:
            raise ConfigurationError(
                f"ToolRisk(tools) expects a list of tool names, got {self.tools!r}"
            )
        object.__setattr__(self, "tools", tuple(self.tools))
        if not all(isinstance(name, str) and name for name in self.tools):
            raise ConfigurationError(f"ToolRisk(tools) expects names, got {self.tools!r}")
        if self.unless not in ("never", "agreed"):
            raise ConfigurationError(f"unless must be 'never' or 'agreed', got {self.unless!r}")
        if self.second is not None:
            if self.unless != "agreed":
                raise ConfigurationError("ToolRisk needs unless='agreed' together with second=")
            object.__setattr__(self, "second", as_tier(self.second))

    def after(self, moment: Moment) -> Decision | Plan[Decision]:
        risky = sorted({call.name for call in moment.draft.tool_calls if self.concerns(call)})
        if not risky:
            reason = "it calls no consequential tool"
            return Decision(False, self.name, code="no_risk", reason=reason)
        second = self._second(moment)
        if self.unless == "never" or second is None:
            reason = f"it calls {', '.join(risky)}, which is consequential"
            return Decision(True, self.name, code="tool_risk", reason=reason)
        return self._agreed(moment, second, risky)

    def concerns(self, call: ToolCall) -> bool:
        """Return whether a call is of a consequential tool."""
        return any(fnmatchcase(call.name, name) for name in self.tools)

    def _second(self, moment: Moment) -> Tier | None:
        if self.second is not None:
            return self.second  # type: ignore[no-any-return]
        following = moment.tier + 1
        return moment.tiers[following] if following < len(moment.tiers) else None

    def _agreed(self, moment: Moment, second: Tier, risky: list[str]) -> Plan[Decision]:
        what = ", ".join(risky)
        try:
            other: Answer = yield Call(-1, second, moment.request, purpose="tool_agreement")
        except Exception as error:
            return not_asked(self.name, moment, error, "agreement on tools")
        if _calls(moment.draft) == _calls(other):
            reason = f"{second.label!r} makes the same call of {what}"
            return Decision(False, self.name, code="tool_agreed", reason=reason)
        reason = f"{second.label!r} does not make the same call of {what}"
        return Decision(True, self.name, code="tool_disagreed", reason=reason)


def _calls(answer: Answer) -> Counter[str]:
    """Return the calls of an answer, whatever their order; identifiers do not count."""
    made = [
        [call.name, call.raw if call.arguments is None else dict(call.arguments)]
        for call in answer.tool_calls
    ]
    return Counter(json.dumps(call, sort_keys=True, default=str) for call in made)
