"""How well `Grounded` finds answers that their context does not support, on the demo pair.

Held-out questions go through LlamaIndex's text-QA prompt with their own passages; in a third of
them the passages lack the answer. Each policy then decides about the small model's draft with the
passages at hand. Thresholds are round numbers, fixed before these questions were drawn.

    python benchmarks/grounded.py [--quick] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from llama_index.core.response_synthesizers import get_response_synthesizer
from local_decode import machine

from cascadellm import Cascade, Grounded, Policy, Request, Threshold, mean_logprob, record_cascade
from cascadellm.demo import embed, load, questions
from cascadellm.perform import LocalPerformer, drive
from cascadellm.testing import FakeModel
from llamaindex_cascade import CascadeLLM

RESULT = Path(__file__).parent / "results" / "grounded.json"
SKILLS = ("one_fact", "two_facts", "not_in_context")
SEED = 2028


@dataclass(frozen=True)
class Asked:
    """One question, what both models said, and whether they were right."""

    skill: str
    passages: tuple[str, ...]
    draft: str
    final: str
    score: float
    right: tuple[bool, bool]


def counted(texts: list[str]) -> list[list[float]]:
    """Embed texts by their words."""
    return [embed(text) for text in texts]


def asked(each: int) -> list[Asked]:
    """Ask both models every question, through LlamaIndex's own prompt."""
    llm = CascadeLLM([load("small"), load("large")], Threshold(mean_logprob, math.inf))
    synthesizer = get_response_synthesizer(llm=llm)
    made = []
    for skill in SKILLS:
        for item in questions(each, SEED, skill):
            with record_cascade() as recorder:
                final = str(synthesizer.get_response(item.query, ["\n\n".join(item.facts)]))
            (record,) = recorder.records
            draft, score = record.drafts[0] or "", record.trace.attempts[0].score
            right = item.grade(draft), item.grade(final)
            made.append(Asked(skill, item.facts, draft, final, float(score or 0.0), right))
    return made


def defers(policy: Policy, one: Asked) -> bool:
    """Return the policy's decision about a recorded draft."""
    small = FakeModel(one.draft, name="small", logprob=one.score)
    cascade = Cascade([small, FakeModel(one.final, name="large")], policy)
    request = Request([{"role": "user", "content": ""}], "", documents=one.passages)
    return bool(drive(cascade.plan(request), LocalPerformer()).trace.escalated)


def row(policy: Policy, made: list[Asked]) -> dict[str, Any]:
    """Return what a policy does to these questions."""
    went = [defers(policy, one) for one in made]
    share = fmean(went)
    small, large = (fmean(one.right[tier] for one in made) for tier in (0, 1))
    wrong = [gone for gone, one in zip(went, made, strict=True) if not one.right[0]]
    good = [gone for gone, one in zip(went, made, strict=True) if one.right[0]]
    return {
        "accuracy": fmean(one.right[gone] for gone, one in zip(went, made, strict=True)),
        "deferred": share,
        "random_at_that_share": small + share * (large - small),
        "wrong_drafts_deferred": fmean(wrong),
        "right_drafts_deferred": fmean(good),
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few questions, nothing written")
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    made = asked(15 if chosen.quick else 200)
    policies: dict[str, Policy] = {
        "overlap 0.6": Grounded(0.6),
        "overlap 0.9": Grounded(0.9),
        "word-count embedding 0.7": Grounded(0.7, embed=counted),
        "word-count embedding 0.9": Grounded(0.9, embed=counted),
        "mean_logprob -0.05": Threshold(mean_logprob, -0.05),
        "overlap 0.9, or mean_logprob -0.05": Grounded(0.9) | Threshold(mean_logprob, -0.05),
    }
    result = {
        "machine": machine(),
        "questions": len(made),
        "small": fmean(one.right[0] for one in made),
        "large": fmean(one.right[1] for one in made),
        "policies": {name: row(policy, made) for name, policy in policies.items()},
    }
    print(json.dumps(result, indent=1))
    if not chosen.quick:
        chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
