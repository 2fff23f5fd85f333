"""SpeculativePair: two local models that answer together; torch comes with the models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from cascadellm.answer import Answer, Piece
from cascadellm.errors import ConfigurationError
from cascadellm.local.model import LocalModel
from cascadellm.local.rules import Rule, TokenV3
from cascadellm.local.settings import Settings
from cascadellm.local.speculative import check_gamma, check_rule

if TYPE_CHECKING:
    from types import TracebackType

    from cascadellm.local.pair_runner import PairRunner

__all__ = ["SequentialPair", "SpeculativePair"]

Tools = Sequence[Mapping[str, Any]]


class SpeculativePair:
    """A small and a large local model as one: the small drafts, the large verifies.

    It has the interface of `LocalModel`, so it is a model of its own or one tier of a longer
    cascade. Settings, chat template and end tokens are the target's; temperature, top-k,
    top-p and penalties act on both models alike. Token scores are those of the target
    distribution at temperature 1. `Answer.spans` says which characters each model wrote,
    `Answer.speculation` counts the work.

    Args:
        draft: The small model.
        target: The large model.
        rule: Which law the tokens follow.
        gamma: Drafted tokens per verify call, or `adaptive`.
        block_verification: Verify whole blocks (above temperature 0).
        name: Name of the pair; `draft+target` when not given.
        names: Names of the two models in `spans`; their own when not given.
        candidates: Likeliest tokens of each model kept per token for provenance views; 0 = none.

    Raises:
        ConfigurationError: An argument is wrong, or the models cannot decode together.
        VocabularyMismatchError: Their vocabularies differ.
    """

    def __init__(
        self,
        draft: LocalModel,
        target: LocalModel,
        rule: Rule | None = None,
        gamma: int | Literal["adaptive"] = 5,
        *,
        block_verification: bool = False,
        name: str | None = None,
        names: tuple[str, str] | None = None,
        candidates: int = 3,
    ) -> None:
        rule = TokenV3() if rule is None else rule
        check_rule(rule)
        check_gamma(gamma)
        self._runner = _runner(
            draft, target, rule, gamma=gamma, block=block_verification, names=names,
            candidates=candidates,
        )  # fmt: skip
        self._name = name or "+".join(self._runner.names)

    def __repr__(self) -> str:
        runner = self._runner
        return f"{type(self).__name__}({self._name!r}, {runner.rule!r}, gamma={runner.gamma!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> SpeculativePair:
        """Return this very pair: copies of a chain share the loaded models."""
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close both models and free their device."""
        self._runner.close()

    @property
    def model_name(self) -> str:
        """Name of the pair."""
        return self._name

    @property
    def draft(self) -> LocalModel:
        """The small model."""
        return self._runner.draft

    @property
    def target(self) -> LocalModel:
        """The large model."""
        return self._runner.target

    @property
    def rule(self) -> Rule:
        """The deferral rule."""
        return self._runner.rule

    @property
    def gamma(self) -> int | Literal["adaptive"]:
        """Drafted tokens per verify call."""
        return self._runner.gamma

    @property
    def context_window(self) -> int:
        """Most tokens of prompt plus answer that both models read."""
        return self._runner.context_window

    def settings(self, **overrides: Any) -> Settings:
        """Return the target's settings, changed for one call; None keeps a value."""
        return self.target.settings(**overrides)

    def generate(self, messages: Any, *, tools: Tools | None = None, **overrides: Any) -> Answer:
        """Answer once; arguments and errors as in `LocalModel.generate`."""
        return self._runner.answer(messages, tools, self.settings(**overrides))

    def stream(
        self, messages: Any, *, tools: Tools | None = None, **overrides: Any
    ) -> Iterator[Piece]:
        """Yield text as tokens are accepted; the last piece carries the whole answer."""
        return self._runner.pieces(messages, tools, self.settings(**overrides))

    def batch(
        self, requests: Sequence[Any], *, tools: Tools | None = None, **overrides: Any
    ) -> list[Answer]:
        """Answer many requests, one after the other, each from the same seed."""
        settings = self.settings(**overrides)
        return [self._runner.answer(messages, tools, settings) for messages in requests]

    async def agenerate(
        self, messages: Any, *, tools: Tools | None = None, **overrides: Any
    ) -> Answer:
        """Answer once in a thread; cancelling the task stops the models within one round."""
        from cascadellm.local import aio

        settings = self.settings(**overrides)
        return await aio.run(lambda gone: self._runner.answer(messages, tools, settings, gone))

    async def abatch(
        self, requests: Sequence[Any], *, tools: Tools | None = None, **overrides: Any
    ) -> list[Answer]:
        """Answer many requests as `batch` does, in a thread."""
        from cascadellm.local import aio

        settings, runner = self.settings(**overrides), self._runner
        return await aio.run(
            lambda gone: [runner.answer(messages, tools, settings, gone) for messages in requests]
        )

    def astream(
        self, messages: Any, *, tools: Tools | None = None, **overrides: Any
    ) -> AsyncIterator[Piece]:
        """Yield text as tokens are accepted, from a thread."""
        from cascadellm.local import aio

        settings = self.settings(**overrides)
        return aio.stream(lambda gone: self._runner.pieces(messages, tools, settings, gone))


class SequentialPair(SpeculativePair):
    """The same law, one token after the other: the baseline that speculation is compared to.

    Args:
        draft: The small model.
        target: The large model.
        rule: Which law the tokens follow.
        name: Name of the pair; `draft+target` when not given.
        names: Names of the two models in `spans`; their own when not given.
        candidates: As in `SpeculativePair`.

    Raises:
        ConfigurationError: As `SpeculativePair`.
    """

    def __init__(
        self,
        draft: LocalModel,
        target: LocalModel,
        rule: Rule | None = None,
        *,
        name: str | None = None,
        names: tuple[str, str] | None = None,
        candidates: int = 3,
    ) -> None:
        super().__init__(draft, target, rule, 1, name=name, names=names, candidates=candidates)
        self._runner.sequential = True


def _runner(draft: Any, target: Any, rule: Rule, **options: Any) -> PairRunner:
    for role, model in (("draft", draft), ("target", target)):
        if not isinstance(model, LocalModel):
            raise ConfigurationError(
                f"the {role} of a pair must be a LocalModel, got a {type(model).__name__}"
            )
    from cascadellm.local.pair_runner import PairRunner

    return PairRunner(draft, target, rule, **options)
