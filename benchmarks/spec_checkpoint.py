"""Measurements that survive an interrupted run: one file per study, rewritten after each prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

_LISTS = ("seconds", "right", "tokens", "counts", "texts")


class Measured(Protocol):
    """What a study measures of one method."""

    @property
    def name(self) -> str:
        """Its name within the study."""


@dataclass(slots=True)
class Checkpoint:
    """A study's measurements on disk.

    Attributes:
        path: The file; None keeps nothing.
        layers: Decoder layers of the target that was measured, or None.
        methods: Method name -> its lists, one entry per finished prompt.
    """

    path: Path | None = None
    layers: int | None = None
    methods: dict[str, dict[str, list[Any]]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path | None, title: str) -> Checkpoint:
        """Open a study's file in a folder, with what an earlier run left there."""
        if folder is None:
            return cls()
        path = folder / f"{''.join(c if c.isalnum() else '-' for c in title)}.json"
        if not path.exists():
            return cls(path)
        data = json.loads(path.read_text())
        return cls(path, data["layers"], data["methods"])

    def restore(self, methods: Sequence[Measured]) -> int:
        """Give the methods their earlier measurements; return how many prompts are finished."""
        if not self.methods:
            return 0
        if self.methods.keys() != {method.name for method in methods}:
            raise SystemExit(f"{self.path} holds other methods; give another --checkpoint folder")
        for method in methods:
            for key in _LISTS:
                setattr(method, key, self.methods[method.name][key])
        return len(self.methods[methods[0].name]["right"])

    def save(self, methods: Sequence[Measured]) -> None:
        """Write what has been measured."""
        if self.path is None:
            return
        self.methods = {m.name: {key: getattr(m, key) for key in _LISTS} for m in methods}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        begun = self.path.with_suffix(".tmp")
        begun.write_text(json.dumps({"layers": self.layers, "methods": self.methods}))
        begun.replace(self.path)
