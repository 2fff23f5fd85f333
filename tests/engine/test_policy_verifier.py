"""Verification by the tier itself or by a judge, and verdicts that cannot be read."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cascadellm import (
    Answer,
    ConfigurationError,
    Judge,
    Policy,
    PTrue,
    Request,
    SelfVerify,
    TokenScore,
    ToolCall,
)
from cascadellm.policies.asking import first_word_verdict
from cascadellm.policies.verifier import score_in, true_probability
from tests.engine.deciding import decide, model
from tests.engine.running import MODES


def said(token: str, probability: float, others: dict[str, float] | None = None) -> Answer:
    """Return a verdict with the probabilities of its first token."""
    top = tuple((text, math.log(p)) for text, p in {token: probability, **(others or {})}.items())
    return Answer(token, tokens=(TokenScore(token, math.log(probability), top=top),))


# --- verdicts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("True", True),
        (" true.", True),
        ("**Yes**, it is.", True),
        ("False", False),
        ("no", False),
        ("The answer is wrong", False),
        ("The answer is correct", True),
        ("It is not correct", None),
        ("<think>false false</think>True", True),
        ("Incorrect.", False),
        ("maybe", None),
        ("", None),
        ("!!!", None),
    ],
)
def test_verdict_when_a_judge_writes_freely(text: str, verdict: bool | None) -> None:
    """A verdict is read from the first or last word; what is unclear is never "right"."""
    assert verdict is first_word_verdict(text)


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("Score: 7", 7),
        ("score: **8.5**", 8.5),
        ('{"score": 3, "why": "bad"}', 3),
        ("I considered 2 things.\nScore: 9", 9),
        ("Score: 3. On reflection, Score: 6", 6),
        ("Rating: [[4]]", 4),
        ("7/10", 7),
        ("I'd say 6 out of 10", 6),
        ("The grade is 5", 5),
        ("9", 9),
        ("  10. ", 10),
        ("<think>Score: 1</think>Score: 8", 8),
        ("Score: 11", None),
        ("Score: 0", None),
        ("Score: high", None),
        ("It mentions 3 cats and 4 dogs", None),
        ("I cannot grade this.", None),
        ("", None),
    ],
)
def test_grade_when_a_judge_writes_freely(text: str, grade: float | None) -> None:
    """A grade is read from the forms that judges use; off the scale is no grade."""
    assert grade == score_in(text, (1, 10))


@pytest.mark.parametrize(
    ("verdict", "probability"),
    [
        (said("True", 0.8, {"maybe": 0.1}), 0.8),
        (said("True", 0.6, {"False": 0.2}), 0.75),
        (said(" false", 0.6, {"True": 0.3, " true": 0.1}), 0.4),
        (said("False", 0.9), 0.1),
        (said("Yes", 0.7, {"No": 0.3}), 0.7),
        (said("Perhaps", 0.9), None),
        (Answer("True", tokens=(TokenScore("**", -0.1), TokenScore("True", math.log(0.5)))), 0.5),
        (Answer("True", tokens=(TokenScore("True", math.nan),)), None),
    ],
)
def test_probability_when_logprobs_are_known(verdict: Answer, probability: float | None) -> None:
    """The probability of "True" is its share among the verdicts that are known."""
    found = true_probability(verdict)

    assert probability == (None if found is None else pytest.approx(found))


# --- SelfVerify -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("verdicts", "defers", "share"),
    [
        (["True"] * 4, False, 1.0),
        (["False"] * 4, True, 0.0),
        (["True", "False", "True", "False"], False, 0.5),
        (["True", "False", "what", "False"], True, 0.25),
        (["True", OSError("x"), "True", OSError("x")], False, 0.5),
    ],
)
def test_self_verify_when_the_tier_judges_itself(
    mode: str, verdicts: list[Any], defers: bool, share: float
) -> None:
    """The score is the share of verdicts that say "right"; unclear and failed ones do not."""
    verifier = model(verdicts)
    found = decide(SelfVerify(0.5, k=4, model=verifier), mode=mode)

    assert (defers, share) == (found.defer, found.first.score)
    assert ["verify"] * 4 == [call.purpose for call in found.first.calls]


def test_self_verify_when_no_model_is_given() -> None:
    """Without a model the tier that wrote the draft verifies it, with question and answer."""
    found = decide(SelfVerify(k=2), ["The answer is 42.", "True"])
    prompt, arguments = found.small.calls[1]

    assert not found.defer
    assert "What is 6 x 7?" in prompt[0]["content"]
    assert "The answer is 42." in prompt[0]["content"]
    assert {"temperature": 1.0} == arguments


# --- PTrue ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("verdict", "defers"), [(said("True", 0.8, {"False": 0.2}), False), (said("False", 0.9), True)]
)
def test_p_true_when_the_probability_is_known(mode: str, verdict: Answer, defers: bool) -> None:
    """It accepts iff the probability of "True" is large enough."""
    found = decide(PTrue(0.5, model=model(verdict)), mode=mode)

    assert (defers, "score", 1) == (found.defer, found.first.code, len(found.first.calls))


def test_p_true_when_the_verifier_gives_no_logprobs() -> None:
    """A verifier without logprobs defers, never a number made up from its text."""
    found = decide(PTrue(0.0, model=model("True", logprob=None)))

    assert (True, "no_logprobs", None) == (found.defer, found.first.code, found.first.score)


# --- Judge ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("reply", "defers"), [("Score: 7", False), ("Score: 6.9", True)])
def test_judge_when_it_grades(mode: str, reply: str, defers: bool) -> None:
    """It accepts iff the grade reaches the threshold, and the judge is charged."""
    judge = model(reply)
    found = decide(Judge(judge, "Is it polite?"), mode=mode)
    prompt = judge.model.calls[0][0][0]["content"]

    assert defers == found.defer
    assert ["judge"] == [call.name for call in found.first.calls]
    assert None is not found.outcome.trace.cost_usd
    for words in ("Is it polite?", "What is 6 x 7?", "The answer is 42.", "from 1 (worst) to 10"):
        assert words in prompt


JUDGES: list[Any] = [
    Judge,
    lambda m: SelfVerify(k=2, model=m),
    lambda m: PTrue(model=m),
]


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
@pytest.mark.parametrize("make", JUDGES)
@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("banana banana", "judge_unclear"),
        ("", "judge_unclear"),
        (Answer("", refusal="I will not"), "judge_refused"),
        (Answer("no comment", finish_reason="content_filter"), "judge_refused"),
        (TimeoutError("slow"), "judge_timeout"),
        (ConnectionError("gone"), "judge_connection"),
        (ValueError("odd"), "judge_error"),
    ],
)
def test_judge_when_it_gives_no_verdict(mode: str, make: Any, reply: Any, code: str) -> None:
    """Garbage, refusal, time-out and errors defer and say why."""
    found = decide(make(model(reply)), mode=mode)

    allowed = {code, "no_logprobs"} if isinstance(make(model("x")), PTrue) else {code}
    if code == "judge_refused" and "no comment" in str(reply):
        allowed.add("score")
    assert found.defer
    assert found.first.code in allowed
    assert found.first.reason
    assert "from large" == found.answer.text


def test_judge_when_a_broken_one_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test has power: a parser that reads any reply as the best grade is noticed."""
    monkeypatch.setattr("cascadellm.policies.verifier.score_in", lambda text, scale: scale[1])

    assert not decide(Judge(model("banana"))).defer


