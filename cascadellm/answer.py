"""The records: what is asked, what is answered, what was decided, what is left behind.

All values are frozen. The framework's own messages travel untouched in
`Request.native` and `Answer.native`; neutral text exists for scores, judges and logs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from operator import attrgetter
from typing import Any, Literal

__all__ = [
    "Answer",
    "Attempt",
    "Decision",
    "Part",
    "Piece",
    "Request",
    "SideCall",
    "TokenScore",
    "ToolCall",
    "Trace",
    "Usage",
]

Part = Literal["answer", "reasoning", "arguments", "other"]
"""What a token belongs to: `arguments` = a tool call, `other` = template scaffolding."""

Action = Literal["accept", "escalate", "skip", "error", "stopped"]


@dataclass(frozen=True, slots=True)
class TokenScore:
    """One generated token and how likely the model found it.

    Attributes:
        token: The token's text.
        logprob: Log-probability of this token. Unit: nats.
        top: Likeliest alternatives as (text, logprob), best first; empty if unknown.
        entropy: Entropy of the next-token law in nats, None if unknown.
        part: What the token belongs to.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    entropy: float | None = None
    part: Part = "answer"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call that a model asks for.

    Attributes:
        name: Name of the tool.
        arguments: Parsed arguments; None when `raw` is not a JSON object.
        id: Identifier of the call, empty if the model gives none.
        raw: The arguments as written.
    """

    name: str
    arguments: Mapping[str, Any] | None
    id: str = ""
    raw: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, as its provider counts them."""

    input_tokens: int
    output_tokens: int

    @property
    def total_tokens(self) -> int:
        """Input plus output tokens."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the cascade.

    Attributes:
        native: The framework's own messages, or chat dicts for local models.
        text_source: Neutral text of the conversation, or a function that makes it;
            it is only called when a policy, gate or log reads `text`.
        tools: Tool specifications in OpenAI form.
        tool_required: Whether the answer must call a tool.
        response_schema: JSON schema that the answer must satisfy, or None.
        parser: Called with the answer's text by validity policies; raises if unusable.
        documents: Retrieved passages, for policies that check support.
        input_tokens: Length of the prompt where it is known.
        metadata: The caller's own keys (user, thread, ...), for budgets and routing.
        kwargs: Call arguments for every tier (stop, temperature, ...).
    """

    native: Any
    text_source: str | Callable[[], str] = ""
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_required: bool = False
    response_schema: Mapping[str, Any] | None = None
    parser: Callable[[str], Any] | None = None
    documents: tuple[str, ...] = ()
    input_tokens: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Neutral text of the conversation."""
        source = self.text_source
        return source if isinstance(source, str) else source()


@dataclass(frozen=True, slots=True)
class Answer:
    """What one tier said.

    Attributes:
        text: The answer without its reasoning block.
        tokens: Token scores in order; None when the provider gave none.
        tool_calls: Tool calls asked for.
        usage: Tokens of the call; None when unknown.
        finish_reason: `stop`, `length`, `tool_calls`, `content_filter`, ... or None.
        refusal: The provider's own refusal text, or None.
        reasoning: The reasoning block, or None.
        native: The framework's own message.
        spans: Who wrote what in a token-level cascade: (start, end, name) in characters.
        speculation: Counters of a token-level cascade.
    """

    text: str
    tokens: tuple[TokenScore, ...] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage | None = None
    finish_reason: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    native: Any = None
    spans: tuple[tuple[int, int, str], ...] | None = None
    speculation: Mapping[str, Any] | None = None

    def over(self, part: Literal["answer", "arguments", "all"]) -> Answer:
        """Return this answer with only the tokens of one part.

        `answer` is everything outside the reasoning block (tool calls included when the
        answer is nothing else); `arguments` only the tool calls' tokens.
        """
        if self.tokens is None or part == "all":
            return self
        if part == "arguments":
            kept = tuple(t for t in self.tokens if t.part == "arguments")
        else:
            kept = tuple(t for t in self.tokens if t.part == "answer")
            if not kept:
                kept = tuple(t for t in self.tokens if t.part == "arguments")
        return self if len(kept) == len(self.tokens) else replace(self, tokens=kept)

    def _repr_html_(self) -> str:
        """Show the answer in a notebook, coloured by who wrote it."""
        from cascadellm.report.provenance import answer_fragment

        return str(answer_fragment(self))


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a streamed answer.

    Attributes:
        text: New characters of the answer.
        reasoning: New characters of the reasoning block.
        answer: The whole answer, on the last piece only.
        tokens: Scores of the new tokens, where the model can give them while it writes; a
            draft can be stopped or committed to early only with them.
        input_tokens: Length of the prompt, where the model knows it before the end.
    """

    text: str = ""
    reasoning: str = ""
    answer: Answer | None = None
    tokens: tuple[TokenScore, ...] = ()
    input_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What a deferral policy decided about one answer.

    Attributes:
        defer: True when the next tier must answer.
        policy: Name of the policy (of the part that decided, in a combination).
        score_name: Name of the score read, or None.
        score: Its value (unit of the score), None when missing.
        threshold: Accept iff score >= threshold.
        code: Machine-readable reason: `score`, `no_logprobs`, `invalid`, ...
        reason: The same as a sentence.
        goto: Index of the tier to go to when deferring; None = the next one.
        answer: Another answer to keep in place of the draft (voting policies), or None.
        latency_s: Time the decision took.
    """

    defer: bool
    policy: str
    score_name: str | None = None
    score: float | None = None
    threshold: float | None = None
    code: str = "score"
    reason: str = ""
    goto: int | None = None
    answer: Answer | None = None
    latency_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data (without `goto` and `answer`)."""
        return _plain(self, skip=("goto", "answer"))


