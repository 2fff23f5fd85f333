"""Records as JSON lines, read with errors that name the line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from cascadellm.calibration.records import CalibrationRecord, CalibrationRecords
from cascadellm.errors import CalibrationError

__all__ = ["check_output", "read_lines", "read_records", "write_records"]

_FIELDS = frozenset(f.name for f in fields(CalibrationRecord))


def read_lines(path: str | Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (line number, object) of a JSON-lines file; blank lines are skipped.

    Raises:
        CalibrationError: The file cannot be read, or a line is not a JSON object.
    """
    try:
        with Path(path).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    data = json.loads(line)
                except ValueError as error:
                    raise CalibrationError(f"{path}, line {number}: not JSON ({error})") from error
                if not isinstance(data, dict):
                    raise CalibrationError(
                        f"{path}, line {number}: expected a JSON object, got {type(data).__name__}"
                    )
                yield number, data
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"cannot read {path}: {error}") from error


def check_output(path: str | Path, *, overwrite: bool) -> None:
    """Refuse a file that must not or cannot be written, before any work is done for it.

    Raises:
        CalibrationError: The file exists, is a folder, or lies in a folder that does not exist.
    """
    target = Path(path)
    if target.is_dir() or not target.parent.is_dir():
        fault = "is a folder" if target.is_dir() else "lies in a folder that does not exist"
        raise CalibrationError(f"{target} {fault}; name a file in an existing folder")
    if target.exists() and not overwrite:
        raise CalibrationError(f"{target} exists; choose another file or pass --force")


def read_records(path: str | Path) -> CalibrationRecords:
    """Read records, one JSON object per line with the fields of `CalibrationRecord`.

    Raises:
        CalibrationError: A line is malformed (named by number), or a name occurs twice.
    """
    rows: list[CalibrationRecord] = []
    seen: dict[str, int] = {}
    shape: tuple[int, int | None] | None = None
    names: tuple[str, ...] = ()
    for number, data in read_lines(path):
        row = _record(data, f"{path}, line {number}: ")
        if row.id is not None and row.id in seen:
            raise CalibrationError(
                f"{path}, line {number}: id {row.id!r} was given on line {seen[row.id]} already; "
                "records must be independent, so keep one of each"
            )
        if row.id is not None:
            seen[row.id] = number
        width = _width(row.score)
        found = (width, None if row.correct is None else len(row.correct))
        shape = shape or found
        if width != shape[0] or found[1] not in (None, width + 1):
            raise CalibrationError(
                f"{path}, line {number}: expected {shape[0]} score(s) and {shape[0] + 1} values in "
                f"'correct' (one per tier), got {found[0]} and {found[1]}"
            )
        for name, size in (("agree", width), ("cost", width + 1)):
            given = getattr(row, name)
            if given is not None and _width(given) != size:
                raise CalibrationError(
                    f"{path}, line {number}: expected {size} value(s) in {name!r}, got "
                    f"{_width(given)}"
                )
        rows.append(row)
        names = names or tuple(data.get("score_names") or ())
    if not rows:
        raise CalibrationError(f"{path} holds no records")
    try:
        return CalibrationRecords.from_records(rows, score_names=names)
    except CalibrationError as error:
        raise CalibrationError(f"{path}: {error}") from error


def write_records(
    path: str | Path, records: Iterable[CalibrationRecord], *, overwrite: bool = False
) -> int:
    """Write records as JSON lines and return how many.

    Raises:
        CalibrationError: The file exists and `overwrite` is False.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise CalibrationError(f"{target} exists; choose another path or pass overwrite=True")
    count = 0
    with target.open("w", encoding="utf-8") as out:
        for record in records:
            values = {f.name: _plain(getattr(record, f.name)) for f in fields(record)}
            kept = {k: v for k, v in values.items() if v not in (None, {})}
            kept.setdefault("score", None)
            out.write(json.dumps(kept, allow_nan=False) + "\n")
            count += 1
    return count


def _record(data: Mapping[str, Any], at: str) -> CalibrationRecord:
    unknown = sorted(set(data) - _FIELDS - {"score_names"})
    if unknown:
        raise CalibrationError(at + f"unknown field(s) {unknown}; known are {sorted(_FIELDS)}")
    if "score" not in data:
        raise CalibrationError(at + "the field 'score' is missing (null = no score)")
    columns = data.get("columns") or {}
    if not isinstance(columns, Mapping):
        raise CalibrationError(at + f"'columns' must be an object, got {columns!r}")
    name = data.get("id")
    return CalibrationRecord(
        score=_numbers(data["score"], "score", at),
        correct=_list_or_none(data.get("correct"), "correct", at),
        agree=_numbers(data.get("agree"), "agree", at),
        cost=_list_or_none(data.get("cost"), "cost", at),
        prompt_length=_single(data.get("prompt_length"), "prompt_length", at),
        columns={str(k): _single(v, f"columns.{k}", at) for k, v in columns.items()},
        id=None if name is None else str(name),
    )


def _single(value: Any, name: str, at: str) -> float | None:
    if value is None:
        return None
    if value in ("nan", "inf", "-inf"):
        return float(value)
    if not isinstance(value, (int, float)):
        raise CalibrationError(at + f"'{name}' must be a number or null, got {value!r}")
    return float(value)


def _numbers(value: Any, name: str, at: str) -> Any:
    if isinstance(value, list):
        return [_single(v, name, at) for v in value]
    return _single(value, name, at)


def _list_or_none(value: Any, name: str, at: str) -> list[float | None] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise CalibrationError(at + f"'{name}' must be a list in tier order, got {value!r}")
    found = [_single(v, name, at) for v in value]
    for number in found:
        if name == "correct" and number is not None and not 0 <= number <= 1:
            raise CalibrationError(at + f"'correct' must lie in [0, 1], got {number!r}")
        if name == "cost" and number is not None and not number >= 0:
            raise CalibrationError(at + f"'cost' must be >= 0 USD, got {number!r}")
    return found


def _width(score: Any) -> int:
    return len(score) if isinstance(score, list) else 1


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if value is None or isinstance(value, (str, bool)):
        return value
    if hasattr(value, "__len__"):
        return [_plain(v) for v in value]
    number = float(value)
    if math.isnan(number):
        return None
    return number if math.isfinite(number) else repr(number)
