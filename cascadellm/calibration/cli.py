"""The commands `cascadellm collect` and `cascadellm calibrate`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from cascadellm.errors import ConfigurationError, MissingDependencyError

if TYPE_CHECKING:
    from cascadellm.calibration.collect import Collection, Progress
    from cascadellm.calibration.records import CalibrationRecords
    from cascadellm.calibration.result import Calibration

__all__ = ["calibrate", "collect", "register"]


def register(app: typer.Typer) -> None:
    """Add the commands to an application.

    Raises:
        MissingDependencyError: A package of the extra `calibrate` is not installed.
    """
    for package in ("numpy", "scipy", "sklearn"):
        if find_spec(package) is None:
            raise MissingDependencyError.for_extra(package, "calibrate")
    app.command("collect")(collect)
    app.command("calibrate")(calibrate)


def collect(
    questions: Annotated[Path, typer.Argument(help="JSONL: question, and answer to grade by.")],
    cascade: Annotated[str, typer.Option(help="Where the cascade is: module:name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSONL of the answers.")] = Path(
        "answers.jsonl"
    ),
    grade: Annotated[
        str, typer.Option(help="exact, none, or module:name of a function.")
    ] = "exact",
    concurrency: Annotated[int, typer.Option(min=1, help="Questions at the same time.")] = 4,
    max_cost: Annotated[float | None, typer.Option(help="Stop at this cost, in USD.")] = None,
    top_logprobs: Annotated[
        bool, typer.Option("--top-logprobs", help="Also keep alternatives, for margin scores.")
    ] = False,
) -> None:
    """Ask every tier every question; a second run asks only what is missing."""
    from cascadellm.calibration.collect import collect_records, read_questions
    from cascadellm.calibration.grading import exact_match
    from cascadellm.calibration.jsonl import check_output

    listed = read_questions(questions)
    # a file that exists is continued
    check_output(output, overwrite=True)
    target = _load(cascade)
    known: dict[str, Any] = {"exact": exact_match, "none": None}
    grader = known[grade] if grade in known else _load(grade)
    with Bar(*_columns(), console=Console(stderr=True)) as bar:
        try:
            found = collect_records(
                target,
                listed,
                output,
                grade=grader,
                concurrency=concurrency,
                max_cost_usd=max_cost,
                reads=frozenset({"logprobs", "top_logprobs"} if top_logprobs else {"logprobs"}),
                progress=_shown(bar, len(listed)),
            )
        except KeyboardInterrupt:
            bar.stop()
            said = f"interrupted; every answer so far is in {output}, run again to continue"
            typer.echo(said, err=True)
            raise typer.Exit(130) from None
    typer.echo(f"{len(found.records)} of {len(listed)} questions are complete -> {output}")
    _say_run(found)
    if found.left:
        raise typer.Exit(3)


def _shown(bar: Bar, total: int) -> Callable[[Progress], None]:
    task = bar.add_task("asking every tier", total=total, cost="")

    def show(now: Progress) -> None:
        cost = "cost unknown" if now.cost_usd is None else f"{now.cost_usd:.4g} USD"
        bar.update(task, completed=now.done, cost=cost)

    return show


def _columns() -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[cost]}"),
    )


def _say_run(found: Collection) -> None:
    cost = "unknown" if found.cost_usd is None else f"{found.cost_usd:.4g} USD"
    typer.echo(f"{found.asked} calls in this run, cost {cost}")
    for name, error in list(found.failed.items())[:10]:
        typer.echo(f"failed: {name}: {error}", err=True)
    if found.stopped:
        typer.echo("stopped at the cost limit; run again to continue")


def calibrate(  # noqa: PLR0917 - typer passes every option by name
    records: Annotated[Path, typer.Argument(help="JSONL of records or collected answers.")],
    target_risk: Annotated[float | None, typer.Option(help="Promised risk, e.g. 0.02.")] = None,
    confidence: Annotated[float, typer.Option(help="Probability of the promise.")] = 0.95,
    loss: Annotated[
        str, typer.Option(help="one_sided, signed, selective or disagreement.")
    ] = "one_sided",
    score: Annotated[str | None, typer.Option(help="Score of collected answers.")] = None,
    boundary: Annotated[int | None, typer.Option(help="One boundary only.")] = None,
    joint: Annotated[bool, typer.Option("--joint", help="Search all thresholds.")] = False,
    deferral_rate: Annotated[float | None, typer.Option(help="Budget: share that defers.")] = None,
    cost_usd: Annotated[float | None, typer.Option(help="Budget: mean USD per call.")] = None,
    tier_costs: Annotated[
        tuple[float, float] | None, typer.Option(help="USD per call: tier, last tier.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file.")] = Path(
        "calibration.json"
    ),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Choose a threshold with a certified risk or budget, and save it."""
    # the numerical packages load when a command runs, not for every `--help`
    from cascadellm.calibration.budget import calibrate_budget
    from cascadellm.calibration.jsonl import check_output
    from cascadellm.calibration.loading import load_records

    check_output(output, overwrite=force)
    data = load_records(records, () if score is None else (score,))
    if deferral_rate is not None or cost_usd is not None:
        if target_risk is not None:
            raise ConfigurationError("give a target risk or a budget, not both")
        found = calibrate_budget(
            data,
            deferral_rate=deferral_rate,
            cost_usd=cost_usd,
            tier_costs=tier_costs,
            confidence=confidence,
            boundary=boundary or 0,
            seed=seed,
        )
    elif target_risk is None:
        raise ConfigurationError("give --target-risk, --deferral-rate or --cost-usd")
    else:
        found = _certify(data, target_risk, confidence, loss, boundary, joint, seed)
    found.save(output, overwrite=force)
    _say(found)
    typer.echo(f"-> {output}")


