"""One case of every policy that a config may name; the tests of all policies walk this table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cascadellm import (
    Agreement,
    Always,
    Answer,
    Budget,
    CascadeRoute,
    ContextFits,
    EarlyAbort,
    Grounded,
    Hedge,
    Judge,
    MetaVerifier,
    NeedsTools,
    Never,
    Policy,
    PrefixCommit,
    Price,
    PTrue,
    Request,
    Route,
    SelfConsistency,
    SelfVerify,
    SemanticEntropy,
    Threshold,
    Tier,
    TokenScore,
    ToolCall,
    ToolRisk,
    Valid,
    mean_logprob,
    min_logprob,
)
from cascadellm.calibration import GainMap, RoutingPlan
from cascadellm.calibration.features import Column, Head
from cascadellm.calibration.routing import Estimate
from cascadellm.testing import FakeModel

PAID = Price(1, 1)
DRAFT = "The answer is 42."
TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}},
}


PLAN = RoutingPlan(
    (
        Estimate((), (Head((), 0.0), Head((), 1.0)), ((-0.4, 0.0), (0.4, 0.0))),
        Estimate(
            (Column("score_0", 0.0, 1.0, (), False),),
            (Head((0.1,), -1.0), Head((0.0,), 1.0)),
            ((0.0, 0.0),),
        ),
    ),
    ((0.001, 0.0), (0.01, 1e-6)),
    (10.0, 20.0),
    0.5,
)
"""Two tiers: the small one is asked first, and seldom right."""


def shortness(request: Request) -> float:
    """A score of the request: minus its number of words."""
    return -float(len(request.text.split()))


def no_number(answer: Answer) -> bool:
    """A policy of the user's own."""
    return not any(character.isdigit() for character in answer.text)


def counted(texts: list[str]) -> list[list[float]]:
    """Embed texts by the letters in them."""
    return [[float(text.lower().count(letter)) for letter in "aehiorstw"] for text in texts]


def model(reply: Any, name: str) -> Tier:
    """Return a priced fake."""
    return Tier(FakeModel(reply, name=name), price=PAID)


def judge(reply: Any) -> Tier:
    """Return a priced judge."""
    return model(reply, "judge")


def verdict(true: float) -> Answer:
    """Return a verdict with its token's log-probability."""
    import math

    top = (("True", math.log(true)), ("False", math.log(1 - true)))
    return Answer("True", tokens=(TokenScore("True", math.log(true), top),), finish_reason="stop")


@dataclass(frozen=True)
class Case:
    """A policy, what the small tier says, and what the policy asks on top.

    Attributes:
        name: Its name in test ids.
        make: Builds the policy with fresh fakes.
        action: What happens to the small tier's attempt.
        purposes: Purpose of each call that the policy makes, in order.
        question: What is asked.
        tools: Tools bound.
        small: Settings of the small tier's fake.
    """

    name: str
    make: Callable[[], Policy]
    action: str
    purposes: tuple[str, ...] = ()
    question: str = "What is 6 x 7?"
    tools: tuple[Mapping[str, Any], ...] = ()
    small: Mapping[str, Any] = field(default_factory=dict)

    def tiers(self) -> list[Tier]:
        """Return two fresh priced fakes."""
        settings = {"reply": DRAFT, **self.small}
        small = Tier(FakeModel(name="small", **settings), price=PAID)
        return [small, model("From large: 42.", "large")]


def _pair(say: str) -> list[Tier]:
    return [model(say, "second"), model(say, "third")]


