"""The notebooks: they run from a fresh kernel, and what they show is committed with them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
PICTURE_CAP = 60_000

_RUN = """
import sys
import nbformat
from nbclient import NotebookClient
book = nbformat.read(sys.argv[1], 4)
NotebookClient(book, timeout=170, kernel_name="python3").execute()
nbformat.write(book, sys.argv[2])
"""


def cells(book: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the code cells."""
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def kinds(cell: dict[str, Any]) -> set[str]:
    """Return what a cell shows: printed text, pictures, coloured text."""
    shown = set()
    for output in cell["outputs"]:
        shown |= {"text"} if output.get("name") == "stdout" else set()
        shown |= {kind for kind in output.get("data", {}) if kind != "text/plain"}
    return shown


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_a_notebook_runs_and_shows_what_is_committed(path, run_python, tmp_path):
    """Every cell runs in a fresh kernel and shows the same kinds of output as committed."""
    made = tmp_path / path.name
    done = run_python(_RUN, str(path), str(made), cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr
    committed, new = (json.loads(p.read_text("utf-8")) for p in (path, made))
    assert [kinds(cell) for cell in cells(committed)] == [kinds(cell) for cell in cells(new)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_a_notebook_is_committed_with_its_outputs(path):
    """Each cell was run in order, without errors or warnings; pictures are small."""
    book = json.loads(path.read_text("utf-8"))
    assert list(range(1, len(cells(book)) + 1)) == [c["execution_count"] for c in cells(book)]
    shown = [kinds(cell) for cell in cells(book)]
    assert {"text", "image/png"} <= set().union(*shown)
    for cell in cells(book):
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr"
            picture = output.get("data", {}).get("image/png", "")
            assert len(base64.b64decode(picture)) < PICTURE_CAP
