"""Grounded: an unsupported answer is deferred, a supported one is not."""

from __future__ import annotations

import pytest

from cascadellm import (
    Answer,
    Cascade,
    ConfigurationError,
    Grounded,
    Policy,
    Request,
    call_context,
)
from cascadellm.perform import LocalPerformer, drive
from cascadellm.policies.grounded import overlap
from cascadellm.testing import FakeModel

CONTEXT = "Nia lives in Fenland. Nia is 41 years old. Tom has a cat."
PROMPT = f"Context:\n{CONTEXT}\n\nQuestion: Where does Nia live?"
ASKED = Request([{"role": "user", "content": PROMPT}], PROMPT)


def decide(draft: str, policy: Policy, request: Request = ASKED):
    small, large = FakeModel(draft, name="small"), FakeModel("large", name="large")
    return drive(Cascade([small, large], policy).plan(request), LocalPerformer()).trace


@pytest.mark.parametrize(
    ("draft", "deferred", "code"),
    [
        ("Nia lives in Fenland.", False, "score"),
        ("Fenland", False, "score"),
        ("Nia lives in Marlow with 3 horses.", True, "score"),
        ("Nia is 42 years old.", False, "score"),
        ("42", True, "score"),
        ("The context does not contain the answer.", True, "no_answer"),
        ("Yes.", False, "no_claim"),
    ],
)
def test_answers_are_deferred_by_their_support(draft: str, deferred: bool, code: str) -> None:
    """Support is the share of content words and numbers that stand in the context."""
    attempt = decide(draft, Grounded(0.6)).attempts[0]
    assert (deferred, code) == (attempt.action == "escalate", attempt.code)


def test_documents_of_the_caller_take_the_place_of_the_prompt() -> None:
    """Passages handed over beside the prompt decide, and the prompt stays as it was."""
    bare = Request([{"role": "user", "content": "Where does Nia live?"}], "Where does Nia live?")
    assert "escalate" == decide("Fenland", Grounded(0.6), bare).attempts[0].action
    with call_context(documents=[CONTEXT]):
        assert "accept" == decide("Fenland", Grounded(0.6), bare).attempts[0].action


def test_an_embedding_model_measures_by_meaning() -> None:
    """With a caller's embedding the least supported sentence decides."""

    def embed(texts: list[str]) -> list[list[float]]:
        return [[float("Fenland" in t), float("Marlow" in t), 0.1] for t in texts]

    policy = Grounded(0.8, embed=embed)
    assert "accept" == decide("She lives in Fenland.", policy).attempts[0].action
    both = decide("She lives in Fenland. She works in Marlow.", policy).attempts[0]
    assert ("escalate", True) == (both.action, both.score is not None and both.score < 0.3)


def test_a_repetition_needs_no_support_of_its_own() -> None:
    """A last sentence that only repeats a value is not compared, a new value is."""

    def embed(texts: list[str]) -> list[list[float]]:
        return [[float("lives in Fenland" in t), 0.1, float("answer" in t)] for t in texts]

    policy = Grounded(0.9, embed=embed)
    repeats = "Nia lives in Fenland. The answer is Fenland."
    assert "accept" == decide(repeats, policy).attempts[0].action
    adds = "Nia lives in Fenland. The answer is Marlow."
    assert "escalate" == decide(adds, policy).attempts[0].action


@pytest.mark.parametrize(
    ("verdict", "deferred", "code"),
    [
        ("True", False, "judge"),
        ("False, it says Fenland", True, "judge"),
        ("hm", True, "judge_unclear"),
        (RuntimeError("down"), True, "judge_error"),
        (TimeoutError("slow"), True, "judge_timeout"),
        (Answer("", refusal="No."), True, "judge_refused"),
    ],
)
def test_a_judge_decides_and_garbage_defers(verdict: object, deferred: bool, code: str) -> None:
    """Anything but a clear yes defers, and the judge's call stands in the record."""
    judge = FakeModel(verdict, name="judge")  # type: ignore[arg-type]
    attempt = decide("Nia lives in Marlow.", Grounded(judge=judge)).attempts[0]
    assert (deferred, code) == (attempt.action == "escalate", attempt.code)
    assert [("judge", "grounded")] == [(call.name, call.purpose) for call in attempt.calls]


def test_configs_round_trip_and_bad_arguments_are_refused() -> None:
    """The policy is plain data, and says what it expects."""
    policy = Grounded(0.4, no_answer=("nope",))
    assert policy == Policy.from_config(policy.to_config())
    with pytest.raises(ConfigurationError, match=r"share in \[0, 1\], got 1.5"):
        Grounded(1.5)
    with pytest.raises(ConfigurationError, match="not both"):
        Grounded(embed=len, judge=FakeModel())


def test_overlap_ignores_words_that_claim_nothing() -> None:
    """Function words support nothing: only names, nouns and numbers count."""
    assert 0.0 == overlap("The answer is Paris.", "the answer is in this context")
    assert 1.0 == overlap("Fenland", CONTEXT)
    assert overlap("It is.", CONTEXT) is None
