"""From questions to a certified threshold to the plot, on the two demo models.

    python examples/calibrate.py [--quick]

Half of the questions choose the threshold, the other half show what it does.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cascadellm import Cascade, Price, Threshold, Tier, mean_entropy, mean_logprob
from cascadellm.answer import Answer
from cascadellm.calibration import (
    CalibrationError,
    Question,
    calibrate_threshold,
    collect_records,
    to_records,
)
from cascadellm.demo import load, questions
from cascadellm.evaluation import evaluate, save_plot
from cascadellm.report.evaluation import render_evaluation


def main() -> None:
    """Collect, calibrate, evaluate, draw."""
    n = 16 if "--quick" in sys.argv else 400
    out = Path("cascade-calibration")
    out.mkdir(exist_ok=True)
    # example prices: USD per million tokens
    tiers = [
        Tier(load("small"), price=Price(input=0.1, output=0.1)),
        Tier(load("large"), price=Price(input=1.0, output=1.0)),
    ]
    cascade = Cascade(tiers, Threshold(mean_logprob, -0.1))
    drawn = [item for item in questions(2 * n, seed=5) if not item.tools][:n]
    items = {item.question: item for item in drawn}

    def grade(question: str, _reference: str | None, answer: Answer) -> bool:
        return items[question].grade(answer.text)

    asked = [Question(text, item.answer) for text, item in items.items()]
    found = collect_records(cascade, asked, out / "answers.jsonl", grade=grade, concurrency=1)
    print(f"{len(found.records)} questions, {found.asked} calls, {found.cost_usd:.2g} USD")

    # the threshold is for the first score; the other one is drawn beside it
    records = to_records(found.records, mean_logprob, columns={"mean_entropy": mean_entropy})
    tuning, held_out = records.split(0.5, seed=0)
    thresholds = {}
    try:
        made = calibrate_threshold(tuning, target_risk=0.05, confidence=0.9)
    except CalibrationError as error:
        print(f"No threshold is promised: {error}")
    else:
        made.save(out / "calibration.json", overwrite=True)
        print(f"Accept iff mean_logprob >= {made.threshold:.4f}. {made.promise}")
        thresholds["certified"] = made

    report = evaluate(held_out, thresholds=thresholds)
    print(report.sentence)
    (out / "evaluation.html").write_text(render_evaluation(report), "utf-8")
    save_plot(report, out / "curves.png")
    print(f"-> {out}/evaluation.html, {out}/curves.png")


if __name__ == "__main__":
    main()
