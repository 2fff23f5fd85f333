"""Policies to plain data and back. Loading executes and imports nothing."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cascadellm.errors import ConfigurationError
from cascadellm.policies.agreement import Agreement
from cascadellm.policies.base import AllOf, AnyOf, Custom, Not, Policy, config_fields
from cascadellm.policies.budget import Budget, Spending
from cascadellm.policies.cascade_route import CascadeRoute
from cascadellm.policies.consistency import SelfConsistency, SemanticEntropy
from cascadellm.policies.early import EarlyAbort, PrefixCommit
from cascadellm.policies.grounded import Grounded
from cascadellm.policies.hedge import Hedge
from cascadellm.policies.meta import MetaVerifier
from cascadellm.policies.route import ContextFits, NeedsTools, Route
from cascadellm.policies.simple import Always, Never
from cascadellm.policies.threshold import Threshold
from cascadellm.policies.toolrisk import ToolRisk
from cascadellm.policies.validity import Valid
from cascadellm.policies.verifier import Judge, PTrue, SelfVerify
from cascadellm.scores import SCORES, Score, score_from_config
from cascadellm.tier import Tier

__all__ = ["POLICIES", "policy_from_config", "policy_to_config"]

_KNOWN: tuple[type[Policy], ...] = (
    Agreement,
    AllOf,
    Always,
    AnyOf,
    Budget,
    CascadeRoute,
    ContextFits,
    Custom,
    EarlyAbort,
    Grounded,
    Hedge,
    Judge,
    MetaVerifier,
    NeedsTools,
    Never,
    Not,
    PTrue,
    PrefixCommit,
    Route,
    SelfConsistency,
    SelfVerify,
    SemanticEntropy,
    Threshold,
    ToolRisk,
    Valid,
)

POLICIES: Mapping[str, type[Policy]] = MappingProxyType({cls.__name__: cls for cls in _KNOWN})
"""Policies that configs may name."""


def policy_to_config(policy: Policy) -> dict[str, Any]:
    """Return plain data for `policy_from_config`; see `Policy.to_config`."""
    config: dict[str, Any] = {"type": type(policy).__name__}
    for name in config_fields(policy):
        config[name] = _encode(getattr(policy, name), f"{type(policy).__name__}.{name}")
    return config


def _encode(value: Any, place: str) -> Any:
    if isinstance(value, (Policy, Score)):
        return value.to_config()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if isinstance(value, (tuple, list)):
        return [_encode(item, place) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _encode(item, place) for key, item in value.items()}
    if hasattr(value, "to_config"):
        return value.to_config()
    if isinstance(value, Spending):
        return {"type": "named", "name": "spending"}
    if isinstance(value, Tier):
        # a model is no plain data; whoever loads the config says which model bears the name
        return {"type": "named", "name": value.label}
    if hasattr(value, "embed_documents") or hasattr(value, "get_text_embedding_batch"):
        return {"type": "named", "name": type(value).__name__}
    if callable(value) and hasattr(value, "__name__") and value.__name__ != "<lambda>":
        return {"type": "named", "name": value.__name__}
    raise ConfigurationError(
        f"{place} holds {type(value).__name__}, which is no plain data; use a named function "
        "and hand it to from_config(..., allow={name: function})"
    )


def policy_from_config(
    config: Mapping[str, Any], *, allow: Mapping[str, Any] | None = None
) -> Policy:
    """Build a policy from plain data; see `Policy.from_config`.

    Raises:
        ConfigurationError: A type or an option is unknown, or a name is not allowed.
    """
    value = _decode(config, dict(allow or {}))
    if not isinstance(value, Policy):
        raise ConfigurationError(f"the config describes no policy: {config!r}")
    return value


def _decode(value: Any, allow: Mapping[str, Any]) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_decode(item, allow) for item in value)
    if not isinstance(value, Mapping):
        return value
    if str(value.get("schema", "")).startswith("cascadellm."):
        return _fitted(value, allow)
    if "type" not in value:
        return {key: _decode(item, allow) for key, item in value.items()}
    kind = str(value["type"])
    if kind == "named":
        name = str(value.get("name"))
        if name in allow:
            return allow[name]
        raise ConfigurationError(
            f"the config names {name!r}; pass allow={{{name!r}: ...}} to say what it is"
        )
    if kind in SCORES or kind == "quantile_logprob":
        return score_from_config(value)
    cls = POLICIES.get(kind) or allow.get(kind) or _elsewhere(kind)
    if cls is None:
        raise ConfigurationError(
            f"unknown type {kind!r}; known policies: {', '.join(sorted(POLICIES))}"
        )
    options = {key: _decode(item, allow) for key, item in value.items() if key != "type"}
    for name in ("threshold", "step"):
        # infinity is written as text
        if isinstance(options.get(name), str):
            options[name] = float(options[name])
    try:
        return cls(**options)
    except TypeError as error:
        raise ConfigurationError(f"{kind}: {error}") from error


def _fitted(value: Mapping[str, Any], allow: Mapping[str, Any]) -> Any:
    """Build a fitted score or router, which are plain numbers, in their own room."""
    from cascadellm.calibration.features import LearnedScore
    from cascadellm.calibration.gain import GainMap
    from cascadellm.calibration.router import LearnedRouter
    from cascadellm.calibration.routing import RoutingPlan

    if str(value["schema"]).startswith("cascadellm.router/"):
        return LearnedRouter.from_config(value, embed=allow.get(str(value.get("embedder"))))
    if str(value["schema"]).startswith("cascadellm.gain_map/"):
        return GainMap.from_config(value)
    if str(value["schema"]).startswith("cascadellm.routing_plan/"):
        return RoutingPlan.from_config(value)
    return LearnedScore.from_config(value)


def _elsewhere(kind: str) -> Any:
    """Look a policy of another room up there: the adaptive one, or the token-level ones."""
    if kind == "AdaptiveThreshold":
        from cascadellm.calibration.adaptive import AdaptiveThreshold

        return AdaptiveThreshold
    from cascadellm import local

    # not whatever that room holds: a model, for one, may bring code of its own
    joint = {cls.__name__: cls for cls in (local.SpeculativeCascade, local.TokenCascade)}
    found = joint.get(kind) or (getattr(local.rules, kind) if kind in local.rules.__all__ else None)
    return found if isinstance(found, type) else None
