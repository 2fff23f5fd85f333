"""Budgets per call, per key and per window, and what happens at the limit."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from cascadellm import (
    Always,
    Answer,
    Budget,
    BudgetExceededError,
    Cascade,
    ConfigurationError,
    Policy,
    Price,
    Request,
    Spending,
    Tier,
    Usage,
)
from cascadellm.events import Failed
from cascadellm.testing import EventRecorder, FakeClock, FakeModel
from tests.engine.running import MODES, run

PRICE = Price(1, 1)


def three(policy: Any, price: Price | None = PRICE, **options: Any) -> Cascade:
    """Return three tiers whose calls take 1,000,000 tokens, so one dollar, each."""
    said = Answer("x", usage=Usage(400_000, 600_000), finish_reason="stop")
    tiers = [Tier(FakeModel(said, name=f"t{i}"), price=price) for i in range(3)]
    return Cascade(tiers, policy, **options)


def asked(user: str = "a") -> Request:
    """Return a request of a user."""
    return Request("q", "q", metadata={"user": user})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("usd", "answered_by"),
    [(0, "t0"), (0.5, "t0"), (1.0, "t0"), (1.39, "t0"), (1.41, "t1"), (2.39, "t1"), (2.4, "t2")],
)
def test_money_when_a_call_climbs(mode: str, usd: float, answered_by: str) -> None:
    """A tier is not asked when what is spent and its prompt would break the limit."""
    outcome = run(three(Budget(usd)), mode)
    last = outcome.trace.attempts[-1]

    assert answered_by == outcome.trace.answered_by
    assert (last.code == "budget") == (answered_by != "t2")


@pytest.mark.parametrize(
    ("tokens", "answered_by"), [(1_000_000, "t0"), (1_000_001, "t1"), (2_000_001, "t2")]
)
def test_tokens_when_a_call_climbs(tokens: int, answered_by: str) -> None:
    """At the limit in tokens the answer is accepted as it is."""
    assert answered_by == run(three(Budget(tokens=tokens))).trace.answered_by


@pytest.mark.parametrize(("seconds", "answered_by"), [(0, "t0"), (1000, "t2")])
def test_time_when_a_call_climbs(seconds: float, answered_by: str) -> None:
    """At the limit in time no further tier is asked."""
    assert answered_by == run(three(Budget(seconds=seconds))).trace.answered_by


@pytest.mark.parametrize(("usd", "answered_by"), [(2, "t0"), (3, "t1"), (5, "t2")])
def test_money_when_time_is_priced(usd: float, answered_by: str) -> None:
    """A price per second counts with the time that the tiers took."""
    clock = FakeClock()

    def slow(messages: Any) -> str:
        clock.advance(2)
        return "x"

    tiers = [Tier(FakeModel(slow, name=f"t{i}"), price=Price(per_second=1)) for i in range(3)]

    assert answered_by == run(Cascade(tiers, Budget(usd), clock=clock)).trace.answered_by


def test_money_when_a_price_is_unknown() -> None:
    """An unknown cost counts as spent, never as zero."""
    outcome = run(three(Budget(100), None))

    assert "t0" == outcome.trace.answered_by
    assert "unknown" in outcome.trace.attempts[0].reason


@pytest.mark.parametrize("mode", MODES)
def test_limit_when_it_raises(mode: str) -> None:
    """`raise` carries the best answer so far, and the paid draft stays on record."""
    told = EventRecorder()
    with pytest.raises(BudgetExceededError, match=r"1 of 0\.5 USD are spent") as caught:
        run(three(Budget(0.5, at_limit="raise")), mode, handlers=[told])

    assert "x" == caught.value.best.text
    (failed,) = told.of(Failed)
    assert [("t0", "error", "budget", 1.0)] == [
        (a.name, a.action, a.code, a.cost_usd) for a in failed.trace.attempts
    ]


def test_budget_when_joined_with_another_policy() -> None:
    """It stops only what another policy would defer."""
    assert "t0" == run(three(Budget(0.5) & Always())).trace.answered_by
    assert "t2" == run(three(Budget(50) & Always())).trace.answered_by
    assert "t0" == run(three(Budget(50) & ~Always())).trace.answered_by


def test_spending_when_users_differ() -> None:
    """Spending is counted per user; another user's budget is untouched."""
    spending = Spending("user")
    cascade = three(Budget(2.5, spending=spending))
    first = run(cascade, "invoke", asked("a"), [spending])
    second = run(cascade, "invoke", asked("a"), [spending])
    other = run(cascade, "invoke", asked("b"), [spending])

    assert ["t2", "t0", "t2"] == [o.trace.answered_by for o in (first, second, other)]
    assert spending.usd(asked("a")) == pytest.approx(4.0)
    assert 3_000_000 == spending.tokens(asked("b"))
    assert 0 == spending.tokens(asked("nobody"))