def _certify(
    data: CalibrationRecords,
    target_risk: float,
    confidence: float,
    loss: str,
    boundary: int | None,
    joint: bool,
    seed: int,
) -> Calibration:
    from cascadellm.calibration.boundaries import calibrate_cascade, search_cascade
    from cascadellm.calibration.threshold import calibrate_threshold

    if joint:
        return search_cascade(
            data, target_risk=target_risk, confidence=confidence, loss=loss, seed=seed
        )
    if boundary is None and data.tiers > 2:
        return calibrate_cascade(
            data, target_risk=target_risk, confidence=confidence, loss=loss, seed=seed
        )
    return calibrate_threshold(
        data,
        target_risk=target_risk,
        confidence=confidence,
        loss=loss,
        boundary=boundary or 0,
        seed=seed,
    )


def _say(found: Calibration) -> None:
    for place, threshold in zip(found.boundaries, found.thresholds, strict=True):
        index = found.boundaries.index(place)
        typer.echo(f"boundary {place}: accept iff {found.score_names[index]} >= {threshold:.6g}")
    typer.echo(found.promise)
    low, high = found.share_kept_interval
    typer.echo(f"share kept: {found.share_kept:.1%} (95% interval {low:.1%} to {high:.1%})")
    if found.cost_usd is not None and found.large_cost_usd:
        part = found.cost_usd / found.large_cost_usd
        typer.echo(f"cost per call: {found.cost_usd:.4g} USD, {part:.0%} of the last tier alone")
    typer.echo("This rests on:")
    for line in found.assumptions:
        typer.echo(f"  - {line}")
    for line in found.notes:
        typer.echo(f"note: {line}")


def _load(place: str) -> Any:
    """Return what `module:name` names; modules of the current folder are found."""
    module, _, name = place.partition(":")
    if not module or not name:
        raise ConfigurationError(f"expected module:name, got {place!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"cannot import {module!r} ({error}); run the command in the folder of the file"
        ) from error
    except Exception as error:
        raise ConfigurationError(
            f"importing {module!r} failed: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(found, name):
        raise ConfigurationError(f"module {module!r} has no name {name!r}")
    return getattr(found, name)
