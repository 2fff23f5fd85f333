from __future__ import annotations

import importlib.metadata
import tomllib
import zipfile
from email.parser import Parser

import pytest

import cascadellm

PACKAGES = ("cascadellm", "langchain_cascade", "llamaindex_cascade")


@pytest.fixture(scope="module")
def names(wheel):
    """What the wheel holds."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def metadata(wheel):
    """The wheel's METADATA."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_the_three_packages_and_nothing_else(names):
    """No tests, no benchmarks and no foreign top-level package are shipped."""
    tops = {name.split("/")[0] for name in names}
    assert {*PACKAGES, f"cascadellm-{cascadellm.__version__}.dist-info"} == tops


def test_t37_the_wheel_ships_no_llama_index_namespace(names):
    """A file under llama_index/ would make every other integration vanish."""
    assert [] == [n for n in names if n.startswith(("llama_index/", "langchain/"))]


def test_every_module_of_the_tree_is_in_the_wheel(names, root):
    """The build leaves no module, template or marker out."""
    for package in PACKAGES:
        for path in (root / package).rglob("*"):
            wanted = path.suffix in (".py", ".jinja", ".json", ".safetensors", ".md", ".typed")
            if path.is_file() and wanted and "__pycache__" not in path.parts:
                assert path.relative_to(root).as_posix() in names


@pytest.mark.parametrize("package", PACKAGES)
def test_annotations_are_shipped(package, names):
    """`py.typed` tells type checkers to read each package's annotations."""
    assert f"{package}/py.typed" in names


def test_the_demo_models_are_shipped(names):
    """Both models' weights, their tokenizer and the model card travel in the wheel."""
    demo = [n for n in names if n.startswith("cascadellm/demo/")]
    assert 2 == sum(n.endswith(".safetensors") for n in demo)
    assert any(n.endswith("tokenizer.json") for n in demo)
    assert any(n.lower().endswith(".md") for n in demo)


def test_the_wheel_stays_small(wheel):
    """The weights take less than 16 MB; the whole wheel no more than 18."""
    assert wheel.stat().st_size < 18e6


def test_the_version_is_one(metadata):
    """Package, wheel and installed metadata tell the same version."""
    assert cascadellm.__version__ == metadata["Version"]
    assert cascadellm.__version__ == importlib.metadata.version("cascadellm")


def test_the_licence_is_stated_and_shipped(metadata, names):
    """The wheel says MIT and carries the text."""
    assert metadata["License-Expression"] == "MIT"
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_the_engine_needs_two_packages(metadata):
    """Without extras only tenacity and jsonschema are installed."""
    base = [r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r]
    assert {"jsonschema", "tenacity"} == {r.split(">")[0].split("!")[0].strip() for r in base}


def test_t38_no_extra_pulls_the_old_otel_package(metadata):
    """llama-index-observability-otel holds the instrumentation back and is never required."""
    assert [] == [r for r in metadata.get_all("Requires-Dist") if "observability" in r]


def test_framework_floors_are_declared(metadata):
    """The oldest supported frameworks are those that the tests name."""
    required = "\n".join(metadata.get_all("Requires-Dist"))
    assert "langchain-core<2,>=1.4" in required
    assert "llama-index-core<0.15,>=0.14.24" in required
    assert "transformers<6,>=5.17" in required


def test_the_hub_entry_points_at_the_adapter(root):
    """[tool.llamahub] names an importable class."""
    hub = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["llamahub"]
    assert hub["import_path"] == "llamaindex_cascade"
    assert set(hub["class_authors"]) == {"CascadeLLM"}


def test_the_wheel_works_outside_the_tree(unpacked, run_python, tmp_path):
    """The shipped files alone load the demo pair and answer."""
    code = (
        "import cascadellm, cascadellm.demo as demo\n"
        "assert cascadellm.__file__.startswith(sys.argv[1]), cascadellm.__file__\n"
        "with demo.load('small') as small:\n"
        "    print(small.generate([{'role': 'user', 'content': 'What is 2 + 2?'}]).text)\n"
    )
    done = run_python(code, str(unpacked), path=unpacked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
