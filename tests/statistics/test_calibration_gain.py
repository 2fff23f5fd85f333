"""The meta-verifier: fitted on records, it sends on where the larger tier gains, not elsewhere."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascadellm import Answer, ConfigurationError, Judge, MetaVerifier, Policy, SelfVerify
from cascadellm.calibration import (
    CalibrationError,
    CalibrationRecords,
    GainMap,
    InsufficientDataError,
    fit_gain_map,
)
from cascadellm.evaluation import evaluate
from tests.engine.deciding import decide, model
from tests.engine.running import MODES

modes = pytest.mark.parametrize("mode", MODES)


def verified(n: int, seed: int) -> tuple[Any, Any]:
    """Return shares of 8 verdicts, and who was right: at the lowest shares, neither."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, n, p=[0.4, 0.3, 0.3])
    # easy; only the large tier solves it; nobody does, which the verifier is surest of
    share = rng.binomial(8, np.array([0.85, 0.5, 0.1])[kind]) / 8
    small = rng.random(n) < np.array([0.95, 0.2, 0.02])[kind]
    large = rng.random(n) < np.array([0.95, 0.9, 0.03])[kind]
    return share, np.column_stack((small, large)).astype(float)


def norm(score: Any, correct: Any) -> float:
    """Return how well a score defers: 0 = random, 1 = oracle."""
    records = CalibrationRecords.of(np.asarray(score, dtype=float), correct)
    return evaluate(records, {"it": np.asarray(score)}, resamples=0)["it"].values["norm"]


def check_better(gains: Any) -> None:
    """Check on unseen questions that the map beats the share itself."""
    share, correct = verified(4000, 1)
    assert norm([-gains(s) for s in share], correct) > norm(share, correct) + 0.1


def test_map_when_neither_tier_solves_the_worst() -> None:
    """Fitted on 500 records, it beats the verifier's own share on others."""
    gains = fit_gain_map(*verified(500, 0))
    check_better(gains)
    values = {share: gains(share) for share in (0.0, 0.5, 1.0)}
    assert values[0.5] > 0.4  # type: ignore[operator]
    assert max(values[0.0], values[1.0]) < 0.2  # type: ignore[type-var]


def test_map_when_its_sign_is_wrong() -> None:
    """The check has power: a map of losses in place of gains is noticed."""
    gains = fit_gain_map(*verified(500, 0))
    with pytest.raises(AssertionError):
        check_better(lambda share: -(gains(share) or 0.0))


@modes
@pytest.mark.parametrize(
    ("verdicts", "worth", "defers"),
    [
        (["True"] * 8, 0.1, False),
        (["True", "False"] * 4, 0.1, True),
        (["False"] * 8, 0.1, False),
        (["True", "False"] * 4, 0.9, False),
        (["True"] * 8, -math.inf, True),
    ],
)
def test_decision_when_verdicts_differ(
    verdicts: list[str], worth: float, defers: bool, mode: str
) -> None:
    """It defers iff the gain expected at the verifier's share is worth the larger tier."""
    gains = fit_gain_map(*verified(500, 0))
    policy = MetaVerifier(SelfVerify(0.5, 8, model=model(verdicts)), gains, worth=worth)
    found = decide(policy, mode=mode)

    assert (defers, "meta", "MetaVerifier") == (found.defer, found.first.code, found.first.policy)
    assert ["verify"] * 8 == [call.purpose for call in found.first.calls]
    assert all(call.cost_usd for call in found.first.calls)
    assert "expected gain" in found.first.reason


@modes
@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("hm", "judge_unclear"),
        (Answer("", refusal="No."), "judge_refused"),
        (TimeoutError("slow"), "judge_timeout"),
        (OSError("down"), "judge_connection"),
    ],
)
def test_decision_when_the_verifier_gives_no_score(reply: Any, code: str, mode: str) -> None:
    """Without a score the verifier's own deferral stands and says why."""
    gains = GainMap((0.0, 1.0), (-1.0, -1.0), 1.0, 99)
    found = decide(MetaVerifier(Judge(model(reply)), gains), mode=mode)

    assert found.defer
    assert found.first.code == code or found.first.code.startswith("judge_")


def test_file_when_a_map_is_saved(tmp_path: Path) -> None:
    """The file is JSON and gives the same gains; the policy survives its config."""
    gains = fit_gain_map(*verified(200, 0), ids=[str(i) for i in range(200)])
    path = gains.save(tmp_path / "gain.json")
    policy = MetaVerifier(SelfVerify(0.5, 4), gains, worth=0.1)

    assert gains == GainMap.load(path)
    # the names, and one digest of all grades
    assert 201 == len(json.loads(path.read_text("utf-8"))["tuned_on"])
    assert policy == Policy.from_config(json.loads(json.dumps(policy.to_config())))
    with pytest.raises(CalibrationError, match="exists"):
        gains.save(path)
    path.write_text(json.dumps({**gains.to_config(), "gains": [1.0]}), "utf-8")
    with pytest.raises(CalibrationError, match="must rise"):
        GainMap.load(path)
    with pytest.raises(CalibrationError, match="schema"):
        GainMap.from_config({"schema": "x"})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fit_gain_map([0.5] * 50, np.ones((50, 2))), CalibrationError, "equal"),
        (lambda: fit_gain_map([0.5] * 50, np.ones(50)), CalibrationError, "shape"),
        (lambda: fit_gain_map([0.1, 0.2], np.ones((2, 2))), InsufficientDataError, "at least 40"),
        (lambda: MetaVerifier(3, max), ConfigurationError, "a policy that writes"),  # type: ignore[arg-type]
        (lambda: MetaVerifier(SelfVerify(), 3), ConfigurationError, "GainMap"),  # type: ignore[arg-type]
        (lambda: MetaVerifier(SelfVerify(), max, worth=math.nan), ConfigurationError, "number"),
    ],
)
def test_arguments_when_they_are_wrong(make: Any, error: type[Exception], message: str) -> None:
    """What cannot be fitted or used is refused with what was expected."""
    with pytest.raises(error, match=message):
        make()
