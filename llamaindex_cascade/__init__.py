"""CascadeLLM for LlamaIndex: a cheap local model and a large one answer as one LLM.

    from llamaindex_cascade import CascadeLLM, Threshold, mean_logprob

    llm = CascadeLLM(tiers=[small, large], policy=Threshold(mean_logprob, -0.35))
    llm.complete("Why is the sky blue?").additional_kwargs["cascade"]
"""

from llama_index.core.instrumentation import get_dispatcher

# created before any submodule's, which then become its children
get_dispatcher("llamaindex_cascade")

from cascadellm import (  # noqa: E402
    AllOf,
    Always,
    AnyOf,
    BudgetExceededError,
    CascadeError,
    ConfigurationError,
    Custom,
    DeadlineExceededError,
    Decision,
    JsonlSink,
    MissingDependencyError,
    Never,
    Not,
    Policy,
    Price,
    Score,
    ScoreUnavailableError,
    Threshold,
    Tier,
    Valid,
    __version__,
    margin,
    mean_entropy,
    mean_logprob,
    min_logprob,
    quantile_logprob,
    record_cascade,
    sum_logprob,
)
from llamaindex_cascade.events import (  # noqa: E402
    CascadeDecisionEvent,
    CascadeEndEvent,
    CascadeEventHandler,
    CascadeFailedEvent,
    CascadeTierAnsweredEvent,
    CascadeTierFailedEvent,
    CascadeTierSkippedEvent,
    CascadeTierStartedEvent,
)
from llamaindex_cascade.llm import CascadeLLM  # noqa: E402
from llamaindex_cascade.local import LocalLLM  # noqa: E402

__all__ = [
    "AllOf",
    "Always",
    "AnyOf",
    "BudgetExceededError",
    "CascadeDecisionEvent",
    "CascadeEndEvent",
    "CascadeError",
    "CascadeEventHandler",
    "CascadeFailedEvent",
    "CascadeLLM",
    "CascadeTierAnsweredEvent",
    "CascadeTierFailedEvent",
    "CascadeTierSkippedEvent",
    "CascadeTierStartedEvent",
    "ConfigurationError",
    "Custom",
    "DeadlineExceededError",
    "Decision",
    "JsonlSink",
    "LocalLLM",
    "MissingDependencyError",
    "Never",
    "Not",
    "Policy",
    "Price",
    "Score",
    "ScoreUnavailableError",
    "Threshold",
    "Tier",
    "Valid",
    "__version__",
    "margin",
    "mean_entropy",
    "mean_logprob",
    "min_logprob",
    "quantile_logprob",
    "record_cascade",
    "sum_logprob",
]
