"""What a cascade is: cache identity, trace parameters, profile, token counting, config."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from langchain_core.language_models.base import BaseLanguageModel, LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.messages.utils import count_tokens_approximately

from cascadellm.errors import ConfigurationError
from cascadellm.policies import Policy
from cascadellm.tier import Price, Tier
from langchain_cascade.convert import openai_tools
from langchain_cascade.describe import describe
from langchain_cascade.engine import Engine
from langchain_cascade.tier import base_model

__all__ = [
    "counter",
    "from_config",
    "identifying_params",
    "ls_params",
    "profile",
    "to_config",
]


_OPTIONS = ("on_tier_error", "on_exhausted", "deadline_s")


def identifying_params(engine: Engine) -> dict[str, Any]:
    """Return what tells two cascades apart: readable names, and a digest of all settings."""
    return {**engine.shown, "fingerprint": fingerprint(engine)}


def fingerprint(engine: Engine) -> str:
    """Return a digest of every tier's and policy's settings; secrets are left out."""
    tiers = [[tier.label, describe(tier.model), describe(tier.kwargs)] for tier in engine.tiers]
    text = json.dumps([tiers, engine.shown["policy"]], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def ls_params(engine: Engine, stop: list[str] | None, pin: Any) -> LangSmithParams:
    """Return what traces call the cascade."""
    names = "|".join(tier.label for tier in engine.tiers)
    params = LangSmithParams(
        ls_provider="cascade",
        ls_model_type="chat",
        ls_model_name=pin if isinstance(pin, str) else names,
    )
    if stop:
        params["ls_stop"] = stop
    return params


def profile(models: Sequence[Any]) -> dict[str, Any] | None:
    """Return what every tier can do: AND of abilities, least of limits; None if unknown."""
    profiles = [getattr(base_model(model), "profile", None) for model in models]
    known = [one for one in profiles if one]
    if len(known) != len(profiles) or not known:
        return None
    merged: dict[str, Any] = {}
    for key in set.intersection(*(set(one) for one in known)):
        values = [one[key] for one in known]
        if all(isinstance(value, bool) for value in values):
            merged[key] = all(values)
        elif all(isinstance(value, int) for value in values):
            merged[key] = min(values)
    return merged


class Counter(Protocol):
    """What counts tokens."""

    def get_token_ids(self, text: str) -> list[int]:
        """Return token ids."""

    def get_num_tokens(self, text: str) -> int:
        """Count the tokens of a text."""

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Count the tokens of a conversation."""


class _Approximate:
    """Counts tokens without a tokenizer; LangChain's default would download one."""

    def get_token_ids(self, text: str) -> list[int]:
        return list(text.encode())

    def get_num_tokens(self, text: str) -> int:
        return count_tokens_approximately([("user", text)])

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        return count_tokens_approximately(messages, tools=list(openai_tools(tools)) or None)


def counter(engine: Engine) -> Counter:
    """Return what counts tokens: the last tier, or an approximation where it cannot."""
    model = base_model(engine.last)
    if not isinstance(model, BaseChatModel):
        return _Approximate()
    own = type(model).get_token_ids is not BaseLanguageModel.get_token_ids
    own = own or model.custom_get_token_ids is not None
    return model if own else _Approximate()


def to_config(engine: Engine) -> dict[str, Any]:
    """Return a cascade as plain data, without models."""
    cascade = engine.cascade
    return {
        "type": "CascadeLLM",
        "tiers": [
            {
                "name": tier.label,
                "price": None if tier.price is None else asdict(tier.price),
                "retry": tier.retry if isinstance(tier.retry, int) else None,
                "timeout_s": tier.timeout_s,
            }
            for tier in cascade.tiers
        ],
        "policy": [policy.to_config() for policy in cascade.policies],
        "on_tier_error": cascade.on_tier_error,
        "on_exhausted": cascade.on_exhausted,
        "deadline_s": cascade.deadline_s,
    }


def from_config(
    config: Mapping[str, Any],
    models: Mapping[str, Any] | Sequence[Any],
    allow: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the arguments of a cascade that `to_config` described.

    Raises:
        ConfigurationError: A model is missing, or an option is unknown.
    """
    known = {"type", "tiers", "policy", *_OPTIONS}
    unknown = sorted(set(config) - known)
    if unknown:
        raise ConfigurationError(f"unknown options in the config: {', '.join(unknown)}")
    entries = list(config.get("tiers") or ())
    tiers = [
        Tier(
            _found(models, place, str(entry["name"]), len(entries)),
            name=entry["name"],
            price=None if entry.get("price") is None else Price(**entry["price"]),
            retry=entry.get("retry"),
            timeout_s=entry.get("timeout_s"),
        )
        for place, entry in enumerate(entries)
    ]
    options = {k: config[k] for k in _OPTIONS if k in config}
    policies = [Policy.from_config(one, allow=allow) for one in config.get("policy") or ()]
    return {"tiers": tiers, "policy": policies, **options}


def _found(models: Any, place: int, name: str, count: int) -> Any:
    if isinstance(models, Mapping):
        if name in models:
            return models[name]
        raise ConfigurationError(
            f"the config names a tier {name!r}; tiers= has {', '.join(map(str, models)) or 'none'}"
        )
    if len(models) != count:
        raise ConfigurationError(f"the config has {count} tiers, tiers= has {len(models)}")
    return models[place]
