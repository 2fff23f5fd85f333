"""What becomes of answers: feedback on calls, and shadow calls of accepted drafts.

Needs the standard library only, so that it can run beside the cascade.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from cascadellm.answer import Answer, Request
from cascadellm.calibration.calls import KeptCall, kept_call, run_id_of
from cascadellm.calibration.telling import (
    Feedback,
    adaptive_in,
    as_loss,
    check_comparable,
    differ,
    side_call,
    tell_monitor,
)
from cascadellm.cascade import Cascade, Outcome
from cascadellm.effects import Call, Emit, Left, Plan, Start
from cascadellm.errors import CalibrationError, ConfigurationError
from cascadellm.events import CascadeEvent, DriftDetected, ShadowAnswered
from cascadellm.resilience import ask
from cascadellm.scrub import error_text

__all__ = ["Feedback", "FeedbackLoop"]


class FeedbackLoop:
    """Hands what becomes of a cascade's answers to monitors and adaptive thresholds.

    Give it to a `CascadeLLM` as `feedback_loop=`. Every `AdaptiveThreshold` among the
    cascade's policies is told about the calls that it decided, without being listed here. A
    call is counted once, whether a shadow call or feedback comes first.

    Args:
        monitors: `DriftMonitor`s, other objects with `observe(accepted=, loss=)`, or functions
            of a `Feedback`.
        shadow_share: Share of the calls that are checked by a shadow call, in [0, 1]: where a
            draft was accepted, the last tier is asked too, after the answer was given. Of
            calls that were not accepted nothing needs to be asked.
        compare: (draft, last tier's answer) -> loss in [0, 1]; by default 1 where the
            normalised texts or the tool calls differ, as in a promise about `disagreement`.
        keep: Calls that are remembered for `feedback`; older ones are forgotten.
        max_pending: Shadow calls under way at once; while there are as many, no call is checked.
        seed: Seed of the choice of calls.

    Raises:
        ConfigurationError: A number is out of range, or shadow calls would measure another
            loss than a monitor's calibration promises.
    """

    def __init__(
        self,
        monitors: Sequence[Any] = (),
        *,
        shadow_share: float = 0.0,
        compare: Callable[[Answer, Answer], float] | None = None,
        keep: int = 10_000,
        max_pending: int = 8,
        seed: int = 0,
    ) -> None:
        if not 0 <= shadow_share <= 1:
            raise ConfigurationError(f"shadow_share must lie in [0, 1], got {shadow_share!r}")
        if keep < 1 or max_pending < 1:
            raise ConfigurationError("keep and max_pending must be at least 1")
        for monitor in monitors:
            if not hasattr(monitor, "observe") and not callable(monitor):
                raise ConfigurationError(
                    f"a monitor has observe(accepted=, loss=) or is a function, got {monitor!r}"
                )
        if shadow_share > 0 and compare is None:
            check_comparable(monitors)
        self.monitors = tuple(monitors)
        self.shadow_share = float(shadow_share)
        self.keep = keep
        self.max_pending = max_pending
        self.seed = seed
        self._compare = compare or differ
        self._calls: OrderedDict[str, KeptCall] = OrderedDict()
        self._pending: set[Any] = set()
        self._count = 0
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> FeedbackLoop:
        """Return itself: copies of a cascade share what is known about its calls."""
        return self

    @property
    def pending(self) -> int:
        """Shadow calls under way."""
        with self._lock:
            # a task that died with its loop is done too
            self._pending = {handle for handle in self._pending if not handle.done}
            return len(self._pending)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Ids of the remembered calls about which nothing is known yet, oldest first."""
        with self._lock:
            return tuple(key for key, call in self._calls.items() if not call.counted)

    def settle(self, timeout_s: float = 60.0) -> bool:
        """Wait until no shadow call is under way; return whether that came in time.

        Inside an event loop call it with `asyncio.to_thread`. Shadow calls of async calls end
        with their loop.
        """
        until = time.monotonic() + timeout_s
        while self.pending:
            if time.monotonic() >= until:
                return False
            time.sleep(0.005)
        return True

    def watched(
        self, cascade: Cascade, plan: Plan[Outcome], request: Request, run_id: str
    ) -> Plan[Outcome]:
        """Run a call's plan, remember the call, and start its shadow call where it is due."""
        outcome = yield from plan
        call = kept_call(outcome.trace, run_id)
        if call is None:
            return outcome
        self._steer(cascade, call)
        due = self._remember(call)
        # while there are too many nothing is counted, or calls that defer would dilute the rest
        if not due or self.pending >= self.max_pending:
            return outcome
        if not call.accepted:
            for event in self._tell(cascade, call, 0.0, None, "shadow") or ():
                yield Emit(event)
            return outcome
        shadow = self._shadow(cascade, call, request, outcome.answer)
        handle = yield Start(lambda _own: shadow)
        with self._lock:
            self._pending.add(handle)
        return outcome

    def feedback(
        self,
        cascade: Cascade,
        run: Any,
        *,
        correct: float,
        reference_correct: float | None = None,
    ) -> tuple[bool, list[CascadeEvent]]:
        """Take what was found out about an answer; adapters call it as `llm.feedback`.

        Args:
            cascade: The cascade that answered.
            run: Id of the call, or its record, message or response.
            correct: Whether the answer was right, or its quality in [0, 1].
            reference_correct: Whether the last tier would be right, where that is known.

        Returns:
            Whether the call was counted (a call counts once), and what handlers should be told.

        Raises:
            CalibrationError: The call is not known, or a number is out of range.
        """
        for value in (correct, reference_correct):
            if value is not None and not 0 <= value <= 1:
                raise CalibrationError(f"correct must lie in [0, 1], got {value!r}")
        call = self._known(run)
        # unknown, the last tier is taken to be right, which can only overstate the loss
        reference = 1.0 if reference_correct is None else float(reference_correct)
        loss = max(0.0, reference - float(correct)) if call.accepted else 0.0
        events = self._tell(cascade, call, loss, float(correct), "feedback")
        return events is not None, events or []

    def _known(self, run: Any) -> KeptCall:
        key, record = run_id_of(run)
        with self._lock:
            if key is not None and key in self._calls:
                return self._calls[key]
            count = len(self._calls)
        call = None if record is None else kept_call(record, key)
        if call is None:
            raise CalibrationError(
                f"no call {key or run!r} is known: the latest {self.keep} answered calls are "
                f"kept, {count} now; pass the record of the call itself"
            )
        self._keep(call)
        return call

    def _keep(self, call: KeptCall) -> None:
        if call.run_id is None:
            return
        with self._lock:
            self._calls[call.run_id] = call
            while len(self._calls) > self.keep:
                self._calls.popitem(last=False)

    def _remember(self, call: KeptCall) -> bool:
        """Keep a call; return whether it is one of those that are checked."""
        self._keep(call)
        with self._lock:
            self._count += 1
            key = f"{self.seed}|{self._count}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.shadow_share * 2**64

    def _steer(self, cascade: Cascade, call: KeptCall) -> None:
        for policy, accepted in adaptive_in(cascade, call):
            if policy.follow == "deferral":
                policy.observe_deferral(deferred=not accepted)

    def _tell(
        self, cascade: Cascade, call: KeptCall, loss: float, correct: float | None, source: str
    ) -> list[CascadeEvent] | None:
        """Tell everybody; None when the call was counted already."""
        with self._lock:
            if call.counted:
                return None
            call.counted = True
        told = Feedback(
            call.run_id or "", call.accepted, loss, call.score, call.threshold, correct, source
        )
        events: list[CascadeEvent] = []
        for monitor in self.monitors:
            found = tell_monitor(monitor, told)
            if isinstance(found, DriftDetected):
                events.append(found)
        for policy, accepted in adaptive_in(cascade, call):
            if policy.follow == "loss" and not any(policy is one for one in self.monitors):
                policy.observe(loss=loss, accepted=accepted)
        return events

    def _shadow(
        self, cascade: Cascade, call: KeptCall, request: Request, draft: Answer
    ) -> Plan[None]:
        """Ask the last tier what it would have said; runs beside everything else."""
        index, tier = len(cascade.tiers) - 1, cascade.tiers[-1]
        begun = time.perf_counter()
        answer, loss, error = None, None, None
        try:
            answer = yield from ask(Call(index, tier, request, purpose="shadow"), live=False)
            loss = as_loss(self._compare(draft, answer))
        except Left:
            # its loop ended first; what the call cost is not known then
            error = "cancelled"
        except Exception as raised:
            # a call or a comparison that fails says nothing about the draft
            error = error_text(raised, 300)
        bill = side_call(tier, answer, error, time.perf_counter() - begun)
        text = None if answer is None else answer.text
        yield Emit(ShadowAnswered(call.run_id or "", index, tier.label, text, loss, bill))
        if loss is not None:
            for event in self._tell(cascade, call, loss, None, "shadow") or ():
                yield Emit(event)
