"""Thresholds with a statistical guarantee, and the records they are computed from.

Names are loaded on first use, for two reasons: a saved `Calibration` must be readable
where numpy is absent (`cascadellm.calibration.result` imports the standard library only),
and the parts that need numpy, scipy or scikit-learn then name the extra to install.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cascadellm.errors import (
    CalibrationError,
    InsufficientDataError,
    MissingDependencyError,
    NoValidThresholdError,
)

if TYPE_CHECKING:
    from cascadellm.calibration.adaptive import AdaptiveThreshold
    from cascadellm.calibration.boundaries import calibrate_cascade, search_cascade
    from cascadellm.calibration.budget import calibrate_budget
    from cascadellm.calibration.collect import Collected, Question, collect_records
    from cascadellm.calibration.collected import answer_table, to_records
    from cascadellm.calibration.features import LearnedScore
    from cascadellm.calibration.feedback import Feedback, FeedbackLoop
    from cascadellm.calibration.fit import fit_learned_score
    from cascadellm.calibration.gain import GainMap
    from cascadellm.calibration.gain_fit import fit_gain_map
    from cascadellm.calibration.grading import exact_match, judged_by
    from cascadellm.calibration.loading import load_records
    from cascadellm.calibration.monitor import DriftDetected, DriftMonitor
    from cascadellm.calibration.probability import CalibratedScore, ScoreMap
    from cascadellm.calibration.records import CalibrationRecord, CalibrationRecords
    from cascadellm.calibration.result import Calibration
    from cascadellm.calibration.risks import Risk, calibrate_risks
    from cascadellm.calibration.router import LearnedRouter
    from cascadellm.calibration.router_fit import fit_router
    from cascadellm.calibration.routing import RoutingPlan
    from cascadellm.calibration.routing_fit import fit_cascade_routing
    from cascadellm.calibration.score_maps import Reliability, fit_score_map, reliability
    from cascadellm.calibration.threshold import calibrate_threshold

__all__ = [
    "AdaptiveThreshold",
    "CalibratedScore",
    "Calibration",
    "CalibrationError",
    "CalibrationRecord",
    "CalibrationRecords",
    "Collected",
    "DriftDetected",
    "DriftMonitor",
    "Feedback",
    "FeedbackLoop",
    "GainMap",
    "InsufficientDataError",
    "LearnedRouter",
    "LearnedScore",
    "NoValidThresholdError",
    "Question",
    "Reliability",
    "Risk",
    "RoutingPlan",
    "ScoreMap",
    "answer_table",
    "calibrate_budget",
    "calibrate_cascade",
    "calibrate_risks",
    "calibrate_threshold",
    "collect_records",
    "exact_match",
    "fit_cascade_routing",
    "fit_gain_map",
    "fit_learned_score",
    "fit_router",
    "fit_score_map",
    "judged_by",
    "load_records",
    "reliability",
    "search_cascade",
    "to_records",
]

_HOME = {
    "AdaptiveThreshold": "adaptive",
    "CalibratedScore": "probability",
    "Calibration": "result",
    "CalibrationRecord": "records",
    "CalibrationRecords": "records",
    "Collected": "collect",
    "DriftDetected": "monitor",
    "DriftMonitor": "monitor",
    "Feedback": "feedback",
    "FeedbackLoop": "feedback",
    "GainMap": "gain",
    "LearnedRouter": "router",
    "LearnedScore": "features",
    "Question": "collect",
    "Reliability": "score_maps",
    "Risk": "risks",
    "RoutingPlan": "routing",
    "ScoreMap": "probability",
    "answer_table": "collected",
    "calibrate_budget": "budget",
    "calibrate_cascade": "boundaries",
    "calibrate_risks": "risks",
    "calibrate_threshold": "threshold",
    "collect_records": "collect",
    "exact_match": "grading",
    "fit_cascade_routing": "routing_fit",
    "fit_gain_map": "gain_fit",
    "fit_learned_score": "fit",
    "fit_router": "router_fit",
    "fit_score_map": "score_maps",
    "judged_by": "grading",
    "load_records": "loading",
    "reliability": "score_maps",
    "search_cascade": "boundaries",
    "to_records": "collected",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_HOME[name]}")
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in ("numpy", "scipy", "sklearn"):
            raise MissingDependencyError.for_extra(error.name, "calibrate") from error
        raise
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
