"""Policies that need no answer to decide."""

from __future__ import annotations

from dataclasses import dataclass

from cascadellm.answer import Decision
from cascadellm.policies.base import Moment, Policy

__all__ = ["Always", "Never"]


@dataclass(frozen=True, slots=True)
class Always(Policy):
    """Always defers: the tier is asked and the next one answers."""

    def after(self, moment: Moment) -> Decision:
        return Decision(True, "Always", code="always", reason="this boundary always defers")


@dataclass(frozen=True, slots=True)
class Never(Policy):
    """Never defers: the tier's answer stands unless the tier fails."""

    def after(self, moment: Moment) -> Decision:
        return Decision(False, "Never", code="never", reason="this boundary never defers")
