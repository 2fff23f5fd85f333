"""Importing the room loads no torch; building a model without torch names the extra."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = "{'torch', 'transformers', 'numpy', 'tokenizers', 'safetensors'}"


def _python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("statement", ["import cascadellm.local", "from cascadellm.local import *"])
def test_import_loads_nothing_heavy(statement: str) -> None:
    """Names of this room can be imported and re-exported for free."""
    assert "set()" == _python(f"{statement}\nimport sys; print({HEAVY} & set(sys.modules))")


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_missing_package_names_its_extra(package: str) -> None:
    """Without the extra, building a model says how to install it."""
    code = f"""
import sys
sys.modules[{package!r}] = None
from cascadellm.errors import MissingDependencyError
from cascadellm.local import LocalModel, memory_estimate
for call in (LocalModel, memory_estimate):
    try:
        call("some/model")
    except MissingDependencyError as error:
        print(error)
"""
    lines = _python(code).splitlines()
    assert 2 == len(lines)
    assert all(package in line and "cascadellm[local]" in line for line in lines)
