"""The drift monitor: silent while the promise holds, loud when it does not."""

from __future__ import annotations

import importlib.util
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from cascadellm.calibration import monitor as module
from cascadellm.calibration.monitor import DriftMonitor
from cascadellm.calibration.threshold import calibrate_threshold, loss_column
from cascadellm.errors import CalibrationError

_spec = importlib.util.spec_from_file_location("known_law", Path(__file__).parent / "known_law.py")
law = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(law)


def _feed(monitor, losses):
    for number, loss in enumerate(losses, start=1):
        if monitor.observe(accepted=True, loss=loss) is not None:
            return number
    return None


def _alarms(rng, risk, runs, length, **options):
    made = [DriftMonitor(0.05, **options) for _ in range(runs)]
    return [_feed(m, (rng.random(length) < risk).astype(float)) for m in made]


def test_monitor_stays_silent_while_the_promise_holds():
    """At the promised risk itself the alarm sounds in at most its stated share of runs."""
    alarms = _alarms(np.random.default_rng(0), 0.05, 200, 1000, false_alarm=0.1)
    rate = np.mean([a is not None for a in alarms])
    assert rate <= 0.1 + 1.65 * np.sqrt(0.1 * 0.9 / 200)


def test_monitor_fires_when_the_risk_doubles():
    """A risk twice as high as promised is noticed in nearly every run."""
    alarms = _alarms(np.random.default_rng(1), 0.10, 40, 3000)
    assert np.mean([a is not None for a in alarms]) > 0.95


def test_monitor_notices_a_late_break():
    """A break after a long good time is noticed about as soon as an early one."""
    rng = np.random.default_rng(2)
    losses = np.concatenate((rng.random(4000) < 0.02, rng.random(1500) < 0.2)).astype(float)
    assert 4000 < _feed(DriftMonitor(0.05), losses) < 4500


def test_planted_overconfidence_is_noticed_and_its_absence_is_not():
    """Through a calibrated threshold: right answers thinned by 15% fire, the same law does not."""
    rng = np.random.default_rng(3)
    made = calibrate_threshold(law.draw(1000, rng), target_risk=0.05, confidence=0.9, grid=law.GRID)
    for thinned, expected in ((0.0, False), (0.15, True)):
        column = loss_column(law.draw(4000, rng, overconfident=thinned), "one_sided", 0)
        monitor = DriftMonitor(made)
        kept = column.score >= made.threshold
        for accepted, loss in zip(kept, column.value, strict=True):
            monitor.observe(accepted=bool(accepted), loss=float(loss))
        assert expected == (monitor.alarm is not None)


def test_peeking_at_a_fixed_test_is_detected(monkeypatch):
    """A plain z-test read after every observation alarms far too often while all is well."""

    def peeking(self):
        if self._count < 30:
            return 1.0
        spread = (self.target_risk * (1 - self.target_risk) / self._count) ** 0.5
        excess = self._total / self._count - self.target_risk
        return 1e9 if excess > 1.28 * spread else 1.0

    monkeypatch.setattr(module.DriftMonitor, "_wealth", peeking)
    alarms = _alarms(np.random.default_rng(0), 0.05, 60, 1000, false_alarm=0.1)
    assert np.mean([a is not None for a in alarms]) > 0.25


def test_alarm_is_told_once():
    """The handler hears of the alarm once, with the figures."""
    heard = []
    monitor = DriftMonitor(0.05, on_drift=heard.append)
    for _ in range(100):
        monitor.observe(accepted=True, loss=1.0)
    assert 1 == len(heard)
    assert heard[0] == monitor.alarm
    assert "no longer holds" in heard[0].reason
    assert heard[0].evidence >= 20


def test_shadow_calls_are_a_seeded_share():
    """The stated share of keys is picked, the same ones for the same seed."""
    monitor = DriftMonitor(0.05, shadow_share=0.2)
    picked = [monitor.selects(f"call {i}") for i in range(5000)]
    assert 0.2 == pytest.approx(np.mean(picked), abs=0.02)
    assert picked == [
        DriftMonitor(0.05, shadow_share=0.2).selects(f"call {i}") for i in range(5000)
    ]
    other = DriftMonitor(0.05, shadow_share=0.2, seed=1)
    assert picked != [other.selects(f"call {i}") for i in range(5000)]


def test_state_is_saved_and_restored(tmp_path):
    """A restored monitor continues exactly where the saved one stood."""
    losses = (np.random.default_rng(4).random(600) < 0.08).astype(float)
    whole, first = DriftMonitor(0.05), DriftMonitor(0.05)
    _feed(whole, losses)
    _feed(first, losses[:300])
    first.save(tmp_path / "monitor.json")
    second = DriftMonitor(0.05)
    second.restore(json.loads((tmp_path / "monitor.json").read_text()))
    _feed(second, losses[300:])
    assert whole.evidence == pytest.approx(second.evidence)
    assert whole.observations == second.observations


def test_state_of_another_promise_is_refused():
    """A monitor of another risk cannot be continued."""
    with pytest.raises(CalibrationError, match="target_risk"):
        DriftMonitor(0.05).restore(DriftMonitor(0.02).state())


def test_observations_from_threads_are_all_counted():
    """Concurrent feedback loses nothing."""
    monitor = DriftMonitor(0.5)

    def work():
        for _ in range(300):
            monitor.observe(accepted=True, loss=0.0)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1800 == monitor.observations


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_risk": 0}, "target_risk"),
        ({"target_risk": 0.1, "false_alarm": 1}, "false_alarm"),
        ({"target_risk": 0.1, "shadow_share": 2}, "shadow_share"),
    ],
)
def test_wrong_settings_are_named(options, message):
    """Each wrong setting gives one sentence."""
    with pytest.raises(CalibrationError, match=message):
        DriftMonitor(**options)


def test_selective_promise_counts_accepted_calls_only():
    """For an error rate among accepted answers, deferred calls are no observation."""
    records = law.draw(3000, np.random.default_rng(5))
    made = calibrate_threshold(records, target_risk=0.1, loss="selective", grid=law.GRID)
    monitor = DriftMonitor(made)
    monitor.observe(accepted=False)
    assert 0 == monitor.observations


def test_loss_out_of_range_is_refused():
    """A loss of 2 is stopped."""
    with pytest.raises(CalibrationError, match=r"must lie in \[0, 1\]"):
        DriftMonitor(0.05).observe(accepted=True, loss=2)
