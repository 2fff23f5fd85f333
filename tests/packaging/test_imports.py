from __future__ import annotations

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


@pytest.mark.parametrize("package", ALLOWED)
def test_an_import_loads_only_what_its_room_needs(package, run_python):
    """Importing a package loads no heavy library on the user's behalf."""
    code = f"import {package}, sys; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= set(ALLOWED[package])


def test_the_check_sees_a_heavy_import(run_python):
    """The same check fails for a package that does load numpy."""
    done = run_python(f"import numpy, sys; print(*sorted(set({HEAVY!r}) & set(sys.modules)))")
    assert done.stdout.split() == ["numpy"]


@pytest.mark.parametrize(
    ("package", "foreign"),
    [
        ("langchain_cascade", "llama_index"),
        ("llamaindex_cascade", "langchain_core"),
        ("cascadellm", "langchain_core"),
        ("cascadellm", "llama_index"),
    ],
)
def test_a_package_works_without_the_other_framework(package, foreign, run_python):
    """Each adapter imports where the other framework is not installed."""
    done = run_python(f"import {package}; print({package}.__all__)", blocked=[foreign])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["cascadellm", "langchain_cascade", "llamaindex_cascade"])
def test_every_public_name_resolves_and_is_told_by_dir(package, run_python):
    """`__all__` names what exists, `dir` tells it, and no name stands there twice."""
    code = (
        f"import {package} as m\n"
        "assert len(set(m.__all__)) == len(m.__all__)\n"
        "assert not set(m.__all__) - set(dir(m)), set(m.__all__) - set(dir(m))\n"
        "for name in m.__all__: getattr(m, name)\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