def test_judge_when_the_tier_times_out() -> None:
    """A judge slower than its tier's timeout counts as timed out."""
    from cascadellm import Tier
    from cascadellm.testing import FakeModel

    slow = Tier(FakeModel("Score: 9", name="slow", delay_s=0.5), timeout_s=0.05)
    found = decide(Judge(slow))

    assert (True, "judge_timeout") == (found.defer, found.first.code)


def test_judge_when_the_answer_holds_placeholders() -> None:
    """Braces in question and answer stay as they are."""
    judge = model("Score: 9")
    request = Request("q", "What is {answer}?")
    decide(Judge(judge), "It is {question} and {rubric}.", request=request)
    prompt = judge.model.calls[0][0][0]["content"]

    assert "What is {answer}?" in prompt
    assert "It is {question} and {rubric}." in prompt


def test_judge_when_the_answer_is_a_tool_call() -> None:
    """A tool call is shown to the judge with its name and arguments."""
    judge = model("Score: 9")
    decide(Judge(judge), ToolCall("add", {"b": 2, "a": 1}))

    assert 'add({"a": 1, "b": 2})' in judge.model.calls[0][0][0]["content"]


def test_judge_when_the_scale_is_another() -> None:
    """Scale, threshold and prompt can be chosen."""
    judge = model("0.8")
    policy = Judge(judge, threshold=0.7, scale=(0, 1), prompt="Rate {answer} from 0 to 1.")

    assert not decide(policy).defer
    assert "Rate The answer is 42. from 0 to 1." == judge.model.calls[0][0][0]["content"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Judge(None), "got None"),
        (lambda: Judge(model("x"), scale=(5, 5)), "must rise"),
        (lambda: Judge(model("x"), threshold=11), "must lie on the scale"),
        (lambda: Judge(model("x"), prompt="no placeholder"), "text with {answer}"),
        (lambda: SelfVerify(2), "fraction"),
        (lambda: SelfVerify(k=0), "whole number >= 1"),
        (lambda: PTrue(prompt=3), "text with {answer}"),  # type: ignore[arg-type]
    ],
)
def test_arguments_when_they_are_wrong(make: Any, message: str) -> None:
    """Wrong arguments are found at construction."""
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_config_when_written_and_read() -> None:
    """The policies survive their configs; models come back by name."""
    judge = model("x", name="j")
    for policy in (
        Judge(judge, "Is it short?", threshold=3, scale=(1, 5)),
        SelfVerify(0.25, k=3),
        SelfVerify(model=judge),
        PTrue(0.9, model=judge, kwargs={"temperature": 0}),
    ):
        again = Policy.from_config(policy.to_config(), allow={"j": judge})
        assert policy == again
        assert hash(policy) == hash(again)
