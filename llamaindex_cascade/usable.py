"""An answer that the caller's own parser cannot read is deferred, whatever the policy."""

from __future__ import annotations

from dataclasses import dataclass

from cascadellm import Cascade
from cascadellm.answer import Decision
from cascadellm.policies.base import Moment, Policy

__all__ = ["ReactParsable", "Usable", "with_parser"]


@dataclass(frozen=True, slots=True)
class Usable(Policy):
    """Defers when the request's parser raises on the answer's text."""

    def after(self, moment: Moment) -> Decision:
        """Try the parser."""
        parser = moment.request.parser
        return _tried(self.name, parser, moment.draft.text)


def _tried(name: str, parser: object, text: str) -> Decision:
    try:
        if callable(parser):
            parser(text)
    except Exception as error:
        # the caller's parser raises what it likes; any of it makes the answer useless
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        return Decision(True, name, code="invalid", reason=f"the parser rejects it: {first}")
    return Decision(False, name, code="valid", reason="the parser reads it")


@dataclass(frozen=True, slots=True)
class ReactParsable(Policy):
    """Defers when a ReAct agent could not read the answer.

    `ReActAgent` parses outside the LLM and, when that fails, asks the same model again.
    """

    def after(self, moment: Moment) -> Decision:
        """Try the agent's parser."""
        from llama_index.core.agent.react.output_parser import ReActOutputParser

        return _tried(self.name, ReActOutputParser().parse, moment.draft.text)


def with_parser(cascade: Cascade) -> Cascade:
    """Return a cascade whose answer-level boundaries also defer what the parser rejects."""
    return cascade.with_policy(
        [one if one.level == "token" else Usable() | one for one in cascade.policies]
    )
