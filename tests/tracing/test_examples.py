"""The tracing examples, without a key or a service and with one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.langsmith_server import LangSmithServer

ROOT = Path(__file__).parents[2]
TREE = ["CascadeLLM", "small", "cascade_decision", "large"]


def run_example(name: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run one of the examples in a process of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LANGSMITH", "LANGCHAIN"))}
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**kept, **env, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("arguments", [("--local",), ()], ids=["--local", "no key"])
def test_langsmiths_tree_is_printed_without_a_key(arguments: tuple[str, ...]) -> None:
    """Answer, tree, tier, score and reason are read off the screen."""
    done = run_example("langsmith_trace.py", *arguments)
    assert done.returncode == 0, done.stderr
    said, *lines = done.stdout.splitlines()
    assert said == "large answered: Paris is the capital of France."
    assert [line.split()[1] for line in lines] == TREE
    assert [len(line) - len(line.lstrip()) for line in lines] == [0, 2, 2, 2]
    assert "'cascade_answered_by': 'large'" in lines[0]
    assert "'cascade_action': 'escalate'" in lines[1]
    assert "mean_logprob -1.2 < -0.35" in lines[2]


def test_with_a_key_the_trace_goes_where_langsmith_is() -> None:
    """With `LANGSMITH_API_KEY` the same tree goes to the service, under that key."""
    with LangSmithServer() as server:
        settings = {"LANGSMITH_API_KEY": "ls-none", "LANGSMITH_ENDPOINT": server.url}
        done = run_example("langsmith_trace.py", **settings)
        assert done.returncode == 0, done.stderr
        root = server.tree()
    assert [node.name for node in root.all()] == TREE
    assert "ls-none" in {headers.get("x-api-key") for headers in server.headers}
    assert done.stdout.splitlines() == ["large answered: Paris is the capital of France."]


def test_without_phoenix_one_sees_what_it_would_get() -> None:
    """Where no Phoenix answers the example says so and prints the trace."""
    done = run_example("phoenix_trace.py", "--endpoint", "http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert "no Phoenix answers at http://127.0.0.1:9" in done.stdout
    assert "'cascade.answered_by': 'large'" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["langsmith_trace.py", "phoenix_trace.py"])
def test_a_wrong_argument_is_refused(name: str) -> None:
    """An argument that nobody knows is one line, not ignored."""
    done = run_example(name, "--remote")
    assert done.returncode == 2
    assert "unrecognized arguments: --remote" in done.stderr
