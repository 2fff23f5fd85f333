"""Watch whether a promise still holds, with a test that may be read at any time.

The monitor needs the standard library only, so that it can run beside the cascade.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cascadellm.calibration.result import Calibration
from cascadellm.errors import CalibrationError
from cascadellm.events import DriftDetected

__all__ = ["DriftDetected", "DriftMonitor"]

_SCHEMA = "cascadellm.drift_monitor/1"
_BETS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)
_WINDOW = 500
_MOST = 1e300


class DriftMonitor:
    """Tests "the risk is at most `target_risk`" on a trickle of checked answers.

    Capital is bet on the promise being broken; while it holds, the capital exceeds
    `1 / false_alarm` at any time at all with probability at most `false_alarm`. To notice a
    late break, the wealth is an average over bets that start at different times.

    Which calls are checked must not depend on how they went: take user feedback as it comes
    only if it is representative, or send the calls that `selects` picks to the last tier too.

    Args:
        target_risk: The promise, or the `Calibration` that makes it.
        false_alarm: Probability of ever raising an alarm while the promise holds.
        shadow_share: Share of the calls that `selects` picks, in [0, 1].
        on_drift: Told once, when the alarm is raised.
        seed: Seed of the choice.

    Attributes:
        loss: What the promise is about.
        calibrated: Whether a `Calibration` makes the promise.

    Raises:
        CalibrationError: A number is out of range, or the promise is about another risk.

    Source: arXiv 2010.09686 (betting), Ville's inequality; arXiv 2203.03532 (start times).
    """

    def __init__(
        self,
        target_risk: float | Calibration,
        *,
        false_alarm: float = 0.05,
        shadow_share: float = 0.05,
        on_drift: Callable[[DriftDetected], None] | None = None,
        seed: int = 0,
    ) -> None:
        self.loss = "one_sided"
        self.calibrated = isinstance(target_risk, Calibration)
        if isinstance(target_risk, Calibration):
            self.loss = target_risk.loss
            target_risk = target_risk.target_risk
        if self.loss not in ("one_sided", "disagreement", "selective"):
            raise CalibrationError(
                f"a monitor watches one_sided, disagreement or selective, got {self.loss!r}"
            )
        for name, value in (("target_risk", target_risk), ("false_alarm", false_alarm)):
            if not 0 < value < 1:
                raise CalibrationError(f"{name} must lie strictly between 0 and 1, got {value!r}")
        if not 0 <= shadow_share <= 1:
            raise CalibrationError(f"shadow_share must lie in [0, 1], got {shadow_share!r}")
        self.target_risk = float(target_risk)
        self.false_alarm = float(false_alarm)
        self.shadow_share = float(shadow_share)
        self.seed = seed
        self._on_drift = on_drift
        self._lock = threading.Lock()
        self._count = 0
        self._total = 0.0
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._capital = [0.0] * len(_BETS)
        self._alarm: DriftDetected | None = None

    @property
    def alarm(self) -> DriftDetected | None:
        """The alarm, once raised."""
        return self._alarm

    @property
    def observations(self) -> int:
        """Number of observations."""
        return self._count

    @property
    def evidence(self) -> float:
        """Capital of the bets: how often less likely the losses are while the promise holds."""
        with self._lock:
            return self._wealth()

    def selects(self, key: str) -> bool:
        """Return whether the call named `key` shall be checked; the same key, the same answer."""
        digest = hashlib.blake2b(f"{self.seed}|{key}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.shadow_share * 2**64

    def observe(self, *, accepted: bool, loss: float = 0.0) -> DriftDetected | None:
        """Take one checked call into account.

        Args:
            accepted: Whether the cascade kept the earlier tier's answer. For a `selective`
                promise only accepted calls count.
            loss: Loss of keeping it, in [0, 1]: 1 where it was wrong and the last tier right
                (or where the answers differ, or where it was wrong, as the promise says).

        Returns:
            The alarm, in the call that raises it; None otherwise.

        Raises:
            CalibrationError: The loss is out of range.
        """
        if not 0 <= loss <= 1:
            raise CalibrationError(f"a loss must lie in [0, 1], got {loss!r}")
        # an error rate among accepted answers says nothing about deferred ones
        if self.loss == "selective" and not accepted:
            return None
        value = float(loss) if accepted else 0.0
        with self._lock:
            self._update(value)
            raised = self._judge()
        if raised is not None and self._on_drift is not None:
            self._on_drift(raised)
        return raised

    def _update(self, value: float) -> None:
        self._count += 1
        self._total += value
        self._recent.append(value)
        # a new share 1/(t(t+1)) of the capital enters at every time t; the shares sum to 1
        entering = 1 / (self._count * (self._count + 1))
        change = value / self.target_risk - 1
        self._capital = [
            min((working + entering) * (1 + bet * change), _MOST)
            for working, bet in zip(self._capital, _BETS, strict=True)
        ]

    def _wealth(self) -> float:
        # what has not entered yet is idle
        return 1 / (self._count + 1) + math.fsum(self._capital) / len(_BETS)

    def _judge(self) -> DriftDetected | None:
        if self._alarm is not None or (evidence := self._wealth()) < 1 / self.false_alarm:
            return None
        recent = math.fsum(self._recent) / len(self._recent)
        observed = self._total / self._count
        self._alarm = DriftDetected(
            self.target_risk,
            observed,
            recent,
            self._count,
            evidence,
            f"the promised risk of {self.target_risk:g} no longer holds: {recent:.3g} in the "
            f"latest {len(self._recent)} checked calls; defer more and calibrate again",
        )
        return self._alarm

    def reset(self) -> None:
        """Forget everything, after a new calibration."""
        with self._lock:
            self._count, self._total = 0, 0.0
            self._recent.clear()
            self._capital, self._alarm = [0.0] * len(_BETS), None

    def state(self) -> dict[str, Any]:
        """Return plain JSON data that `restore` continues from."""
        with self._lock:
            return {
                "schema": _SCHEMA,
                "target_risk": self.target_risk,
                "false_alarm": self.false_alarm,
                "loss": self.loss,
                "count": self._count,
                "total": self._total,
                "recent": list(self._recent),
                "capital": list(self._capital),
                "alarm": None if self._alarm is None else asdict(self._alarm),
            }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state` data.

        Raises:
            CalibrationError: The data are of another kind or of another promise.
        """
        mine = {"schema": _SCHEMA, "target_risk": self.target_risk, "loss": self.loss}
        for key, value in mine.items():
            if state.get(key) != value:
                raise CalibrationError(
                    f"the saved monitor has {key}={state.get(key)!r}, expected {value!r}"
                )
        with self._lock:
            self._count, self._total = int(state["count"]), float(state["total"])
            self._recent = deque((float(v) for v in state["recent"]), maxlen=_WINDOW)
            self._capital = [float(v) for v in state["capital"]]
            alarm = state.get("alarm")
            self._alarm = None if alarm is None else DriftDetected(**alarm)

    def save(self, path: str | Path) -> None:
        """Write the state, replacing an earlier one in one step."""
        target = Path(path)
        part = target.with_name(target.name + ".part")
        part.write_text(json.dumps(self.state(), allow_nan=False), "utf-8")
        part.replace(target)
