"""The error tree: every error that CascadeLLM itself raises.

CascadeError
 +- ConfigurationError (also ValueError)       wrong arguments, found at construction
 |   +- VocabularyMismatchError                two models of a pair do not share a vocabulary
 +- MissingDependencyError (also ImportError)  an extra is not installed
 +- ScoreUnavailableError                      the answer lacks what the score reads
 +- ModelError                                 a local model cannot be loaded or cannot run
 |   +- ContextWindowError                     the prompt is longer than the window
 |   +- OutOfMemoryError                       the device ran out of memory
 +- TierUnavailableError                       a tier was not asked, to spare it
 |   +- CircuitOpenError                       its breaker is open
 |   +- TierBusyError                          its bulkhead's queue is full
 +- BudgetExceededError, DeadlineExceededError a limit was met; carry the best earlier answer
 +- CalibrationError                           a threshold cannot be certified
     +- InsufficientDataError                  too few labels
     +- NoValidThresholdError                  no threshold meets the target risk

Errors of a tier (a provider's exceptions) are never wrapped: the last tier's
exception reaches the caller with notes that name the tiers.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BudgetExceededError",
    "CalibrationError",
    "CascadeError",
    "CircuitOpenError",
    "ConfigurationError",
    "ContextWindowError",
    "DeadlineExceededError",
    "InsufficientDataError",
    "MissingDependencyError",
    "ModelError",
    "NoValidThresholdError",
    "OutOfMemoryError",
    "ScoreUnavailableError",
    "TierBusyError",
    "TierUnavailableError",
    "VocabularyMismatchError",
]


class CascadeError(Exception):
    """Base of every error that CascadeLLM raises itself."""


class ConfigurationError(CascadeError, ValueError):
    """An argument is wrong; raised where the object is built."""


class VocabularyMismatchError(ConfigurationError):
    """Draft and target do not share one vocabulary; names the first difference."""


class MissingDependencyError(CascadeError, ImportError):
    """A package of an extra is missing; names the extra to install."""

    @classmethod
    def for_extra(cls, package: str, extra: str) -> MissingDependencyError:
        """Build the error for `package`, which the extra `extra` installs."""
        return cls(
            f"{package!r} is not installed; it comes with an extra: "
            f"pip install 'cascadellm[{extra}]'"
        )


class ScoreUnavailableError(CascadeError):
    """The answer lacks what the score reads; names the tier and the remedy."""


class ModelError(CascadeError):
    """A local model cannot be loaded or cannot answer."""


class ContextWindowError(ModelError):
    """The prompt does not fit the model's context window."""


class OutOfMemoryError(ModelError):
    """The device ran out of memory while loading or generating."""


class TierUnavailableError(CascadeError):
    """A tier was not asked; the cascade goes on to the next one."""


class CircuitOpenError(TierUnavailableError):
    """The tier failed repeatedly and its circuit breaker is open."""


class TierBusyError(TierUnavailableError):
    """The tier runs as many calls as its bulkhead allows, and its queue is full."""


class _LimitError(CascadeError):
    """A limit of the whole call was met.

    Attributes:
        best: The best answer so far (`cascadellm.Answer`), or None.
    """

    def __init__(self, message: str, best: Any = None) -> None:
        super().__init__(message)
        self.best = best


class BudgetExceededError(_LimitError):
    """A budget of money, tokens or calls is spent; `best` is the best answer so far."""


class DeadlineExceededError(_LimitError):
    """The call's deadline has passed; `best` is the best answer so far."""


class CalibrationError(CascadeError):
    """Calibration is not possible with these records."""


class InsufficientDataError(CalibrationError):
    """Too few labelled records to certify the target.

    Attributes:
        needed: Least number of records that could certify it.
        given: Number of usable records given.
    """

    def __init__(self, message: str, *, needed: int, given: int) -> None:
        super().__init__(message)
        self.needed = needed
        self.given = given


class NoValidThresholdError(CalibrationError):
    """No threshold on the grid meets the target risk.

    Attributes:
        best_bound: The smallest upper bound on the risk that was found.
    """

    def __init__(self, message: str, *, best_bound: float) -> None:
        super().__init__(message)
        self.best_bound = best_bound
