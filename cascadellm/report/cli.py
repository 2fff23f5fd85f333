"""The command `cascadellm report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cascadellm.jsonl import generations
from cascadellm.report.traces import load_traces, render_traces
from cascadellm.summary import summarise
from cascadellm.tier import Price

__all__ = ["register", "report"]

_MOST_SHOWN = 20


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("report")(report)


def report(
    traces: Annotated[Path, typer.Argument(help="JSONL file of recorded calls.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML page; default: beside the file.")
    ] = None,
    price: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Last tier's USD per million input and output tokens."),
    ] = None,
) -> None:
    """Write one HTML page about recorded calls and print their summary."""
    large = None if price is None else Price(input=price[0], output=price[1])
    if traces.is_dir():
        typer.echo(f"{traces}: a folder; name the JSONL file in it", err=True)
        raise typer.Exit(2)
    target = output if output is not None else traces.with_suffix(".html")
    if target.resolve() in {file.resolve() for file in (traces, *generations(traces))}:
        typer.echo(f"{target}: the page would replace the records; name it with -o", err=True)
        raise typer.Exit(2)
    try:
        rows, bad = load_traces(traces)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = render_traces(rows, bad, source=traces.name, large_price=large)
        target.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        typer.echo(f"{error.filename or traces}: {error.strerror or error}", err=True)
        raise typer.Exit(2) from None
    for line in bad[:_MOST_SHOWN]:
        typer.echo(f"{line.file}:{line.number}: {line.reason}", err=True)
    if len(bad) > _MOST_SHOWN:
        typer.echo(f"... and {len(bad) - _MOST_SHOWN} more unreadable lines", err=True)
    if not rows:
        typer.echo(f"{traces}: no finished call in this file", err=True)
        raise typer.Exit(1)
    typer.echo(str(summarise(rows, large_price=large)))
    typer.echo(f"{len(rows)} calls -> {target}")
