"""Deferral policies: who must speak, decided per answer."""

from cascadellm.policies.agreement import Agreement
from cascadellm.policies.base import (
    AllOf,
    AnyOf,
    Custom,
    Moment,
    Not,
    Policy,
    PolicyLike,
    as_policy,
)
from cascadellm.policies.budget import Budget, Spending
from cascadellm.policies.cascade_route import CascadeRoute
from cascadellm.policies.config import policy_from_config, policy_to_config
from cascadellm.policies.consistency import SelfConsistency, SemanticEntropy
from cascadellm.policies.early import EarlyAbort, PrefixCommit
from cascadellm.policies.grounded import Grounded
from cascadellm.policies.hedge import Hedge
from cascadellm.policies.meta import MetaVerifier
from cascadellm.policies.route import ContextFits, NeedsTools, Route
from cascadellm.policies.shared import SharedSpending
from cascadellm.policies.simple import Always, Never
from cascadellm.policies.threshold import Threshold
from cascadellm.policies.toolrisk import ToolRisk
from cascadellm.policies.validity import Valid
from cascadellm.policies.verifier import Judge, PTrue, SelfVerify

__all__ = [
    "Agreement",
    "AllOf",
    "Always",
    "AnyOf",
    "Budget",
    "CascadeRoute",
    "ContextFits",
    "Custom",
    "EarlyAbort",
    "Grounded",
    "Hedge",
    "Judge",
    "MetaVerifier",
    "Moment",
    "NeedsTools",
    "Never",
    "Not",
    "PTrue",
    "Policy",
    "PolicyLike",
    "PrefixCommit",
    "Route",
    "SelfConsistency",
    "SelfVerify",
    "SemanticEntropy",
    "SharedSpending",
    "Spending",
    "Threshold",
    "ToolRisk",
    "Valid",
    "as_policy",
    "policy_from_config",
    "policy_to_config",
]
