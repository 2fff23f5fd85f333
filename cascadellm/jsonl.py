"""Append-only files of JSON lines: whole lines only, rotation, and a forgiving reader."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascadellm.errors import ConfigurationError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no advisory locks
    fcntl = None  # type: ignore[assignment]

__all__ = ["BadLine", "LineFile", "encode_line", "generations", "read_jsonl"]


def encode_line(data: Mapping[str, Any]) -> bytes:
    """Return one JSON line; a lone surrogate, which UTF-8 cannot hold, becomes its escape."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8", "backslashreplace")


class LineFile:
    """Appends whole lines to a file that several threads and processes may share.

    A process killed while it writes can leave at most one torn line at the end; whoever
    writes next removes it, so no torn line ever stands between whole ones.

    Args:
        path: File to append to; its folder is made when missing.
        max_bytes: Size at which the file is renamed to `<path>.1`; None = never.
        backups: Renamed files that are kept; `.1` is the newest.

    Raises:
        ConfigurationError: A number is out of range.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, max_bytes: int | None = None, backups: int = 5
    ) -> None:
        if max_bytes is not None and max_bytes < 1:
            raise ConfigurationError(f"max_bytes must be >= 1 or None, got {max_bytes!r}")
        if backups < 1:
            raise ConfigurationError(f"backups must be >= 1, got {backups!r}")
        self.path = Path(path)
        self.max_bytes = max_bytes
        self.backups = backups
        self._lock = threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, line: bytes) -> None:
        """Write one line that ends in a newline.

        Raises:
            OSError: The file cannot be written; nothing of the line is left in it.
        """
        with self._lock:
            with self._opened() as (descriptor, size):
                if self.max_bytes is None or size == 0 or size + len(line) <= self.max_bytes:
                    _write_whole(descriptor, line, size)
                    return
                # renamed while still locked, so no other process writes in between
                self._rotate()
            with self._opened() as (descriptor, size):
                _write_whole(descriptor, line, size)

    @contextmanager
    def _opened(self) -> Iterator[tuple[int, int]]:
        """Open and lock the current file; yield its descriptor and its whole size."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                _lock_file(descriptor)
                if self._is_current(descriptor):
                    yield descriptor, _without_torn_line(descriptor)
                    return
            finally:
                os.close(descriptor)

    def _is_current(self, descriptor: int) -> bool:
        """Return whether the path still names this file, which a rotation changes."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def _rotate(self) -> None:
        for number in range(self.backups - 1, 0, -1):
            with suppress(FileNotFoundError):
                Path(f"{self.path}.{number}").replace(f"{self.path}.{number + 1}")
        self.path.replace(f"{self.path}.1")


def _lock_file(descriptor: int) -> None:
    if fcntl is not None:
        # some network file systems refuse locks; appending still works there
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def _without_torn_line(descriptor: int) -> int:
    """Cut what a killed process left behind the last newline; return the size."""
    size = os.fstat(descriptor).st_size
    end = size
    while end > 0:
        start = max(0, end - 65536)
        os.lseek(descriptor, start, os.SEEK_SET)
        place = os.read(descriptor, end - start).rfind(b"\n")
        if place >= 0:
            end = start + place + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)
    return end


def _write_whole(descriptor: int, line: bytes, size: int) -> None:
    left = memoryview(line)
    try:
        while left:
            left = left[os.write(descriptor, left) :]
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that holds no record.

    Attributes:
        file: The file.
        number: Line number, from 1.
        reason: What is wrong with it.
    """

    file: Path
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number}: {self.reason}"


def generations(path: str | os.PathLike[str]) -> list[Path]:
    """Return the file and its rotated predecessors that exist, oldest first."""
    path = Path(path)
    numbered = []
    for other in path.parent.glob(f"{path.name}.*"):
        suffix = other.name[len(path.name) + 1 :]
        if suffix.isdigit():
            numbered.append((int(suffix), other))
    older = [other for _, other in sorted(numbered, reverse=True)]
    return [*older, path] if path.exists() else older


def read_jsonl(
    path: str | os.PathLike[str],
    *,
    check: Callable[[Mapping[str, Any]], str | None] | None = None,
) -> tuple[list[dict[str, Any]], list[BadLine]]:
    """Read a file of JSON lines; a line that is no JSON object is reported, never raised.

    Args:
        path: The file.
        check: Says what is wrong with an object; None = nothing.

    Returns:
        The objects, and the lines that are none.

    Raises:
        OSError: The file cannot be read.
    """
    path = Path(path)
    rows: list[dict[str, Any]] = []
    bad: list[BadLine] = []
    # split at newlines only: U+2028 may stand inside a JSON string
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            bad.append(BadLine(path, number, f"no JSON: {error}"))
            continue
        if not isinstance(value, dict):
            bad.append(BadLine(path, number, f"a JSON object is expected, got {_kind(value)}"))
            continue
        fault = check(value) if check is not None else None
        if fault is None:
            rows.append(value)
        else:
            bad.append(BadLine(path, number, fault))
    return rows, bad


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
