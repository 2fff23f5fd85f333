"""What the demo shows: the table, three answers, the deferral curve, the ten lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table

from cascadellm.demo.run import Demo, Row, examples, explain, final_answer
from cascadellm.errors import MissingDependencyError

__all__ = ["TEN_LINES", "draw_curve", "show"]

TEN_LINES = """\
from langchain_cascade import CascadeLLM, Threshold, mean_logprob
# or: from llamaindex_cascade import CascadeLLM, Threshold, mean_logprob
from langchain_openai import ChatOpenAI

llm = CascadeLLM(
    tiers=["hf:Qwen/Qwen3-0.6B", ChatOpenAI(model="gpt-5")],
    policy=Threshold(mean_logprob, -0.35),
)
answer = llm.invoke("Why is the sky blue?")
print(answer.content, answer.response_metadata["cascade"]["answered_by"])"""


def show(console: Console, demo: Demo, out: Path) -> None:
    """Print everything that `--json` would say, for a person."""
    console.print(_main_table(demo))
    console.print(_skill_table(demo))
    size = ", ".join(f"{name} {count / 1e6:.2f}M" for name, count in demo.parameters.items())
    chosen = ", ".join(
        f"{tuned.threshold:.4f} for a {name} (on {tuned.n} other questions)"
        for name, tuned in demo.tuned.items()
    )
    console.print(
        f"[dim]Thresholds on mean logprob: {chosen}; chosen to keep 95% of the large model's "
        f"gain. Costs are relative to the large model alone; the two models are priced in "
        f"proportion to their parameters ({size}).[/]\n"
    )
    for row in examples(demo.rows):
        _answer(console, row)
    console.print(f"Traces: {out / 'traces.jsonl'}   Deferral curve: {out / 'deferral.png'}\n")
    console.print("[bold]The same in your own project[/] (a 1-8B model on your GPU, any API):")
    console.print(Syntax(TEN_LINES, "python", background_color="default"))


def _main_table(demo: Demo) -> Table:
    title = f"{len(demo.rows)} held-out questions, {_frameworks(demo)}"
    table = Table(title=title, title_justify="left")
    for name in ("", "accuracy", "latency", "asked the large model", "relative cost"):
        table.add_column(name, justify="left" if not name else "right")
    for line in demo.table():
        style = "bold green" if line["way"] == "cascade" else ""
        table.add_row(
            line["way"],
            f"{line['accuracy']:.1%}",
            f"{line['latency_s'] * 1000:.0f} ms",
            f"{line['deferred']:.0%}",
            f"{line['relative_cost']:.2f}",
            style=style,
        )
    return table


def _frameworks(demo: Demo) -> str:
    counts: dict[str, int] = {}
    for row in demo.rows:
        counts[row.framework] = counts.get(row.framework, 0) + 1
    return ", ".join(f"{count} through a {name}" for name, count in counts.items())


def _skill_table(demo: Demo) -> Table:
    table = Table(title="accuracy by skill", title_justify="left")
    for name in ("", "n", "small only", "large only", "cascade", "asked the large model"):
        table.add_column(name, justify="left" if not name else "right")
    for line in demo.by_skill():
        table.add_row(
            line["skill"],
            str(line["n"]),
            *(f"{line[way]:.0%}" for way in ("small only", "large only", "cascade")),
            f"{line['deferred']:.0%}",
        )
    return table


def _answer(console: Console, row: Row) -> None:
    question = row.item.query or row.item.question
    mark = "[green]right[/]" if row.ok["cascade"] else "[red]wrong[/]"
    console.print(f"[bold]{escape(question)}[/]  [dim]({row.framework})[/]")
    console.print(f"  {escape(final_answer(row.record.output))}  {mark}")
    console.print(f"  [cyan]{escape(explain(row))}[/]\n")


def draw_curve(demo: Demo, path: Path) -> None:
    """Write the deferral curve as a PNG.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError.for_extra("matplotlib", "calibrate") from error
    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    axes: Any = figure.subplots()
    shares, accuracies = zip(*demo.curve(), strict=True)
    line = next(entry for entry in demo.table() if entry["way"] == "cascade")
    axes.plot([0, 1], [accuracies[0], accuracies[-1]], "--", color="#888888", label="random")
    axes.plot(shares, accuracies, color="#1f6feb", label="mean logprob of the draft")
    chosen = {"color": "#d1242f", "label": "the demo's thresholds"}
    axes.plot(line["deferred"], line["accuracy"], "o", **chosen)
    axes.set_xlabel("share of questions that the large model is asked")
    axes.set_ylabel("accuracy")
    axes.set_title(f"Deferral curve, {len(demo.rows)} held-out questions", loc="left")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path)
