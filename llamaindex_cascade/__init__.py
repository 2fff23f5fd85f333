"""CascadeLLM for LlamaIndex: a cheap local model and a large one answer as one LLM.

from llamaindex_cascade import CascadeLLM, Threshold, mean_logprob

llm = CascadeLLM(tiers=[small, large], policy=Threshold(mean_logprob, -0.35))
llm.complete("Why is the sky blue?").additional_kwargs["cascade"]
"""

from cascadellm.errors import MissingDependencyError

try:
    from llama_index_instrumentation import get_dispatcher
except ModuleNotFoundError as error:
    raise MissingDependencyError.for_extra("llama-index-core", "llamaindex") from error

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
from cascadellm.local import (  # noqa: E402
    LocalModel,
    SpeculativeCascade,
    SpeculativePair,
    TokenCascade,
)
from cascadellm.local.rules import (  # noqa: E402
    BiLDStar,
    Chow,
    ChowLog,
    Diff,
    DiffLog,
    Ensemble,
    Lenient,
    Lossless,
    Mentored,
    Opt,
    OptLog,
    Rule,
    TokenV1,
    TokenV2,
    TokenV3,
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
from llamaindex_cascade.usable import ReactParsable, Usable  # noqa: E402

__all__ = [
    "AllOf",
    "Always",
    "AnyOf",
    "BiLDStar",
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
    "Chow",
    "ChowLog",
    "ConfigurationError",
    "Custom",
    "DeadlineExceededError",
    "Decision",
    "Diff",
    "DiffLog",
    "Ensemble",
    "JsonlSink",
    "Lenient",
    "LocalLLM",
    "LocalModel",
    "Lossless",
    "Mentored",
    "MissingDependencyError",
    "Never",
    "Not",
    "Opt",
    "OptLog",
    "Policy",
    "Price",
    "ReactParsable",
    "Rule",
    "Score",
    "ScoreUnavailableError",
    "SpeculativeCascade",
    "SpeculativePair",
    "Threshold",
    "Tier",
    "TokenCascade",
    "TokenV1",
    "TokenV2",
    "TokenV3",
    "Usable",
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
