"""Policies: polarity, combination, plain callables, async policies, configs."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import pytest

from cascadellm import (
    AllOf,
    Always,
    Answer,
    AnyOf,
    Cascade,
    ConfigurationError,
    Custom,
    Decision,
    Never,
    Policy,
    Request,
    ScoreUnavailableError,
    Threshold,
    TokenScore,
    Valid,
    margin,
    mean_logprob,
    min_logprob,
    quantile_logprob,
)
from cascadellm.policies import Moment, policy_from_config
from cascadellm.testing import FakeModel
from tests.engine.running import MODES, run

CHOW = Threshold(mean_logprob, -0.35)


def decide(policy: Any, answer: Answer | None = None, mode: str = "invoke") -> Decision:
    """Return what a policy decides about an answer, as the cascade records it."""
    said = answer if answer is not None else Answer("fine", finish_reason="stop")
    cascade = Cascade([FakeModel(said, name="a"), FakeModel("b", name="b")], policy)
    first = run(cascade, mode).trace.attempts[0]
    return Decision(
        first.action == "escalate",
        first.policy or "",
        score=first.score,
        threshold=first.threshold,
        score_name=first.score_name,
        code=first.code or "",
        reason=first.reason,
    )


def scored(*logprobs: float, part: Any = "answer") -> Answer:
    """Return an answer with these token log-probabilities."""
    tokens = tuple(TokenScore("x", value, part=part) for value in logprobs)
    return Answer("x" * len(logprobs), tokens=tokens)


# --- combination --------------------------------------------------------------------------


@pytest.mark.parametrize("left", [Always(), Never()])
@pytest.mark.parametrize("right", [Always(), Never()])
def test_combination_when_parts_defer_or_accept(left: Policy, right: Policy) -> None:
    """`|`, `&` and `~` follow the truth table of "defers"."""
    first, second = left == Always(), right == Always()

    assert (first or second) == decide(left | right).defer
    assert (first and second) == decide(left & right).defer
    assert (not first) == decide(~left).defer


@pytest.mark.parametrize("broken", [AllOf, AnyOf])
def test_combination_when_and_is_swapped_with_or(broken: type[Policy]) -> None:
    """The truth table has power: AllOf in the place of AnyOf, and the reverse, is noticed."""
    parts = (Always(), Never())
    right = decide((AnyOf if broken is AllOf else AllOf)(parts)).defer

    assert right != decide(broken(parts)).defer  # type: ignore[call-arg]


def test_combination_when_a_part_decides() -> None:
    """The decision names the part that decided."""
    assert "Always" == decide(Valid() | Always()).policy
    assert "Valid" == decide(Always() & Valid()).policy
    assert "not Always" == decide(~Always()).policy
    assert "Threshold" == decide(Valid() | CHOW, scored(-0.1)).policy
    assert -0.1 == decide(Valid() | CHOW | Valid(), scored(-0.1)).score


def test_combination_when_an_earlier_part_decides() -> None:
    """Parts after the one that decides are not asked."""
    asked: list[str] = []

    def count(answer: Answer) -> bool:
        asked.append("count")
        return False

    assert decide(Always() | count).defer
    assert [] == asked
    assert not decide(Never() & count).defer
    assert [] == asked
    decide(Never() | count)
    assert ["count"] == asked


def test_combination_when_a_plain_function_stands_left() -> None:
    """Functions combine with policies from both sides."""

    def yes(answer: Answer) -> bool:
        return True

    assert decide(yes | Never()).defer
    assert not decide(yes & Never()).defer
    assert AnyOf((Custom(yes), Never())) == (yes | Never())


@pytest.mark.parametrize("kind", [AllOf, AnyOf])
def test_combination_when_it_is_empty(kind: Any) -> None:
    """A combination of nothing is refused."""
    with pytest.raises(ConfigurationError, match="at least one policy"):
        kind(())


def test_combination_when_a_part_decides_per_token() -> None:
    """A token-level policy needs a boundary of its own."""

    class PerToken(Policy):
        level = "token"

    with pytest.raises(ConfigurationError, match="boundary of its own"):
        _ = Valid() | PerToken()


def test_combination_when_parts_read_scores() -> None:
    """A combination reads what its parts read."""
    wanted = frozenset({"logprobs", "top_logprobs"})

    assert wanted == (Valid() | CHOW | Threshold(margin, 0.1)).reads
    assert wanted == (CHOW & ~Threshold(margin, 0.1)).reads


@pytest.mark.parametrize(("combine", "skipped"), [(AnyOf, True), (AllOf, False)])
def test_combination_when_one_part_routes(combine: Any, skipped: bool) -> None:
    """AnyOf skips when one part does; AllOf only when every part does."""

    @dataclass(frozen=True)
    class Away(Policy):
        def before(self, moment: Moment) -> Decision:
            return Decision(True, "Away")

    def first_action(policy: Policy) -> str:
        cascade = Cascade([FakeModel("a", name="a"), FakeModel("b", name="b")], policy)
        return run(cascade).trace.attempts[0].action

    assert skipped == (first_action(combine((Never(), Away()))) == "skip")
    assert "skip" == first_action(combine((Away(), Away())))


def test_watch_when_parts_watch() -> None:
    """AnyOf follows the first watcher that speaks up; without watchers there is none."""

    @dataclass(frozen=True)
    class Says(Policy):
        verdict: str

        def watch(self, moment: Moment) -> Any:
            return lambda answer: self.verdict

    moment = Moment(Request("x"), 0, "a", ())
    watch = AnyOf((Says("go_on"), Valid(), Says("stop"), Says("commit"))).watch(moment)

    assert watch is not None
    assert "stop" == watch(Answer(""))
    quiet = AnyOf((Says("go_on"), Never())).watch(moment)
    assert quiet is not None
    assert "go_on" == quiet(Answer(""))
    assert None is AnyOf((Never(),)).watch(moment)


# --- plain callables ------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "defers"), [(True, True), (False, False)])
def test_callable_when_it_returns_a_bool(value: bool, defers: bool) -> None:
    """True defers, False accepts."""

    def judge(answer: Answer) -> bool:
        return value

    decision = decide(judge)

    assert (defers, "judge", "custom") == (decision.defer, decision.policy, decision.code)


def test_callable_when_it_returns_a_numpy_bool() -> None:
    """Numpy's bool counts as a bool."""
    numpy = pytest.importorskip("numpy")

    assert decide(lambda answer: numpy.bool_(True)).defer