@dataclass(frozen=True, slots=True)
class SideCall:
    """A paid call beside the tiers' own: a judge, a resample, a lost race."""

    name: str
    purpose: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    latency_s: float = 0.0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """What happened at one tier during one call. Times in seconds, cost in USD."""

    tier: int
    name: str
    action: Action
    policy: str | None = None
    score_name: str | None = None
    score: float | None = None
    threshold: float | None = None
    code: str | None = None
    reason: str = ""
    latency_s: float = 0.0
    first_token_s: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    error: str | None = None
    calls: tuple[SideCall, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return _plain(self)


@dataclass(frozen=True, slots=True)
class Trace:
    """What one call of the cascade leaves behind.

    Attributes:
        answered_by: Name of the tier that answered; None when every tier failed.
        tier: Its index; None when every tier failed.
        escalated: Whether a tier after the first was asked or wrote some character.
        attempts: What happened at each tier, in order.
        latency_s: Time of the whole call.
        cost_usd: Sum over all paid calls; None where a price or usage is unknown.
        tokens_by_tier: Name -> {"input": n, "output": n}.
        spans: (start, end, name): who wrote which characters of the answer.
        speculation: Counters of a token-level cascade, or None.
        run_id: Id of the call, where feedback on it is taken (see `FeedbackLoop`), or None.
    """

    answered_by: str | None
    tier: int | None
    escalated: bool
    attempts: tuple[Attempt, ...]
    latency_s: float
    cost_usd: float | None
    tokens_by_tier: Mapping[str, Mapping[str, int]]
    spans: tuple[tuple[int, int, str], ...] = ()
    speculation: Mapping[str, Any] | None = None
    run_id: str | None = None

    @property
    def decided(self) -> Attempt | None:
        """The last attempt that a policy scored, which is what a reader asks for."""
        for attempt in reversed(self.attempts):
            if attempt.policy is not None:
                return attempt
        return None

    @property
    def abandoned(self) -> bool:
        """Whether the caller left before the end: a closed stream, a cancelled task."""
        return bool(self.attempts) and self.attempts[-1].code == "abandoned"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data: dict, list, str, finite number, bool, None."""
        data = _plain(self)
        if self.speculation is None:
            del data["speculation"]
        if self.run_id is None:
            del data["run_id"]
        return data

    def to_html(self, text: str | None = None) -> str:
        """Return an HTML page that shows who wrote what.

        Args:
            text: The answer; without it, the tokens of a token-level record are shown.
        """
        from cascadellm.report.provenance import trace_page

        return trace_page(self, text)

    def _repr_html_(self) -> str | None:
        """Show a token-level record in a notebook; None leaves any other to its repr."""
        if not (self.speculation or {}).get("tokens"):
            return None
        from cascadellm.report.provenance import trace_fragment

        return str(trace_fragment(self))


_AS_IS = frozenset({str, int, bool, type(None)})


def _plain(value: Any, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    names, read = _reader(type(value), skip)  # type: ignore[arg-type]
    pairs = zip(names, read(value), strict=True)
    return {name: one if type(one) in _AS_IS else _json(one) for name, one in pairs}


@cache
def _reader(cls: Any, skip: tuple[str, ...]) -> tuple[tuple[str, ...], attrgetter[Any]]:
    names = tuple(f.name for f in fields(cls) if f.name not in skip)
    return names, attrgetter(*names)


def _json(value: Any) -> Any:
    kind = type(value)
    if kind in _AS_IS:
        return value
    if kind is float or isinstance(value, float):
        # JSON has no infinity or NaN; a checkpointer would fail on them
        return value if value - value == 0 else repr(value)
    if isinstance(value, (list, tuple)):
        return [_json(v) for v in value]
    if kind is Attempt:
        return value.to_dict()
    if kind is SideCall:
        return asdict(value)
    if kind is dict or isinstance(value, Mapping):
        return {str(k): _json(v) for k, v in value.items()}
    if getattr(value, "ndim", None) == 0:
        # a number that numpy or torch computed
        return _json(value.item())
    return value if isinstance(value, (str, int)) else str(value)
