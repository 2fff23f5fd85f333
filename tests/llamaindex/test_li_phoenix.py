"""Phoenix itself, where it is installed: started on loopback, sent a trace, asked for it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "phoenix_trace.py"
# Phoenix brings many packages, so it may live in an environment of its own
PYTHON = os.environ.get("CASCADE_PHOENIX_PYTHON") or (
    sys.executable if importlib.util.find_spec("phoenix") else None
)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.fixture
def phoenix(tmp_path: Path) -> Iterator[str]:
    """Start Phoenix on a free port; yield its address."""
    if PYTHON is None:
        pytest.skip("arize-phoenix is not installed; CASCADE_PHOENIX_PYTHON may name a Python")
    port = _free_port()
    env = {
        **os.environ,
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(_free_port()),
        "PHOENIX_WORKING_DIR": str(tmp_path),
    }
    command = [PYTHON, "-m", "phoenix.server.main", "serve"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 240
    try:
        while not _answers(url):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < until, "Phoenix did not start in time"
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _page_filters(url: str) -> dict[str, list[str]]:
    """Return what each filter that docs/tracing.md lists for Phoenix finds in it."""
    page = (EXAMPLE.parents[1] / "docs" / "tracing.md").read_text("utf-8")
    listed = re.search(r"\*\*Phoenix\*\*.*?```text\n(.*?)```", page, flags=re.S)
    assert listed is not None
    asked = (
        "query($f: String!) { projects { edges { node { spans(filterCondition: $f, first: 50) "
        "{ edges { node { name } } } } } } }"
    )
    found: dict[str, list[str]] = {}
    for condition in listed[1].strip().splitlines():
        body = json.dumps({"query": asked, "variables": {"f": condition}}).encode()
        request = urllib.request.Request(
            f"{url}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            projects = json.load(reply)["data"]["projects"]["edges"]
        spans = [edge for project in projects for edge in project["node"]["spans"]["edges"]]
        found[condition] = [edge["node"]["name"] for edge in spans]
    return found


@pytest.mark.phoenix
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_phoenix_shows_the_trace(phoenix: str) -> None:
    """The example's trace is read back from Phoenix: who answered, and the whole tree."""
    result = subprocess.run(
        [sys.executable, str(EXAMPLE), "--endpoint", phoenix, "--check"],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    found = json.loads(result.stdout[result.stdout.index("{") :])
    assert found["answered_by"] == "large"
    for name, finds in _page_filters(phoenix).items():
        assert finds, name
    names = found["spans"]
    assert names.count("CascadeTier.attempt") == 2
    assert names.count("LocalLLM.chat") == 2
    assert names.count("DeferralPolicy.decide") == 1
    assert "RetrieverQueryEngine.query" in names


def test_without_phoenix_the_trace_is_printed() -> None:
    """`--local` sends the trace to a receiver on this machine and prints the tree that arrived."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--local"],
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    depth = {name: len(line) - len(line.lstrip()) for name, line in lines.items()}
    assert "'cascade.answered_by': 'large'" in lines["CascadeLLM.chat"]
    tree = ("RetrieverQueryEngine.query", "CascadeLLM.chat", "CascadeTier.attempt", "LocalLLM.chat")
    assert sorted(depth[name] for name in tree) == [depth[name] for name in tree]
    assert 0 == depth["RetrieverQueryEngine.query"]


def test_a_missing_phoenix_is_a_sentence() -> None:
    """`--check` without Phoenix says what to install, in one line and soon."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--check", "--endpoint", f"http://127.0.0.1:{_free_port()}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        # a Python without any package
        env={**os.environ, "CASCADE_PHOENIX_PYTHON": "/bin/false"},
    )
    assert 1 == done.returncode
    assert "no Phoenix answers at http://127.0.0.1" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
