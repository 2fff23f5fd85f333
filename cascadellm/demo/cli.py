"""`cascadellm demo`: one command that shows a real cascade."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cascadellm.demo.run import SEED, dumps, run_demo
from cascadellm.demo.show import draw_curve, show

__all__ = ["demo", "register"]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for traces and the plot.")] = Path(
        "cascade-demo"
    ),
    n: Annotated[int, typer.Option(min=12, help="Number of questions.")] = 120,
    seed: Annotated[int, typer.Option(help="Which questions.")] = SEED,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Answer held-out questions with two small trained models, in both frameworks."""
    if seed == 7:
        raise typer.BadParameter("seed 7 draws the questions that choose the threshold")
    console = Console(stderr=json_output)
    bar = Progress(
        TextColumn("{task.description:44}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )

    def progress(label: str, total: int) -> Callable[[], None]:
        task = bar.add_task(label, total=total)
        return lambda: bar.advance(task)

    from cascadellm.local.calm import calm

    with calm(), bar:
        found = run_demo(out, n=n, seed=seed, progress=progress)
        draw_curve(found, out / "deferral.png")
    if json_output:
        typer.echo(dumps(found))
    else:
        show(console, found, out)


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(demo)
