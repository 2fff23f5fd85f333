"""The command line: `cascadellm demo | collect | calibrate | evaluate | report`.

Each room brings its own commands in `<room>/cli.py`, through `register(app)`. A room whose
extra is missing keeps its commands, and they say what to install.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from cascadellm._version import __version__
from cascadellm.errors import CascadeError, MissingDependencyError

if TYPE_CHECKING:
    import typer

__all__ = ["main"]

_ROOMS = {
    "cascadellm.demo.cli": (("demo",), "demo"),
    "cascadellm.calibration.cli": (("collect", "calibrate"), "calibrate"),
    "cascadellm.evaluation.cli": (("evaluate",), "calibrate"),
    "cascadellm.report.cli": (("report",), "cli"),
}
"""Module -> (its commands, the extra that it needs)."""


def main() -> None:
    """Run the command line; errors of our own are sentences, not stack traces."""
    for package in ("typer", "rich"):
        try:
            import_module(package)
        except ImportError:
            _fail(MissingDependencyError.for_extra(package, "cli"))
    app = _app()
    try:
        app()
    except CascadeError as error:
        _fail(error)
    except OSError as error:
        # a file that cannot be read or written; the sentence names it
        _fail(error)


def _app() -> typer.Typer:
    import typer

    app = typer.Typer(
        name="cascadellm",
        help="A cheap local model and a large one answer as one.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    def version(show: bool) -> None:
        if show:
            typer.echo(__version__)
            raise typer.Exit

    @app.callback()
    def options(
        version: bool = typer.Option(
            False, "--version", callback=version, is_eager=True, help="Print the version."
        ),
    ) -> None:
        pass

    for module, (commands, extra) in _ROOMS.items():
        _mount(app, module, commands, extra)
    return app


def _mount(app: typer.Typer, module: str, commands: tuple[str, ...], extra: str) -> None:
    """Add a room's commands, or commands of the same names that say what is missing."""
    try:
        import_module(module).register(app)
    except ImportError as error:
        if error.name == module:
            return
        reason = _missing(error, extra)
        for command in commands:
            _mount_refusal(app, command, extra, reason)


def _mount_refusal(app: typer.Typer, command: str, extra: str, reason: CascadeError) -> None:
    settings = {"ignore_unknown_options": True, "allow_extra_args": True}

    @app.command(command, help=f"Needs the extra {extra!r}.", context_settings=settings)
    def refuse() -> None:
        raise reason


def _missing(error: ImportError, extra: str) -> CascadeError:
    if isinstance(error, MissingDependencyError):
        return error
    if error.name is None or error.name.startswith(
        ("cascadellm", "langchain_cascade", "llamaindex_cascade")
    ):
        # a fault of our own must not look like a missing extra
        raise error
    return MissingDependencyError.for_extra(error.name, extra)


def _fail(error: Exception) -> NoReturn:
    sys.stderr.write(f"cascadellm: {error}\n")
    raise SystemExit(1)
