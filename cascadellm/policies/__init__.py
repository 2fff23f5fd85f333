"""Deferral policies: who must speak, decided per answer."""

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
from cascadellm.policies.config import policy_from_config, policy_to_config
from cascadellm.policies.grounded import Grounded
from cascadellm.policies.simple import Always, Never
from cascadellm.policies.threshold import Threshold
from cascadellm.policies.validity import Valid

__all__ = [
    "AllOf",
    "Always",
    "AnyOf",
    "Custom",
    "Grounded",
    "Moment",
    "Never",
    "Not",
    "Policy",
    "PolicyLike",
    "Threshold",
    "Valid",
    "as_policy",
    "policy_from_config",
    "policy_to_config",
]
