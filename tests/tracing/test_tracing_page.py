"""The page on tracing: its code runs against local servers, its filters find what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.langsmith_server import LangSmithServer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tracing.md").read_text("utf-8")
PHOENIX = "http://localhost:6006"


@pytest.fixture(scope="module")
def server() -> LangSmithServer:
    """A local LangSmith that the page's code was run against, Phoenix's spans included."""
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S))
    assert PHOENIX in code
    with LangSmithServer() as langsmith:
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "LANGSMITH_TRACING": "true",
            "LANGCHAIN_TRACING_V2": "true",
            "LANGSMITH_API_KEY": "none",
            "LANGSMITH_ENDPOINT": langsmith.url,
        }
        flush = "\nfrom langchain_core.tracers.langchain import wait_for_all_tracers as w\nw()\n"
        done = subprocess.run(
            [sys.executable, "-c", code.replace(PHOENIX, langsmith.url) + flush],
            capture_output=True,
            text=True,
            env=env,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    return langsmith


def test_the_pages_code_sends_the_trees_that_it_draws(server: LangSmithServer) -> None:
    """Each name in the two drawings arrives, below the parent under which it is drawn."""
    shapes = {tree.name: tree for tree in server.trees()}
    chain = shapes["CascadeLLM"]
    assert [child.name for child in chain.children] == ["small", "cascade_decision", "large"]
    attempts = [
        child for child in shapes["CascadeLLM.chat"].children if child.name == "CascadeTier.attempt"
    ]
    below = sorted(node.name for child in attempts for node in child.children)
    assert below == ["DeferralPolicy.decide", "LocalLLM.chat", "LocalLLM.chat"]
    for name in {node.name for tree in server.trees() for node in tree.all()}:
        assert name in PAGE


def test_the_pages_filters_find_calls_of_both_frameworks(server: LangSmithServer) -> None:
    """Every metadata filter and tag filter that the page lists for LangSmith finds both."""
    filters = re.findall(r'metadata_key, "(\w+)"\), eq\(metadata_value, "(\w+)"', PAGE)
    tags = re.findall(r'has\(tags, "([^"]+)"\)', PAGE)
    assert len(filters) == 2
    assert len(tags) == 2
    for key, value in filters:
        names = {node.name for node in server.filtered(**{key: value})}
        assert names in ({"CascadeLLM", "CascadeLLM.chat"}, {"small", "CascadeTier.attempt"})
    for tag in tags:
        assert {n.name for n in server.tagged(tag)} == {"CascadeLLM", "CascadeLLM.chat"}


def test_the_page_lists_every_name(server: LangSmithServer) -> None:
    """What the cascade puts on its runs stands on the page, name by name."""
    sent = {
        key
        for tree in server.trees()
        for node in tree.all()
        for key in node.metadata
        if key.startswith("cascade_")
    }
    assert {"cascade_answered_by", "cascade_action"} <= sent
    assert not [name for name in sent if f"`{name}`" not in PAGE]
