"""From questions to a certified threshold to the plot, on the two demo models.

    python examples/calibrate.py [--n 400] [--out cascade-calibration]

Half of the questions choose the threshold, the other half show what it does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cascadellm import Cascade, Price, Threshold, Tier, mean_logprob
from cascadellm.answer import Answer
from cascadellm.calibration import CalibrationError, Question, calibrate_threshold
from cascadellm.calibration.collect import collect_records
from cascadellm.calibration.collected import to_records
from cascadellm.demo import load, questions
from cascadellm.evaluation import evaluate, save_plot
from cascadellm.report.evaluation import render_evaluation


def main() -> None:
    """Collect, calibrate, evaluate, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("cascade-calibration"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    # example prices: USD per million tokens, in proportion to the models' sizes
    tiers = [
        Tier(load("small"), price=Price(input=0.1, output=0.1)),
        Tier(load("large"), price=Price(input=1.0, output=1.0)),
    ]
    cascade = Cascade(tiers, Threshold(mean_logprob, -0.1))
    drawn = [item for item in questions(2 * options.n, seed=5) if not item.tools]
    items = {item.question: item for item in drawn[: options.n]}

    def grade(question: str, _reference: str | None, answer: Answer) -> bool:
        return items[question].grade(answer.text)

    asked = [Question(text, item.answer) for text, item in items.items()]
    found = collect_records(
        cascade,
        asked,
        options.out / "answers.jsonl",
        grade=grade,
        concurrency=1,
        progress=lambda p: print(f"\r{p.done} of {p.total} questions", end="", flush=True),
    )
    print(f"\n{found.asked} calls, {found.cost_usd:.2g} USD at the example prices")

    records = to_records(found.records, mean_logprob)
    tuning, held_out = records.split(0.5, seed=0)
    try:
        made = calibrate_threshold(tuning, target_risk=0.05, confidence=0.9)
    except CalibrationError as error:
        print(f"No threshold can be promised: {error}")
        thresholds = {}
    else:
        made.save(options.out / "calibration.json", overwrite=True)
        print(f"accept iff mean_logprob >= {made.threshold:.4f}\n{made.promise}")
        thresholds = {"certified": made}

    report = evaluate(held_out, thresholds=thresholds)
    print(report.sentence)
    page = options.out / "evaluation.html"
    page.write_text(render_evaluation(report, source="demo questions"), "utf-8")
    print(f"-> {page}, {save_plot(report, options.out / 'curves.png')}")


if __name__ == "__main__":
    main()
