"""Checks and readings of `LocalModel`'s arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cascadellm.errors import ConfigurationError
from cascadellm.local.settings import Settings

__all__ = ["check_counts", "named_path", "plain_path", "settings_of"]


def settings_of(stop: str | Sequence[str], **values: Any) -> Settings:
    """Return the settings of a model's constructor; a single stop string is a list of one."""
    return Settings(stop=(stop,) if isinstance(stop, str) else tuple(stop or ()), **values)


def plain_path(path: Any) -> str:
    """Return a model's folder or hub name.

    Raises:
        ConfigurationError: It is empty.
    """
    text = str(path).strip().removeprefix("hf:")
    if not text:
        raise ConfigurationError(
            "LocalModel(path) expects a folder or a hub name such as 'Qwen/Qwen3-0.6B', "
            f"got {path!r}"
        )
    return str(Path(text).expanduser()) if text.startswith("~") else text


def named_path(path: Any, name: str | None) -> tuple[str, str]:
    """Return a model's path and its name, by default the path's last part."""
    plain = plain_path(path)
    return plain, name or plain.rstrip("/").rsplit("/", 1)[-1]


def check_counts(**counts: int | None) -> None:
    """Raise `ConfigurationError` unless each given value is a whole number >= 1."""
    for name, value in counts.items():
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(f"{name} must be a whole number >= 1, got {value!r}")
