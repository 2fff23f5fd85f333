"""The command `cascadellm evaluate`."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cascadellm.errors import CalibrationError, MissingDependencyError

if TYPE_CHECKING:
    from cascadellm.evaluation.compare import Evaluation, PolicyResult

__all__ = ["evaluate_command", "register"]

_SHOWN = ("norm", "area", "apgr", "cpt50", "cpt80", "qnc", "peak", "error_auc")


def register(app: typer.Typer) -> None:
    """Add the command to an application.

    Raises:
        MissingDependencyError: A package of the extra `calibrate` is not installed.
    """
    for package in ("numpy", "scipy", "sklearn"):
        if find_spec(package) is None:
            raise MissingDependencyError.for_extra(package, "calibrate")
    app.command("evaluate")(evaluate_command)


def evaluate_command(  # noqa: PLR0917 - typer passes every option by name
    records: Annotated[Path, typer.Argument(help="JSONL of records or collected answers.")],
    score: Annotated[list[str] | None, typer.Option(help="Score to judge; repeatable.")] = None,
    calibration: Annotated[
        list[Path] | None, typer.Option(help="Calibration to measure; repeatable.")
    ] = None,
    margin: Annotated[float, typer.Option(help="Quality that counts as equal, for QNC.")] = 0.01,
    tier_costs: Annotated[
        str | None, typer.Option(help="Cost per call of each tier, comma-separated.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=0, help="Bootstrap resamples.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    html: Annotated[Path | None, typer.Option(help="Write one HTML page.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the plot as PNG or SVG.")] = None,
    output: Annotated[Path | None, typer.Option("--json", help="Write all figures.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files.")] = False,
) -> None:
    """Judge deferral policies on graded records, beside random, oracle and prompt length."""
    from cascadellm.calibration.jsonl import check_output
    from cascadellm.calibration.loading import load_records
    from cascadellm.calibration.result import Calibration
    from cascadellm.evaluation.compare import evaluate

    for target in (html, png, output):
        if target is not None:
            check_output(target, overwrite=force)
    data = load_records(records, score or ())
    found = evaluate(
        data,
        thresholds={p.stem: Calibration.load(p) for p in calibration or ()},
        margin=margin,
        tier_costs=_costs(tier_costs),
        resamples=resamples,
        seed=seed,
    )
    _show(found)
    if output is not None:
        output.write_text(json.dumps(found.to_dict(), allow_nan=False) + "\n", "utf-8")
        typer.echo(f"-> {output}")
    if html is not None:
        from cascadellm.report.evaluation import render_evaluation

        html.write_text(render_evaluation(found, source=records.name), "utf-8")
        typer.echo(f"-> {html}")
    if png is not None:
        from cascadellm.evaluation.plot import save_plot

        save_plot(found, png)
        typer.echo(f"-> {png}")


def _costs(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise CalibrationError(f"--tier-costs: expected numbers like 0.1,1, got {text!r}") from None


def _show(found: Evaluation) -> None:
    console = Console()
    title = f"{found.n} questions: small {found.small:.4f}, large {found.large:.4f}"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("policy", no_wrap=True)
    for name in _SHOWN:
        table.add_column(name, justify="right")
    for result in found.results:
        style = "dim" if result.baseline else None
        table.add_row(result.name, *(_cell(result, name) for name in _SHOWN), style=style)
    console.print(table)
    for point in found.points:
        console.print(
            f"{point.name}: quality {point.quality:.4f}, {point.deferral_rate:.1%} deferred, "
            f"gap {point.gap:+.4f} [{point.gap_interval[0]:+.4f}, {point.gap_interval[1]:+.4f}]"
        )
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    console.print(found.sentence, markup=False)


def _cell(result: PolicyResult, name: str) -> str:
    value = result.values[name]
    if math.isnan(value):
        return "-"
    if name != "norm" or name not in result.intervals or result.baseline:
        return f"{value:.3f}"
    low, high = result.intervals[name]
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
