"""Asking a tier while the next one already runs, or is about to; see the policy `Hedge`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cascadellm.answer import Answer, Decision
from cascadellm.effects import Call, Handle, Plan, Shown, Start, Verdict, Wait, Watch
from cascadellm.ledger import Ledger, Unit
from cascadellm.policies.base import Hedging
from cascadellm.resilience import ask
from cascadellm.watching import cut_short

__all__ = ["Ahead", "Said"]


@dataclass(frozen=True, slots=True)
class Said:
    """What one visit of a tier gave.

    Attributes:
        answer: Its answer.
        shown: Whether the answer was shown while it grew.
        decision: A decision that stands before the policy is asked, or None.
        latency_s: Time of the call where it ran beside another one, else None.
    """

    answer: Answer
    shown: bool = False
    decision: Decision | None = None
    latency_s: float | None = None


class Ahead:
    """The next tier's call that runs beside the current tier's; at most one per call."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.unit: Unit | None = None
        self._handle: Handle | None = None

    def ask(self, call: Call, unit: Unit, *, live: bool) -> Plan[Said]:
        """Ask a tier, or collect the answer of its call that runs already."""
        if self._handle is None or self.unit is None or self.unit.index != unit.index:
            answer = yield from ask(call, live=live, deadline=self._ledger)
            if isinstance(answer, Shown):
                return Said(answer.answer, shown=True)
            return Said(answer, shown=live and call.watch is None)
        handle, self._handle, self.unit = self._handle, None, None
        handle.hurry()
        try:
            yield Wait((handle,))
            return Said(handle.result(), latency_s=handle.seconds)
        finally:
            handle.cancel()

    def race(
        self, call: Call, following: Call, unit: Unit, hedging: Hedging, policy: str
    ) -> Plan[Said]:
        """Ask a tier and, after a while, the next one; the next one's answer ends the wait."""
        self.unit = unit
        ahead = self._handle = yield Start(
            lambda own: ask(_tied(following, own), live=False, deadline=self._ledger),
            hedging.after_s,
        )
        watch = _hurrying(call.watch, hedging, ahead)
        draft: Handle = yield Start(
            lambda own: ask(
                _tied(replace(call, watch=watch), own), live=False, deadline=self._ledger
            )
        )
        try:
            first = yield Wait((draft, ahead))
            if first is ahead and not _failed(ahead):
                reason = "the next tier answered while this one was still writing"
                lost = Decision(True, policy, code="hedge", reason=reason)
                partial = cut_short(draft.partial)
                return Said(partial, decision=lost, latency_s=draft.seconds)
            if first is ahead:
                yield Wait((draft,))
            said = draft.result()
            if hedging.wanted(said):
                ahead.hurry()
            return Said(said, latency_s=draft.seconds)
        finally:
            draft.cancel()

    def call_off(self) -> None:
        """Cancel the call that nobody needs, and charge what is known of it."""
        handle, unit = self._handle, self.unit
        self._handle = self.unit = None
        if handle is None or unit is None:
            return
        handle.cancel()
        if not handle.started:
            return
        said: Answer | BaseException = cut_short(handle.partial)
        if handle.done:
            try:
                said = handle.result()
            except Exception as error:
                said = error
        self._ledger.side(unit.tier, "hedge", said, handle.seconds)

    def close(self) -> None:
        """Cancel without a record: the caller is gone."""
        if self._handle is not None:
            self._handle.cancel()


def _failed(handle: Handle) -> bool:
    try:
        handle.result()
    except Exception:
        return True
    return False


def _tied(call: Call, handle: Handle) -> Call:
    """Let the call's stream be heard of, and stop when its handle is cancelled."""
    inner = call.watch
    asked = inner is not None

    def watch(answer: Answer) -> Verdict:
        nonlocal asked
        handle.partial = answer
        if handle.cancelled:
            return "stop"
        if not asked or inner is None:
            return "go_on"
        verdict = inner(answer)
        # nothing can be shown while it is open which tier answers
        asked = verdict == "go_on"
        return "stop" if verdict == "stop" else "go_on"

    # it runs beside another attempt, whose first token is not its own
    return replace(call, watch=watch, began=None)


def _hurrying(inner: Watch | None, hedging: Hedging, ahead: Handle) -> Watch | None:
    if hedging.score is None:
        return inner

    def watch(answer: Answer) -> Verdict:
        if not ahead.started and hedging.wanted(answer):
            ahead.hurry()
        return inner(answer) if inner is not None else "go_on"

    return watch
