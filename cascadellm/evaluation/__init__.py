"""Deferral curves and what they say: is the cascade worth it, and against what.

Names are loaded on first use, so that the extra to install is named where it is missing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cascadellm.errors import MissingDependencyError

if TYPE_CHECKING:
    from cascadellm.evaluation.auto import AutoPolicy, Candidate
    from cascadellm.evaluation.compare import Evaluation, PolicyResult, evaluate
    from cascadellm.evaluation.curve import Curve, Ordering, Pair
    from cascadellm.evaluation.plot import save_plot
    from cascadellm.evaluation.points import OperatingPoint

__all__ = [
    "AutoPolicy",
    "Candidate",
    "Curve",
    "Evaluation",
    "OperatingPoint",
    "Ordering",
    "Pair",
    "PolicyResult",
    "evaluate",
    "save_plot",
]

_HOME = {
    "AutoPolicy": "auto",
    "Candidate": "auto",
    "Curve": "curve",
    "Evaluation": "compare",
    "OperatingPoint": "points",
    "Ordering": "curve",
    "Pair": "curve",
    "PolicyResult": "compare",
    "evaluate": "compare",
    "save_plot": "plot",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_HOME[name]}")
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in ("numpy", "scipy", "sklearn", "matplotlib"):
            raise MissingDependencyError.for_extra(error.name, "calibrate") from error
        raise
    return getattr(module, name)