def test_spending_when_the_window_moves_on() -> None:
    """Only what the window still holds counts."""
    clock = FakeClock()
    spending = Spending("user", window_s=60, clock=clock)
    cascade = three(Budget(tokens=3_500_000, spending=spending))

    def tier() -> str | None:
        return run(cascade, "invoke", asked(), [spending]).trace.answered_by

    assert "t2" == tier()
    clock.advance(59)
    assert "t0" == tier()
    clock.advance(1)
    assert "t2" == tier()


def test_spending_when_a_call_is_refused() -> None:
    """With `raise`, a spent budget refuses a call before anything is paid."""
    spending = Spending()
    models = [FakeModel("x", name=f"t{i}") for i in range(2)]
    cascade = Cascade(
        [Tier(m, price=PRICE) for m in models],
        Budget(tokens=1, at_limit="raise", spending=spending) & Always(),
    )
    with pytest.raises(BudgetExceededError, match="tokens are spent"):
        run(cascade, "invoke", asked(), [spending])
    with pytest.raises(BudgetExceededError, match="wait, or raise the limit") as caught:
        run(cascade, "invoke", asked(), [spending])

    assert (1, None) == (len(models[0].calls), caught.value.best)


def test_spending_when_calls_fail() -> None:
    """Failed calls count with what they took; an unknown cost makes the sum unknown."""
    spending = Spending()
    failing = Cascade([Tier(FakeModel(OSError("x"), name="a"), price=PRICE)])
    with pytest.raises(OSError, match="x"):
        run(failing, "invoke", asked(), [spending])

    assert None is spending.usd(asked())
    assert "t0" == run(three(Budget(100, spending=spending)), "invoke", asked()).trace.answered_by


def test_spending_when_many_threads_report() -> None:
    """No call is lost when many threads report at once."""
    spending = Spending("user")
    cascade = three(Budget(100))

    def work() -> None:
        for _ in range(25):
            run(cascade, "invoke", asked(), [spending])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 100 * 3_000_000 == spending.tokens(asked())


def test_spending_when_other_events_come() -> None:
    """Events that end no call are ignored."""
    spending = Spending()
    spending.on_event("started")

    assert 0 == spending.tokens(asked())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Budget, "at least one of usd="),
        (lambda: Budget(-1), r"Budget\(usd=\)"),
        (lambda: Budget(tokens=True), r"Budget\(tokens=\)"),
        (lambda: Budget(seconds=float("inf")), r"Budget\(seconds=\)"),
        (lambda: Budget("5"), r"Budget\(usd=\)"),  # type: ignore[arg-type]
        (lambda: Budget(1, at_limit="stop"), "at_limit must be"),  # type: ignore[arg-type]
        (lambda: Spending(window_s=0), "window_s must be"),
    ],
)
def test_arguments_when_they_are_wrong(make: Any, message: str) -> None:
    """Wrong arguments are found at construction."""
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_config_when_written_and_read() -> None:
    """The policy survives its config; what is spent comes back by name."""
    spending = Spending("user")
    for policy in (Budget(0.5, seconds=3), Budget(tokens=9, at_limit="raise", spending=spending)):
        again = Policy.from_config(policy.to_config(), allow={"spending": spending})
        assert policy == again
        assert hash(policy) == hash(again)


def test_budget_when_the_limit_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The money tests have power: a budget that never ends climbs to the last tier."""
    monkeypatch.setattr(Budget, "_over", lambda self, moment, following: None)

    assert "t2" == run(three(Budget(0))).trace.answered_by