def test_callable_when_it_returns_a_decision() -> None:
    """A Decision passes as it is."""
    said = Decision(True, "mine", score=0.3, threshold=0.5, code="own", reason="because")
    found = decide(lambda answer: said)

    assert ("mine", 0.3, 0.5, "own") == (found.policy, found.score, found.threshold, found.code)


@pytest.mark.parametrize("value", [0.7, 1, None, "defer"])
def test_callable_when_it_returns_a_number(value: Any) -> None:
    """A number says nothing about its polarity and is refused with the remedy."""

    def score(answer: Answer) -> Any:
        return value

    with pytest.raises(ConfigurationError, match=r"belongs in Threshold\(score, threshold\)"):
        decide(score)


@pytest.mark.parametrize("value", [Always, Valid])
def test_policy_when_the_class_is_given(value: Any) -> None:
    """The class in place of an object is refused with the remedy."""
    with pytest.raises(ConfigurationError, match=f"write {value.__name__}"):
        Cascade([FakeModel(), FakeModel()], value)


@pytest.mark.parametrize("value", [3, "Always"])
def test_policy_when_it_is_neither_policy_nor_function(value: Any) -> None:
    """What can decide nothing is refused."""
    with pytest.raises(ConfigurationError, match="a policy is a Policy or a function"):
        Cascade([FakeModel(), FakeModel()], [value])


# --- async ------------------------------------------------------------------------------------


async def slow_judge(answer: Answer) -> bool:
    """An async function as policy."""
    return "bad" in answer.text


