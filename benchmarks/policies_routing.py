"""Cascade routing over the four services of FrugalML's RAFDB records, through the policy itself."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import replay_data as data
from numpy.typing import NDArray
from policies_replay import Row, fake, said

from cascadellm import Cascade, CascadeRoute, Request, mean_logprob
from cascadellm.calibration import CalibrationRecords, fit_cascade_routing
from cascadellm.perform import LocalPerformer, drive

SERVICES = ("GitHub(CNN)", "FacePP", "Microsoft", "Google")
PRICES = (0.001, 5.0, 10.0, 15.0)
"""Unit: USD per 10,000 questions."""
PUBLISHED = {5.0: ".726", 7.5: ".741", 10.0: ".761", 12.5: ".770"}
_ASKED = 2000


def services(root: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return who was right and the log of each confidence. Each of shape (n, 4)."""
    rows = data.table(root, "frugalml_rafdb")
    right = np.array([[data.number(row[f"{s}|reward"]) for s in SERVICES] for row in rows])
    sure = np.array([[data.number(row[f"{s}|confidence"]) for s in SERVICES] for row in rows])
    return right, np.log(np.maximum(sure, 1e-6))


def routed(root: Path, repeats: int) -> list[Row]:
    """Fit on half of the records, ask the policy about others, for several budgets."""
    right, sure = services(root)
    rows = []
    for budget, published in PUBLISHED.items():
        found = [_once(right, sure, budget, seed) for seed in range(repeats)]
        quality, spent = np.mean(found, axis=0)
        rows.append(
            Row(
                "FrugalML RAFDB, 4 services",
                f"CascadeRoute, {budget:g} USD per 10,000 (spent {spent:.2f})",
                _ASKED,
                None,
                f"{published} (FrugalML, reads labels too)",
                None,
                float(quality),
            )
        )
    return rows


def _once(
    right: NDArray[np.float64], sure: NDArray[np.float64], budget: float, seed: int
) -> tuple[float, float]:
    order = np.random.default_rng(seed).permutation(len(right))
    fit, test = order[: len(order) // 2], order[len(order) // 2 :][:_ASKED]
    plan = fit_cascade_routing(
        CalibrationRecords.of(sure[fit][:, :-1], right[fit]),
        budget_usd=budget / 1e4,
        tier_costs=[price / 1e4 for price in PRICES],
        seed=seed,
    ).plan
    policy = CascadeRoute(plan, mean_logprob)
    correct = spent = 0.0
    for row in test:
        tiers = [
            fake(said(name, [value if math.isfinite(value) else -99.0]), name)
            for name, value in zip(SERVICES, sure[row], strict=True)
        ]
        # a text of its own, since it decides which of two prices holds
        outcome = drive(Cascade(tiers, policy).plan(Request("q", f"q{row}")), LocalPerformer())
        asked = [a.name for a in outcome.trace.attempts if a.action != "skip"]
        correct += right[row, SERVICES.index(outcome.answer.text)]
        spent += sum(PRICES[SERVICES.index(name)] for name in asked)
    return correct / len(test), spent / len(test)
