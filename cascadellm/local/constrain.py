"""Answers and tool calls that fit a JSON schema by construction, through xgrammar.

A token that would leave the grammar gets probability 0 before any other processor reads the row.
Scores of the answer stay those of the model's own law, so a forced token shows as improbable.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor

from cascadellm.errors import ConfigurationError, MissingDependencyError, ModelError
from cascadellm.local.chat import Prompt
from cascadellm.local.families import tool_form
from cascadellm.local.settings import Settings

__all__ = ["GrammarProcessor", "Grammars"]

# between two parts of JSON; a small model may otherwise write nothing but space
_MOST_SPACE = 1


class Grammars:
    """Compiles and keeps the grammars of one model.

    Args:
        tokenizer: The model's tokenizer.
        width: Number of logits per row, padding ids included.
        eos_ids: Tokens that end an answer.

    Raises:
        MissingDependencyError: xgrammar is not installed.
    """

    def __init__(self, tokenizer: Any, width: int, eos_ids: frozenset[int]) -> None:
        try:
            import xgrammar
        except ImportError as error:
            raise MissingDependencyError.for_extra("xgrammar", "structured") from error
        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=width, stop_token_ids=sorted(eos_ids)
        )
        self._width = width
        self._compiler = xgrammar.GrammarCompiler(info)
        self._matcher: Any = xgrammar.GrammarMatcher
        self._compiling = threading.Lock()

    def processor(
        self, prompt: Prompt, settings: Settings, template: str, start: int
    ) -> GrammarProcessor:
        """Return a fresh processor for one answer.

        Args:
            prompt: What is answered.
            settings: Says which parts are constrained.
            template: The chat template, which tells how tool calls are written.
            start: Length of the text before the answer, as processors see it.

        Raises:
            ConfigurationError: A schema cannot be compiled, or the form of tool calls is unknown.
        """
        form = _form(prompt, settings, template)
        try:
            with self._compiling:
                grammar = self._compiler.compile_structural_tag(
                    {"type": "structural_tag", "format": form}
                )
        except Exception as error:
            short = " ".join(str(error).split())[:300]
            raise ConfigurationError(
                f"xgrammar cannot turn the schema into a grammar ({short}); simplify "
                "response_schema or the tools' parameters, or ask without constraints"
            ) from error
        return GrammarProcessor(self._matcher(grammar), self._width, start)


class GrammarProcessor(LogitsProcessor):
    """Gives tokens outside the grammar probability 0.

    It follows the text from call to call, also backwards, so rows may be asked for in the
    order of a draft that is verified and shortened.

    Args:
        matcher: An xgrammar matcher, at the start of the answer.
        width: Number of logits per row that the grammar knows.
        start: Length of the text before the answer.
    """

    def __init__(self, matcher: Any, width: int, start: int) -> None:
        import xgrammar

        self._matcher = matcher
        self._start = start
        self._written: list[int] = []
        self._mask = xgrammar.allocate_token_bitmask(1, width)
        self._apply = xgrammar.apply_token_bitmask_inplace

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the row, shape (1, vocab), that follows `input_ids`, shape (1, length)."""
        self._follow(input_ids[0, self._start :].tolist())
        if self._matcher.is_terminated():
            return scores
        self._matcher.fill_next_token_bitmask(self._mask)
        device = scores.device
        place = device if device.type in ("cpu", "cuda") else torch.device("cpu")
        masked = scores.to(place, copy=True)
        self._apply(masked, self._mask.to(place))
        return masked.to(device)

    def _follow(self, text: Sequence[int]) -> None:
        """Bring the matcher to the end of this text."""
        same = 0
        for ours, token in zip(self._written, text, strict=False):
            if ours != token:
                break
            same += 1
        if same < len(self._written):
            self._matcher.rollback(len(self._written) - same)
            del self._written[same:]
        for token in text[same:]:
            if self._matcher.is_terminated():
                return
            if not self._matcher.accept_token(token):
                raise ModelError(
                    f"token {token} does not fit the grammar of this answer; processors must be "
                    "applied to every row that tokens are taken from"
                )
            self._written.append(token)


def _form(prompt: Prompt, settings: Settings, template: str) -> dict[str, Any]:
    """Return xgrammar's description of what may be written."""
    schema = settings.response_schema
    tools = _tool_tags(prompt.tools, template) if prompt.tools else None
    if schema is None:
        assert tools is not None
        return {"type": "triggered_tags", **tools}
    answer = _json(schema)
    if prompt.thinking:
        thought = {"type": "tag", "begin": "", "content": {"type": "any_text"}, "end": "</think>"}
        space = {"type": "regex", "pattern": "\\s{0,4}"}
        answer = {"type": "sequence", "elements": [thought, space, answer]}
    if tools is None or not settings.constrain_tools:
        return answer
    calls = {
        "type": "tags_with_separator",
        "tags": tools["tags"],
        "separator": "\n",
        "at_least_one": True,
    }
    return {"type": "or", "elements": [calls, answer]}


def _tool_tags(tools: Sequence[Mapping[str, Any]], template: str) -> dict[str, Any]:
    form = tool_form(template)
    if form is None:
        raise ConfigurationError(
            "constrain_tools knows how Hermes, Qwen and Llama 3 models write tool calls, but not "
            "the form of this chat template; ask without constrain_tools"
        )
    trigger, begin, end = form
    tags = []
    for tool in tools:
        function = tool.get("function", tool)
        schema = function.get("parameters") or {"type": "object", "properties": {}}
        opening = begin.replace("NAME", function["name"])
        tags.append({"type": "tag", "begin": opening, "content": _json(schema), "end": end})
    return {"triggers": [trigger], "tags": tags}


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": dict(schema),
        "max_whitespace_cnt": _MOST_SPACE,
    }
