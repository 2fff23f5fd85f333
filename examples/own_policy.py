"""Three policies of your own, one for each moment: before, while and after a tier answers.

    python examples/own_policy.py

Runs on the two demo models, without a key.
"""

from __future__ import annotations

from dataclasses import dataclass

from cascadellm import Decision, Policy
from cascadellm.demo import load, questions
from cascadellm.policies import Moment
from langchain_cascade import CascadeLLM


@dataclass(frozen=True)
class LongQuestion(Policy):
    """Before: a long question goes straight to the next tier."""

    words: int = 40

    def before(self, moment: Moment) -> Decision | None:
        count = len(moment.request.text.split())
        if count <= self.words:
            return None
        return Decision(True, self.name, code="long", reason=f"{count} words > {self.words}")


@dataclass(frozen=True)
class NoRambling(Policy):
    """While it writes: a draft of more than so many characters is stopped."""

    most: int = 300

    def watch(self, moment: Moment):  # noqa: ANN201
        return lambda draft: "stop" if len(draft.text) > self.most else "go_on"

    def after(self, moment: Moment) -> Decision:
        length = len(moment.draft.text)
        return Decision(length > self.most, self.name, code="length", reason=f"{length} characters")


def no_number(answer) -> bool:  # noqa: ANN001
    """After: a plain function is a policy too; True defers."""
    return not any(character.isdigit() for character in answer.text)


def main() -> None:
    """Ask three questions and say who answered, and why."""
    policy = LongQuestion(30) | NoRambling() | no_number
    llm = CascadeLLM(tiers=[load("small"), load("large")], policy=policy)
    for item in questions(3, seed=3):
        record = llm.invoke(item.question).response_metadata["cascade"]
        first = record["attempts"][0]
        print(f"{record['answered_by']:5} {first['action']:8} {first['policy']}: {first['reason']}")


if __name__ == "__main__":
    main()
