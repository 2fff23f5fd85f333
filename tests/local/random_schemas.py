"""Random JSON schemas of the kinds that pydantic classes and function signatures give."""

from __future__ import annotations

import random
from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, create_model

__all__ = ["random_class", "random_schema", "random_tool"]

_NAMES = ("name", "count", "tags", "when", "unit", "ok", "items", "note_2", "Größe")


def random_schema(seed: int) -> dict[str, Any]:
    """Return an object schema, as `model_json_schema` writes it."""
    source = random.Random(seed)
    schema = _object(source, 2)
    if source.random() < 0.3:
        schema["$defs"] = {"Inner": _object(source, 1)}
        schema["properties"]["inner"] = {"$ref": "#/$defs/Inner"}
        schema["required"].append("inner")
    return {"title": "Answer", **schema}


def random_tool(seed: int, name: str) -> dict[str, Any]:
    """Return a tool in OpenAI form."""
    function = {"name": name, "description": "Do it.", "parameters": random_schema(seed)}
    return {"type": "function", "function": function}


def _object(source: random.Random, depth: int) -> dict[str, Any]:
    names = source.sample(_NAMES, source.randint(1, 4))
    properties = {name: _value(source, depth) for name in names}
    required = [name for name in names if "default" not in properties[name]]
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    if source.random() < 0.5:
        schema["additionalProperties"] = False
    return schema


def _value(source: random.Random, depth: int) -> dict[str, Any]:
    simple = [_text, _whole, _number, _flag, _choice, _constant, _optional]
    nested = [_list, _tuple, _mapping, _object] if depth else []
    return source.choice([*simple, *nested])(source, depth - 1)


def _text(source: random.Random, _: int) -> dict[str, Any]:
    return source.choice(
        [
            {"type": "string", "maxLength": 6},
            {"type": "string", "minLength": 2, "maxLength": 5},
            {"type": "string", "pattern": "^[a-c]{1,3}$"},
            {"type": "string", "format": "date"},
        ]
    )


def _whole(source: random.Random, _: int) -> dict[str, Any]:
    return source.choice(
        [
            {"type": "integer", "minimum": 0, "maximum": 99},
            {"type": "integer", "exclusiveMinimum": -5, "maximum": 5, "default": 3},
        ]
    )


def _number(source: random.Random, _: int) -> dict[str, Any]:
    return {"type": "number", "minimum": -1, "maximum": source.randint(1, 9)}


def _flag(source: random.Random, _: int) -> dict[str, Any]:
    return {"type": "boolean"}


def _choice(source: random.Random, _: int) -> dict[str, Any]:
    return {"enum": source.sample(["red", "green", 'a "b"', "€"], 2), "type": "string"}


def _constant(source: random.Random, _: int) -> dict[str, Any]:
    return {"const": source.choice(["cat", 3, True])}


def _optional(source: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_value(source, max(depth, 0)), {"type": "null"}], "default": None}


def _list(source: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "array", "items": _value(source, depth), "maxItems": source.randint(1, 3)}


def _tuple(source: random.Random, depth: int) -> dict[str, Any]:
    items = [_value(source, depth) for _ in range(2)]
    return {"type": "array", "prefixItems": items, "minItems": 2, "maxItems": 2}


def _mapping(source: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": _flag(source, depth), "maxProperties": 2}


class _Unit(Enum):
    METRE = "m"
    SECOND = "s"


def random_class(seed: int) -> type[BaseModel]:
    """Return a pydantic class of fields that structured output meets."""
    source = random.Random(seed)
    inner = create_model("Inner", **_fields(source, []))  # type: ignore[call-overload]
    fields = _fields(source, [inner, list[inner]])
    return create_model("Outer", __doc__="Something.", **fields)  # type: ignore[call-overload,no-any-return]


def _fields(source: random.Random, more: list[Any]) -> dict[str, Any]:
    kinds: list[Any] = [
        (Literal["red", "green", 3], ...),
        (_Unit, ...),
        (bool, False),
        (Annotated[int, Field(ge=-5, lt=50)], ...),
        (Annotated[float, Field(ge=0, le=9)], 1.5),
        (Annotated[str, Field(min_length=1, max_length=5)], ...),
        (Annotated[str, Field(pattern="^[a-c]{2}$")], ...),
        (Literal["a", "b"] | None, None),
        (Annotated[list[bool], Field(max_length=3)], ...),
        (Annotated[dict[str, bool], Field(max_length=1)], ...),
        (tuple[bool, Literal[1]], ...),
        *((Annotated[kind, Field()], ...) for kind in more),
    ]
    chosen = source.sample(kinds, 3) + ([kinds[-2]] if more else [])
    return {f"field_{place}": kind for place, kind in enumerate(chosen)}
