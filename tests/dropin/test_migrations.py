"""The migration page: every diff is two programs that run, and changes one line of code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.openai_server import OpenAIServer, Said

pytestmark = [pytest.mark.dropin, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "migrating.md").read_text("utf-8")
DIFFS = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```diff\n(.*?)^```", PAGE, re.M | re.S))


def version(diff: str, sign: str) -> str:
    """Return the program before (`-`) or after (`+`) a change."""
    lines = diff.splitlines()
    return "\n".join(line[1:] for line in lines if not line or line[0] in f" {sign}")


def changed(diff: str, sign: str) -> list[str]:
    """Return the lines that only one version has, imports apart."""
    lines = [line[1:] for line in diff.splitlines() if line.startswith(sign)]
    return [line for line in lines if not line.startswith(("from ", "import "))]


def reply(body: dict[str, Any]) -> Said:
    """Answer as a large hosted model would: by schema, by tool, or in words."""
    messages = body["messages"]
    if "json_schema" in body.get("response_format", {}):
        return Said.text('{"name": "Nia", "age": 41}')
    tools = body.get("tools") or []
    if tools and messages[-1]["role"] != "tool":
        function = tools[0]["function"]
        names = list(function["parameters"]["properties"])
        values = {"name": "Nia", "age": 41, "expression": "127 * 46"}
        call = json.dumps({name: values.get(name, "x") for name in names})
        return Said(tool_calls=[("call_1", function["name"], call)])
    return Said.text("The answer stands in the context.")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    """A server that the providers' own clients find through their environment variables."""
    with OpenAIServer(reply) as running:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-local")
        monkeypatch.setenv("OPENAI_API_BASE", running.url)
        monkeypatch.setenv("OPENAI_BASE_URL", running.url)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        yield running


@pytest.mark.parametrize("name", DIFFS)
def test_a_migration_changes_the_line_that_builds_the_model(name: str) -> None:
    """Besides an import one line goes and one comes, and both assign the same name."""
    (gone,), (came,) = changed(DIFFS[name], "-"), changed(DIFFS[name], "+")
    assert gone.split(" = ")[0] == came.split(" = ")[0]
    assert "CascadeLLM(" in came
    assert "CascadeLLM" not in version(DIFFS[name], "-")


@pytest.mark.parametrize("sign", ["-", "+"], ids=["before", "after"])
@pytest.mark.parametrize("name", DIFFS)
def test_both_versions_of_a_migration_run(name: str, sign: str, server: OpenAIServer) -> None:
    """The program before asks the provider each time; the one after asks it no more often."""
    program = version(DIFFS[name], sign)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    asked = len(server.requests)
    if sign == "-":
        assert asked
    else:
        assert asked <= 2


def test_the_page_holds_the_migrations() -> None:
    """All eight migrations are on the page, and the pattern above finds them."""
    llamaindex = {"query engine", "chat engine", "agent", "structured prediction"}
    langchain = {"LangChain chain", "LangChain agent", "LangGraph graph"}
    wanted = langchain | {"LangChain structured output"} | {f"LlamaIndex {w}" for w in llamaindex}
    assert wanted == set(DIFFS)