CASES: tuple[Case, ...] = (
    Case("Agreement", lambda: Agreement(_pair("41"), key="numeric"), "escalate",
         ("agreement",) * 2),
    Case("Agreement-judged", lambda: Agreement(_pair("It is 42"), key="judge", judge=judge("Yes")),
         "accept", ("agreement", "agreement", "same_answer", "same_answer")),
    Case("AllOf", lambda: Always() & Judge(judge("Score: 2")), "escalate", ("judge",)),
    Case("Always", Always, "escalate"),
    Case("AnyOf", lambda: Never() | Judge(judge("Score: 9")), "accept", ("judge",)),
    Case("Budget", lambda: Budget(usd=1e-9), "accept"),
    Case("ContextFits", lambda: ContextFits(9000), "skip"),
    Case("Custom", lambda: Policy.from_config(
        {"type": "Custom", "function": {"type": "named", "name": "no_number"}}, allow=ALLOWED),
        "accept"),
    Case("EarlyAbort", lambda: EarlyAbort(mean_logprob, 1.0, after_tokens=2), "stopped"),
    Case("Grounded", lambda: Grounded(0.9), "escalate"),
    Case("Grounded-embedding", lambda: Grounded(0.1, embed=counted), "accept"),
    Case("Grounded-judged", lambda: Grounded(judge=judge("False")), "escalate", ("grounded",)),
    Case("Hedge", lambda: Hedge(Judge(judge("Score: 1")), after_s=5), "escalate", ("judge",)),
    Case("Judge", lambda: Judge(judge("Score: 9"), "Is it right?"), "accept", ("judge",)),
    Case("MetaVerifier", lambda: MetaVerifier(
        SelfVerify(0.5, 2, model=judge(["True", "False"])),
        GainMap((0.0, 0.5, 1.0), (0.0, 0.5, 0.0), 0.1, 99)), "escalate", ("verify",) * 2),
    Case("CascadeRoute", lambda: CascadeRoute(PLAN, mean_logprob), "escalate"),
    # the adapters themselves pass over a tier that cannot take tools, so it is named here
    Case("NeedsTools", lambda: NeedsTools(("large",)), "skip", tools=(TOOL,)),
    Case("Never", Never, "accept"),
    Case("Not", lambda: ~Judge(judge("Score: 9")), "escalate", ("judge",)),
    Case("PTrue", lambda: PTrue(0.5, model=judge(verdict(0.2))), "escalate", ("p_true",)),
    Case("PrefixCommit", lambda: PrefixCommit(mean_logprob, -1.0, tokens=2), "accept"),
    Case("Route", lambda: Route(shortness, -2), "skip"),
    Case("SelfConsistency", lambda: SelfConsistency(3, 1.0), "accept", ("resample",) * 2),
    Case("SelfConsistency-numeric", lambda: SelfConsistency(3, 0.6, key="numeric", together=1),
         "accept", ("resample",)),
    Case("SelfConsistency-embedding",
         lambda: SelfConsistency(3, 1.0, key="embedding", embed=counted), "accept",
         ("resample",) * 2),
    Case("SelfConsistency-judge",
         lambda: SelfConsistency(2, 1.0, key="judge", judge=judge("No")), "escalate",
         ("resample", "same_answer"), small={"reply": [DRAFT, "It is 41."]}),
    Case("SelfVerify", lambda: SelfVerify(0.5, 3, model=judge("True")), "accept",
         ("verify",) * 3),
    Case("SemanticEntropy", lambda: SemanticEntropy(-0.1, 3), "accept", ("resample",) * 2),
    Case("Threshold", lambda: Threshold(min_logprob, 0.5), "escalate"),
    Case("Threshold-own", lambda: Threshold(length_score, 0.0), "accept"),
    Case("ToolRisk", lambda: ToolRisk(("add",)), "escalate", tools=(TOOL,),
         small={"reply": ToolCall("add", {"a": 1})}),
    Case("ToolRisk-agreed", lambda: ToolRisk(
        ("add",), unless="agreed", second=model(ToolCall("add", {"a": 1}), "second")),
        "accept", ("tool_agreement",), tools=(TOOL,), small={"reply": ToolCall("add", {"a": 1})}),
    Case("Valid", Valid, "accept"),
)  # fmt: skip
"""Every name of `cascadellm.policies.config.POLICIES` stands here at least once."""


def length_score(answer: Answer) -> float:
    """A score of the user's own."""
    return float(len(answer.text))


ALLOWED: Mapping[str, Any] = {
    "counted": counted,
    "length_score": length_score,
    "no_number": no_number,
    "shortness": shortness,
}
"""Functions of the user that configs name."""


def named_models(policy: Policy) -> dict[str, Any]:
    """Return the models inside a policy by the names that its config gives them."""
    found: dict[str, Any] = {}
    parts: list[Any] = [policy]
    while parts:
        part = parts.pop()
        if isinstance(part, Tier):
            found[part.label] = part
        elif isinstance(part, (list, tuple)):
            parts += part
        elif isinstance(part, Policy):
            names = getattr(part, "__dataclass_fields__", ())
            parts += [getattr(part, name) for name in names]
    return found
