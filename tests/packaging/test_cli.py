from __future__ import annotations

import pytest

import cascadellm

MAIN = "from cascadellm.cli import main; main()"


def test_version_is_printed(run_python):
    """`cascadellm --version` prints the version."""
    done = run_python(MAIN, "--version")
    assert (0, cascadellm.__version__) == (done.returncode, done.stdout.strip())


@pytest.mark.parametrize("command", ["demo", "collect", "calibrate", "evaluate", "report"])
def test_every_command_explains_itself(command, run_python):
    """Each command has a help page."""
    done = run_python(MAIN, command, "--help")
    assert done.returncode == 0, done.stderr
    assert f" {command} " in done.stdout


def test_an_unknown_command_is_a_usage_error(run_python):
    """A misspelt command is refused with exit status 2 and no stack trace."""
    done = run_python(MAIN, "calibrat")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_help_loads_no_model_library(run_python):
    """Asking for help is fast: it loads neither torch nor a framework."""
    heavy = ("torch", "transformers", "langchain_core", "llama_index", "sklearn", "matplotlib")
    code = (
        "from cascadellm.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('LOADED', *sorted(set({heavy!r}) & set(sys.modules)))"
    )
    done = run_python(code, "--help")
    assert done.stdout.splitlines()[-1] == "LOADED", done.stdout


def test_an_own_error_is_a_sentence(run_python, monkeypatch):
    """An error of the library reaches the terminal without a stack trace."""
    code = (
        "import cascadellm.cli as cli, typer\n"
        "from cascadellm import ConfigurationError\n"
        "def _app():\n"
        "    def fail(): raise ConfigurationError('expected x, got y')\n"
        "    app = typer.Typer(); app.command()(fail); return app\n"
        "cli._app = _app\n"
        "cli.main()"
    )
    done = run_python(code)
    assert (1, "cascadellm: expected x, got y\n") == (done.returncode, done.stderr)
