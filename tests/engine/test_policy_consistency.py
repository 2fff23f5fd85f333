"""Self-consistency and semantic entropy."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cascadellm import (
    Answer,
    ConfigurationError,
    Policy,
    SelfConsistency,
    SemanticEntropy,
    ToolCall,
)
from cascadellm.policies.votes import exact, normalised, numeric, semantic_entropy
from tests.engine.deciding import Decided, decide, model
from tests.engine.running import MODES

VOTES = ["42", "42", "41", "42", "40"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("votes", "threshold", "defers", "asked"),
    [
        (["42"] * 5, 0.6, False, 3),
        (VOTES, 0.6, False, 5),
        (VOTES, 0.8, True, 5),
        (["1", "2", "3", "4", "5"], 0.6, True, 5),
        (["1", "2", "3", "4", "5"], 0.8, True, 3),
        (["1", "2", "2", "2", "2"], 0.6, False, 5),
        (VOTES, 0.2, False, 1),
    ],
)
def test_votes_when_they_agree_or_not(
    mode: str, votes: list[str], threshold: float, defers: bool, asked: int
) -> None:
    """It accepts iff the largest group is large enough, and stops once that is decided."""
    found = decide(SelfConsistency(5, threshold), votes, mode=mode)

    assert (defers, asked) == (found.defer, len(found.small.calls))
    assert asked - 1 == len(found.first.calls)
    assert found.first.score is not None
    assert (found.first.score >= threshold) != defers
    assert all(call.purpose == "resample" and call.cost_usd for call in found.first.calls)


def test_votes_when_the_draft_is_outvoted() -> None:
    """The majority's first answer is kept in the draft's place, or deferred where wanted."""
    votes = ["7", "42", "42", "42", "42"]

    assert "42" == decide(SelfConsistency(5, 0.8), votes).answer.text
    kept = decide(SelfConsistency(5, 0.8, keep="draft"), votes)
    assert (True, "outvoted") == (kept.defer, kept.first.code)


def test_votes_when_the_comparison_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vote tests have power: a vote that counts the smallest group accepts otherwise."""
    from cascadellm.policies import consistency

    def smallest(places: list[int]) -> tuple[int, int]:
        counts = [places.count(place) for place in range(max(places) + 1)]
        return counts.index(min(counts)), min(counts)

    monkeypatch.setattr(consistency, "_largest", smallest)

    assert decide(SelfConsistency(5, 0.6), VOTES).defer


def test_samples_when_call_arguments_are_given() -> None:
    """Samples carry their own arguments; the draft does not."""
    found = decide(SelfConsistency(3, 1.0, kwargs={"temperature": 0.9}), "42")
    seen = [arguments for _, arguments in found.small.calls]

    assert [{}, {"temperature": 0.9}, {"temperature": 0.9}] == seen


def test_samples_when_some_fail() -> None:
    """A failed sample is a vote for nothing, and stands in the record."""
    found = decide(SelfConsistency(3, 1.0, together=2), ["42", OSError("down"), "42"])

    assert found.defer
    assert ["OSError: down"] == [call.error for call in found.first.calls if call.error]
    assert "2 of 3 votes agree" in found.first.reason


@pytest.mark.parametrize("policy", [SelfConsistency(3), SemanticEntropy(n=3)])
def test_samples_when_all_fail(policy: Policy) -> None:
    """Without any sample it defers and says why."""
    found = decide(policy, ["42", TimeoutError("slow"), TimeoutError("slow")])

    assert (True, "resample_timeout") == (found.defer, found.first.code)
    assert "TimeoutError: slow" in found.first.reason


@pytest.mark.parametrize(
    ("key", "one", "other", "same"),
    [
        (exact, "42", " 42\n", True),
        (exact, "42", "42.", False),
        (exact, "<think>hm</think>42", "42", True),
        (exact, "", "", False),
        (normalised, "The Cat sat.", "cat  SAT!", True),
        (normalised, "-5", "5", False),
        (normalised, "3.5", "35", False),
        (normalised, "5%", "5", False),
        (normalised, "a-b", "a b", True),
        (numeric, "so it is 1,234.50 dollars", "1234.5", True),
        (numeric, "first 3, then 42.", "42", True),
        (numeric, "range 3-5", "5", True),
        (numeric, "x = -5", "5", False),
        (numeric, "v1.2 is 7", "7", True),
        (numeric, "none", "none", False),
        (numeric, "#### 1e3", "1000", True),
    ],
)
def test_key_when_two_answers_are_compared(key: Any, one: str, other: str, same: bool) -> None:
    """Each equivalence joins what means the same to it, and nothing else."""
    first, second = key(Answer(one)), key(Answer(other))

    assert same == (first is not None and first == second)


@pytest.mark.parametrize("key", [exact, normalised, numeric])
def test_key_when_answers_are_tool_calls(key: Any) -> None:
    """Tool calls are compared by name and arguments, in any order of the arguments."""
    one = Answer("", tool_calls=(ToolCall("add", {"a": 1, "b": 2}, id="x"),))
    other = Answer("", tool_calls=(ToolCall("add", {"b": 2, "a": 1}, id="y"),))
    third = Answer("", tool_calls=(ToolCall("add", {"a": 1, "b": 3}),))

    assert key(one) == key(other) != key(third)


