"""CascadeLLM: a cheap local model and a large one answer as one.

The engine knows no framework. Import `CascadeLLM` from `langchain_cascade` or
`llamaindex_cascade`.
"""

from cascadellm._version import __version__
from cascadellm.answer import (
    Answer,
    Attempt,
    Decision,
    Piece,
    Request,
    SideCall,
    TokenScore,
    ToolCall,
    Trace,
    Usage,
)
from cascadellm.breaker import Breaker
from cascadellm.bulkhead import Bulkhead
from cascadellm.cascade import Cascade, Outcome
from cascadellm.context import call_context
from cascadellm.errors import (
    BudgetExceededError,
    CalibrationError,
    CascadeError,
    CircuitOpenError,
    ConfigurationError,
    ContextWindowError,
    DeadlineExceededError,
    InsufficientDataError,
    MissingDependencyError,
    ModelError,
    NoValidThresholdError,
    OutOfMemoryError,
    ScoreUnavailableError,
    TierBusyError,
    TierUnavailableError,
    VocabularyMismatchError,
)
from cascadellm.events import JsonlSink, Record, Recorder, record_cascade
from cascadellm.policies import (
    AllOf,
    Always,
    AnyOf,
    Custom,
    Grounded,
    Never,
    Not,
    Policy,
    Threshold,
    Valid,
)
from cascadellm.scores import (
    Score,
    margin,
    mean_entropy,
    mean_logprob,
    min_logprob,
    quantile_logprob,
    sum_logprob,
)
from cascadellm.tier import Price, Tier

__all__ = [
    "AllOf",
    "Always",
    "Answer",
    "AnyOf",
    "Attempt",
    "Breaker",
    "BudgetExceededError",
    "Bulkhead",
    "CalibrationError",
    "Cascade",
    "CascadeError",
    "CircuitOpenError",
    "ConfigurationError",
    "ContextWindowError",
    "Custom",
    "DeadlineExceededError",
    "Decision",
    "Grounded",
    "InsufficientDataError",
    "JsonlSink",
    "MissingDependencyError",
    "ModelError",
    "Never",
    "NoValidThresholdError",
    "Not",
    "OutOfMemoryError",
    "Outcome",
    "Piece",
    "Policy",
    "Price",
    "Record",
    "Recorder",
    "Request",
    "Score",
    "ScoreUnavailableError",
    "SideCall",
    "Threshold",
    "Tier",
    "TierBusyError",
    "TierUnavailableError",
    "TokenScore",
    "ToolCall",
    "Trace",
    "Usage",
    "Valid",
    "VocabularyMismatchError",
    "__version__",
    "call_context",
    "margin",
    "mean_entropy",
    "mean_logprob",
    "min_logprob",
    "quantile_logprob",
    "record_cascade",
    "sum_logprob",
]
