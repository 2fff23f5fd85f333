"""`with_structured_output` by function calling, JSON schema or JSON mode."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from types import MappingProxyType
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from cascadellm.errors import ConfigurationError

__all__ = ["structured_output"]

_METHODS = ("function_calling", "json_schema", "json_mode")


def structured_output(
    model: BaseChatModel,
    schema: Any,
    *,
    method: str | None,
    include_raw: bool,
    strict: bool | None,
    rest: dict[str, Any],
    bound: Mapping[str, Any] = MappingProxyType({}),
) -> Runnable[LanguageModelInput, Any]:
    """Return a model that answers with objects of a schema.

    Args:
        model: The chat model.
        schema: A pydantic class, a `TypedDict`, or a JSON schema with a title.
        method: `function_calling` (the default), `json_schema` or `json_mode`.
        include_raw: Whether the message, the object and the parser's error are all returned.
        strict: As providers read it.
        rest: Arguments that are not known.
        bound: Further call arguments of the model.

    Raises:
        ConfigurationError: The method is unknown.
    """
    if rest:
        raise ValueError(f"Received unsupported arguments {rest}")
    method = method or "function_calling"
    if method not in _METHODS:
        raise ConfigurationError(f"method must be one of {', '.join(_METHODS)}, got {method!r}")
    shown = {"kwargs": {"method": method}, "schema": schema}
    options: dict[str, Any] = {"ls_structured_output_format": shown, **bound}
    if strict is not None:
        options["strict"] = strict
    calls = method == "function_calling"
    if calls:
        llm = model.bind_tools([schema], tool_choice="any", **options)
    else:
        # the Responses API and other providers know `strict` inside the format only
        options.pop("strict", None)
        llm = model.bind(response_format=_response_format(schema, method, strict), **options)
    parser = _parser(schema, calls=calls)
    if not include_raw:
        chain: Runnable[LanguageModelInput, Any] = llm | parser
        return chain
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _response_format(schema: Any, method: str, strict: bool | None) -> dict[str, Any]:
    if method == "json_mode":
        return {"type": "json_object"}
    function = convert_to_openai_tool(schema, strict=strict)["function"]
    inner: dict[str, Any] = {"name": function["name"], "schema": function["parameters"]}
    if function.get("description"):
        inner["description"] = function["description"]
    if strict is not None:
        inner["strict"] = strict
    return {"type": "json_schema", "json_schema": inner}


def _parser(schema: Any, *, calls: bool) -> Any:
    pydantic = isinstance(schema, type) and is_basemodel_subclass(schema)
    if not calls:
        return PydanticOutputParser(pydantic_object=schema) if pydantic else JsonOutputParser()
    if pydantic:
        return PydanticToolsParser(tools=[schema], first_tool_only=True)
    name = convert_to_openai_tool(schema)["function"]["name"]
    return JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