@pytest.mark.parametrize("mode", ["ainvoke", "astream"])
def test_async_policy_when_called_async(mode: str) -> None:
    """Async functions and async methods decide in async calls."""

    class Mine(Policy):
        async def after(self, moment: Moment) -> Decision:  # type: ignore[override]
            return Decision(True, "Mine")

    assert decide(slow_judge, Answer("bad"), mode).defer
    assert not decide(slow_judge, Answer("good"), mode).defer
    assert decide(Mine() & slow_judge, Answer("bad"), mode).defer


@pytest.mark.parametrize("mode", ["invoke", "stream"])
def test_async_policy_when_called_sync(mode: str) -> None:
    """A sync call of an async policy names the policy and the remedy."""
    with pytest.raises(ConfigurationError, match="'slow_judge' is async"):
        decide(slow_judge, mode=mode)


# --- values and configs -------------------------------------------------------------------------


def looks_wrong(answer: Answer) -> bool:
    """A named function as policy."""
    return "wrong" in answer.text


POLICIES: list[Policy] = [
    Always(),
    Never(),
    Valid(),
    CHOW,
    Threshold(min_logprob, -math.inf),
    Threshold(min_logprob, math.inf, missing="accept", over="arguments"),
    Threshold(quantile_logprob(0.25), -1),
    Threshold(margin, 0, missing="raise", over="all"),
    Valid() | CHOW,
    ~(Valid() & ~CHOW),
    Custom(looks_wrong) | Never(),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_config_when_written_and_read(policy: Policy) -> None:
    """A policy survives JSON and is equal, hashable and printable afterwards."""
    text = json.dumps(policy.to_config(), allow_nan=False)
    again = Policy.from_config(json.loads(text), allow={"looks_wrong": looks_wrong})

    assert policy == again
    assert hash(policy) == hash(again)
    assert repr(policy) == repr(again)


def test_policies_when_settings_differ() -> None:
    """Policies with different settings differ."""
    assert len({repr(p) for p in POLICIES}) == len(POLICIES)
    assert Threshold(mean_logprob, -0.35) != Threshold(mean_logprob, -0.36)
    assert Threshold(quantile_logprob(0.1), 0) != Threshold(quantile_logprob(0.2), 0)
    assert CHOW != Threshold(mean_logprob, -0.35, missing="accept")


def test_policy_when_changed() -> None:
    """Policies are frozen."""
    with pytest.raises((FrozenInstanceError, AttributeError)):
        CHOW.threshold = 0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "os.system"}, "unknown type 'os.system'"),
        ({"type": "named", "name": "f"}, "pass allow="),
        ({"type": "Threshold", "score": {"type": "mean_logprob"}, "limit": 3}, "limit"),
        ({"type": "Threshold", "score": {"type": "nope"}, "threshold": 0}, "unknown type 'nope'"),
        ({"type": "mean_logprob"}, "describes no policy"),
        ({"score": 1}, "describes no policy"),
        ({"type": 3}, "unknown type '3'"),
        ({"type": "AnyOf", "parts": []}, "at least one"),
    ],
)
def test_config_when_it_is_wrong(config: dict[str, Any], message: str) -> None:
    """Unknown types, names and options raise, and nothing is imported."""
    with pytest.raises(ConfigurationError, match=message):
        policy_from_config(config)


def test_config_when_a_field_is_no_plain_data() -> None:
    """A lambda cannot be written, and the error says what to do."""
    with pytest.raises(ConfigurationError, match="use a named function"):
        Custom(lambda answer: True).to_config()


def test_config_when_the_policy_is_the_users_own() -> None:
    """A policy class of the user is read back when the user allows its name."""

    @dataclass(frozen=True, slots=True)
    class Short(Policy):
        most: int

        def after(self, moment: Moment) -> Decision:
            return Decision(len(moment.draft.text) < self.most, "Short")

    policy = Short(3) | Valid()

    assert policy == Policy.from_config(policy.to_config(), allow={"Short": Short})
    with pytest.raises(ConfigurationError, match="unknown type 'Short'"):
        Policy.from_config(policy.to_config())


