"""What the distribution promises to LlamaIndex programs."""

from __future__ import annotations

import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_t37_no_namespace_of_upstreams_is_shipped() -> None:
    """The distribution ships no `llama_index` folder, which would hide every integration."""
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages == ["cascadellm", "langchain_cascade", "llamaindex_cascade"]
    assert not (ROOT / "llama_index").exists()


def test_t38_no_extra_pulls_the_old_opentelemetry_package() -> None:
    """No extra names llama-index-observability-otel, which needs an older instrumentation."""
    extras = PROJECT["project"]["optional-dependencies"]
    assert not [r for rs in extras.values() for r in rs if "observability-otel" in r]


def test_t40_the_floor_of_core_has_payloads_without_credentials() -> None:
    """The declared floor is the first version whose events carry `to_payload`."""
    (core,) = PROJECT["project"]["optional-dependencies"]["llamaindex"]
    assert "llama-index-core>=0.14.24,<0.15" in core
    installed = tuple(int(part) for part in version("llama-index-core").split(".")[:3])
    assert (0, 14, 24) <= installed < (0, 15)


def test_llamahub_metadata_names_the_class() -> None:
    """LlamaHub's table names the import path and the class."""
    hub = PROJECT["tool"]["llamahub"]
    assert hub["import_path"] == "llamaindex_cascade"
    assert "CascadeLLM" in hub["class_authors"]


@pytest.mark.parametrize("name", ["py.typed", "__init__.py"])
def test_the_package_is_typed(name: str) -> None:
    """The package says that it is typed."""
    assert (ROOT / "llamaindex_cascade" / name).exists()
