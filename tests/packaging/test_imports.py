from __future__ import annotations

import importlib

import pytest

HEAVY = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "scipy",
    "sklearn",
    "matplotlib",
    "pandas",
    "langchain",
    "langchain_core",
    "langgraph",
    "llama_index",
    "openinference",
    "opentelemetry",
    "rich",
    "typer",
    "xgrammar",
)
ALLOWED = {
    "cascadellm": (),
    "cascadellm.testing": (),
    "cascadellm.report": (),
    # langsmith, which langchain-core needs, loads opentelemetry where it is installed
    "langchain_cascade": ("langchain_core", "opentelemetry"),
    "llamaindex_cascade": ("llama_index", "numpy"),
    "cascadellm.local": (),
    "cascadellm.calibration": (),
    "cascadellm.evaluation": (),
}


FOREIGN = {
    "langchain_cascade": ("llama_index", "llama_index_instrumentation", "torch"),
    "llamaindex_cascade": ("langchain", "langchain_core", "torch"),
}


@pytest.mark.parametrize("package", ALLOWED)
def test_an_import_loads_only_what_its_room_needs(package, run_python):
    """A package imports without the others' libraries and loads nothing heavy for the user."""
    code = f"import {package}, sys; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    blocked = FOREIGN.get(package, ("langchain_core", "llama_index", "numpy", "torch"))
    done = run_python(code, blocked=blocked)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= set(ALLOWED[package])


def test_the_check_sees_a_heavy_import(run_python):
    """The same check fails for a package that does load numpy."""
    done = run_python(f"import numpy, sys; print(*sorted(set({HEAVY!r}) & set(sys.modules)))")
    assert done.stdout.split() == ["numpy"]


@pytest.mark.parametrize("package", ["cascadellm", "langchain_cascade", "llamaindex_cascade"])
def test_every_public_name_resolves_and_is_told_by_dir(package):
    """`__all__` names what exists, `dir` tells it, and no name stands there twice."""
    module = importlib.import_module(package)
    assert len(set(module.__all__)) == len(module.__all__)
    assert set(module.__all__) <= set(dir(module))
    assert all(getattr(module, name) is not None for name in module.__all__)