def first_letter(answer: Answer) -> str:
    """A key of the user's own."""
    return answer.text[:1]


def vectors(texts: list[str]) -> list[list[float]]:
    """An embedding that knows two topics."""
    return [[1.0, 0.1] if "tram" in text else [0.1, 1.0] for text in texts]


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
@pytest.mark.parametrize(
    ("options", "votes", "defers"),
    [
        ({"key": "exact"}, ["a", "A", "a."], True),
        ({"key": "normalised"}, ["a x", "A X", "x."], False),
        ({"key": "numeric"}, ["it is 42", "42", "so 42.0"], False),
        ({"key": first_letter}, ["apple", "ant", "ape"], False),
        ({"key": "embedding", "embed": vectors}, ["the tram", "a tram", "tram"], False),
        ({"key": "embedding", "embed": vectors}, ["the tram", "a bus", "bus"], True),
    ],
)
def test_key_when_chosen(mode: str, options: Any, votes: list[str], defers: bool) -> None:
    """Every equivalence can be chosen."""
    assert defers == decide(SelfConsistency(3, 1.0, **options), votes, mode=mode).defer


def test_judge_when_it_compares() -> None:
    """A judge compares only answers that differ in words, and each comparison is charged."""
    judge = model(lambda m: "Yes." if "eight" in m[0]["content"] else "No")
    votes = ["8", "eight", "8", "nine"]
    found = decide(SelfConsistency(4, 0.75, key="judge", judge=judge, together=3), votes)

    assert not found.defer
    purposes = [call.purpose for call in found.first.calls]
    assert 3 == purposes.count("resample")
    assert 2 <= purposes.count("same_answer")
    assert "What is 6 x 7?" in judge.model.calls[0][0][0]["content"]


@pytest.mark.parametrize(
    ("reply", "code"),
    [(OSError("x"), "judge_error"), (TimeoutError("x"), "judge_timeout")],
)
@pytest.mark.parametrize(
    "make",
    [
        lambda j: SelfConsistency(3, 1.0, key="judge", judge=j),
        lambda j: SemanticEntropy(n=3, key="judge", judge=j),
    ],
)
def test_judge_when_it_fails(make: Any, reply: Exception, code: str) -> None:
    """A judge that raises defers and says why."""
    found = decide(make(model(reply)), ["a", "b", "c"])

    assert (True, code) == (found.defer, found.first.code)


def test_judge_when_its_verdict_is_garbage() -> None:
    """A judge whose verdict cannot be read makes no two answers the same."""
    policy = SelfConsistency(3, 0.5, key="judge", judge=model("perhaps, who knows"))

    assert decide(policy, ["a", "b", "c"]).defer


@pytest.mark.parametrize(
    ("votes", "entropy"),
    [
        (["1", "1", "1", "1"], 0.0),
        (["1", "2", "3", "4"], math.log(4)),
        (["1", "1", "2", "2"], math.log(2)),
    ],
)
def test_entropy_when_the_votes_are_known(votes: list[str], entropy: float) -> None:
    """The score is minus the entropy of the groups' shares."""
    found = decide(SemanticEntropy(-0.7, n=4), votes)

    assert found.first.score == pytest.approx(-entropy)
    assert (entropy > 0.7) == found.defer
    assert 4 == len(found.small.calls)


def test_entropy_when_a_sample_fails() -> None:
    """A failed sample counts as a meaning of its own."""
    found = decide(SemanticEntropy(-1, n=3), ["1", "1", OSError("x")])

    assert found.first.score == pytest.approx(-semantic_entropy([0, 0, 1]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SelfConsistency(1), "whole number >= 2"),
        (lambda: SelfConsistency(3, 1.5), r"fraction in \[0, 1\]"),
        (lambda: SelfConsistency(3, together=0), "whole number >= 1"),
        (lambda: SelfConsistency(3, key="words"), "one of exact, normalised, numeric"),
        (lambda: SelfConsistency(3, key="judge"), "key='judge' and judge= together"),
        (lambda: SelfConsistency(3, embed=vectors), "key='embedding' and embed= together"),
        (lambda: SelfConsistency(3, keep="best"), "keep must be"),
        (lambda: SemanticEntropy(0.5), "at most 0 nats"),
        (lambda: SemanticEntropy(n=1), "whole number >= 2"),
    ],
)
def test_arguments_when_they_are_wrong(make: Any, message: str) -> None:
    """Wrong arguments are found at construction."""
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_config_when_written_and_read() -> None:
    """The policies survive their configs; models and functions come back by name."""
    judge = model("yes", name="j")
    for policy, allow in (
        (SelfConsistency(7, 0.7, key="numeric", kwargs={"temperature": 1.0}), {}),
        (SelfConsistency(3, key="judge", judge=judge), {"j": judge}),
        (SelfConsistency(3, key=first_letter), {"first_letter": first_letter}),
        (SemanticEntropy(-0.3, n=4), {}),
    ):
        again = Policy.from_config(policy.to_config(), allow=allow)
        assert policy == again
        assert hash(policy) == hash(again)


def test_combination_when_joined_with_others() -> None:
    """It combines with other policies."""
    found: Decided = decide(SelfConsistency(3, 1.0) & ~SelfConsistency(3, 1.0), "42")

    assert not found.defer
