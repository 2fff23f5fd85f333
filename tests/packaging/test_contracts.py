from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("cascadellm", "langchain_cascade", "llamaindex_cascade")


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    """Run the import contracts on a tree."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code, "--no-cache"]
    return subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture
def tree(root, tmp_path):
    """A copy of the packages and their contracts."""
    shutil.copy(root / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        ignore = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(root / package, tmp_path / package, ignore=ignore)
    return tmp_path


def test_the_tree_keeps_its_contracts(tree):
    """The import contracts hold as the tree stands."""
    done = lint_imports(tree)
    assert done.returncode == 0, done.stdout


BREACHES = {
    "torch hidden in a policy": (
        "cascadellm/policies/simple.py",
        "def _device():\n    import torch\n    return torch.device('cpu')\n",
        "torch stands behind one seam, cascadellm.local",
    ),
    "torch in an adapter": (
        "langchain_cascade/convert.py",
        "import torch\n",
        "torch stands behind one seam, cascadellm.local",
    ),
    "one adapter importing the other": (
        "langchain_cascade/convert.py",
        "from llamaindex_cascade import CascadeLLM as Other\n",
        "The LangChain adapter does not know LlamaIndex",
    ),
    "the other adapter importing the one": (
        "llamaindex_cascade/convert.py",
        "def _other():\n    import langchain_cascade\n    return langchain_cascade\n",
        "The LlamaIndex adapter does not know LangChain",
    ),
    "a lazy import of the local engine": (
        "cascadellm/cascade.py",
        "def _local():\n    from cascadellm.local import LocalModel\n    return LocalModel\n",
        "The engine keeps its layers",
    ),
    "a framework in the engine": (
        "cascadellm/scores.py",
        "import langchain_core.messages\n",
        "The engine knows no framework",
    ),
    "a lower layer importing a higher one": (
        "cascadellm/answer.py",
        "from cascadellm import cascade as _cascade\n",
        "The engine keeps its layers",
    ),
    "a module without a place": (
        "cascadellm/misc.py",
        "X = 1\n",
        "The engine keeps its layers",
    ),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_planted_breach_is_found(breach, tree):
    """Each forbidden import breaks the contract that forbids it."""
    name, code, contract = BREACHES[breach]
    with (tree / name).open("a") as file:
        file.write("\n\n" + code)
    done = lint_imports(tree)
    assert done.returncode == 1, done.stdout
    assert f"{contract} BROKEN" in " ".join(done.stdout.split())