# --- Threshold ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("missing", "action"), [("defer", "escalate"), ("accept", "accept"), (None, "escalate")]
)
def test_threshold_when_the_score_is_missing(mode: str, missing: str | None, action: str) -> None:
    """A missing score defers by default and accepts only where it is told to."""
    options: Any = {} if missing is None else {"missing": missing}
    policy = Threshold(mean_logprob, -5, **options)
    cascade = Cascade([FakeModel("a", name="a", logprob=None), FakeModel("b", name="b")], policy)
    first = run(cascade, mode).trace.attempts[0]

    assert (action, "no_logprobs", None) == (first.action, first.code, first.score)


@pytest.mark.parametrize("value", [None, math.nan])
def test_threshold_when_a_function_gives_no_number(value: Any) -> None:
    """None and NaN of a custom score are missing, never accepted silently."""

    def score(answer: Answer) -> Any:
        return value

    decision = decide(Threshold(score, -math.inf))

    assert (True, "no_score", "score") == (decision.defer, decision.code, decision.score_name)


def test_threshold_when_a_score_raises_that_it_is_unavailable() -> None:
    """A score may say itself that it is unavailable."""

    def score(answer: Answer) -> float:
        raise ScoreUnavailableError("no retrieval")

    assert decide(Threshold(score, 0)).defer


@pytest.mark.parametrize(
    ("threshold", "defers"), [(-math.inf, False), (math.inf, True), (-0.1, False), (-0.0999, True)]
)
def test_threshold_when_it_is_extreme(threshold: float, defers: bool) -> None:
    """-inf accepts and +inf defers every scored answer."""
    assert defers == decide(Threshold(mean_logprob, threshold), scored(-0.1)).defer


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((mean_logprob, math.nan), {}, "not NaN"),
        ((mean_logprob, "high"), {}, "must be a number"),
        ((mean_logprob, True), {}, "must be a number"),
        ((-0.35, mean_logprob), {}, "expects a score first"),
        ((mean_logprob, 0), {"missing": "ignore"}, "missing must be"),
        ((mean_logprob, 0), {"over": "reasoning"}, "over must be"),
    ],
)
def test_threshold_when_an_argument_is_wrong(arguments: Any, options: Any, message: str) -> None:
    """Wrong arguments are found at construction."""
    with pytest.raises(ConfigurationError, match=message):
        Threshold(*arguments, **options)


def mixed() -> Answer:
    """Return an answer with reasoning, text and a tool call's tokens."""
    parts: list[tuple[Any, float]] = [("reasoning", -9), ("answer", -1), ("arguments", -3)]
    return Answer("x", tokens=tuple(TokenScore("t", v, part=p) for p, v in parts))


@pytest.mark.parametrize(("over", "score"), [("answer", -1), ("arguments", -3), ("all", -13 / 3)])
def test_threshold_when_only_a_part_is_scored(over: Any, score: float) -> None:
    """`over` chooses the tokens; the default leaves reasoning out."""
    assert decide(Threshold(mean_logprob, -99, over=over), mixed()).score == pytest.approx(score)


def test_threshold_when_the_answer_is_only_a_tool_call() -> None:
    """With nothing but a tool call the default scores its tokens."""
    assert -2 == decide(Threshold(mean_logprob, -99), scored(-2, part="arguments")).score


def test_threshold_when_the_part_has_no_tokens() -> None:
    """No token of the wanted part is a missing score."""
    assert "no_score" == decide(Threshold(mean_logprob, -9, over="arguments"), scored(-1)).code


@pytest.mark.parametrize("text", ["42", "42 " * 100, "I am not sure, maybe.", "A. B. C."])
def test_threshold_when_only_the_wording_differs(text: str) -> None:
    """Length and wording of an answer never change a logprob decision."""
    tokens = tuple(TokenScore("t", -0.2) for _ in range(3))

    assert not decide(CHOW, Answer(text, tokens=tokens)).defer
