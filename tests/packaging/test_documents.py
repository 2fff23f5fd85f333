from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXECUTED = "<!-- its python blocks are executed by the tests -->"
PAGES = [ROOT / "README.md"] + [
    page for page in sorted((ROOT / "docs").rglob("*.md")) if EXECUTED in page.read_text("utf-8")
]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LINK = re.compile(r"\[[^\]]*\]\((?!https?:|#|mailto:)([^)#\s]+)")


def blocks(text: str) -> list[str]:
    """Return the python blocks of a Markdown page."""
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_code_of_a_page_runs(page, run_python, tmp_path):
    """The python blocks of a page run one after another in a fresh interpreter."""
    code = blocks(page.read_text("utf-8"))
    assert code, f"{page.name} has no python block"
    done = run_python("\n".join(code), cwd=tmp_path, timeout=180)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.name)
def test_an_example_runs(example, run_python, tmp_path):
    """Each example runs from start to end on the demo pair, without a key or a network."""
    quick = ["--quick"] if '"--quick"' in example.read_text("utf-8") else []
    code = f"import runpy; runpy.run_path({str(example)!r}, run_name='__main__')"
    done = run_python(code, *quick, cwd=tmp_path, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "an example shows something"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.name)
def test_an_example_is_one_idea(example):
    """An example is at most 60 lines of code and says in its docstring what it shows."""
    text = example.read_text("utf-8")
    code = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    # an example that also checks a running service needs room for that
    assert len(code) <= (90 if example.stem.endswith("_trace") else 60)
    assert ast.get_docstring(ast.parse(text))


def test_the_readme_stays_short():
    """The README is read in one go: at most 150 lines."""
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_links_inside_the_repository_lead_somewhere():
    """Every relative link of README and docs points at a file that exists."""
    dead = []
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in LINK.findall(page.read_text("utf-8")):
            if not (page.parent / target).exists():
                dead.append(f"{page.relative_to(ROOT)}: {target}")
    assert dead == []


def test_the_documentation_leads_to_every_page():
    """Every page of docs/ stands in the navigation, and the navigation names no other."""
    config = (ROOT / "mkdocs.yml").read_text("utf-8")
    named = set(re.findall(r"([\w/-]+\.md)\s*$", config.split("nav:")[1], flags=re.M))
    there = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert there == named


def test_the_guarantees_name_tests_that_exist():
    """Each test that the README or docs/guarantees.md names is in the tree."""
    named = []
    for page in (ROOT / "README.md", ROOT / "docs" / "guarantees.md"):
        named += re.findall(r"tests/[\w/]+\.py(?:::\w+)?", page.read_text("utf-8"))
    assert named
    for name in named:
        file, _, function = name.partition("::")
        assert (ROOT / file).is_file(), name
        assert not function or f"def {function}(" in (ROOT / file).read_text("utf-8"), name


def test_the_readme_names_the_real_commands():
    """README, Makefile and the continuous check use one test command."""
    assert "make test" in (ROOT / "README.md").read_text("utf-8")
    assert (ROOT / ".ci" / "run").read_text("utf-8").rstrip().endswith("make test")
