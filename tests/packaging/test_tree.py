from __future__ import annotations

import ast
import re

import pytest

CODE = ("cascadellm", "langchain_cascade", "llamaindex_cascade")
FILE_CAP = 400
FUNCTION_CAP = 50
SIZE_CAP = 6_000_000

# a user's home, a scratch folder or a drive: a path that exists on one machine only
MACHINE_PATH = re.compile(
    r"(?<![\w.:/-])/(?:work|farm|root|home/\w+|Users/\w+|private|scratch|mnt|opt/pypi)/"
    r"|[A-Z]:\\\\?Users"
)
TEXT = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".json", ".jsonl", ".cfg", ".ipynb", ""}


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a module, methods and inner ones too."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


@pytest.fixture(scope="module")
def sources(root):
    """Every module of the three packages, parsed."""
    files = [p for package in CODE for p in sorted((root / package).rglob("*.py"))]
    return {p.relative_to(root).as_posix(): p.read_text(encoding="utf-8") for p in files}


def test_no_file_holds_a_path_of_one_machine(tracked, root):
    """Nothing in the repository names a folder of the machine it was written on."""
    found = []
    for path in tracked:
        if path.suffix in TEXT and path != root / "tests/packaging/test_tree.py":
            text = path.read_text(encoding="utf-8", errors="replace")
            found += [f"{path.relative_to(root)}: {m[0]}" for m in MACHINE_PATH.finditer(text)]
    assert [] == found


@pytest.mark.parametrize("text", ["see /work/main", "'/root/.cache'", "(/home/ann/x", "C:\\Users"])
def test_the_path_check_sees_a_machine_path(text):
    """The pattern finds the paths it is meant to find."""
    assert MACHINE_PATH.search(text + "/x")


def test_no_file_is_too_large_for_a_clone(tracked, root):
    """Every tracked file is worth its place in each clone: at most 6 MB."""
    large = [str(p.relative_to(root)) for p in tracked if p.stat().st_size > SIZE_CAP]
    assert [p for p in large if not p.endswith(".safetensors")] == []


def test_files_stay_short(sources):
    """No module is longer than the hard cap."""
    long = {name: n for name, text in sources.items() if (n := len(text.splitlines())) > FILE_CAP}
    assert {} == long


def test_functions_fit_on_a_screen(sources):
    """No function of the packages is longer than the cap, its docstring apart."""
    long = []
    for name, text in sources.items():
        for node in functions(ast.parse(text)):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            told = first.end_lineno - first.lineno + 1 if documented else 0
            lines = node.end_lineno - node.lineno + 1 - told
            if lines > FUNCTION_CAP:
                long.append(f"{name}:{node.lineno} {node.name}: {lines} lines")
    assert [] == long


def test_modules_and_public_names_are_documented(sources):
    """Every module, public class and public function has a docstring."""
    bare = []
    for name, text in sources.items():
        tree = ast.parse(text)
        if text.strip() and not ast.get_docstring(tree):
            bare.append(name)
        for node in tree.body:
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
            public = isinstance(node, kinds) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                bare.append(f"{name}:{node.lineno} {node.name}")
    assert [] == bare


def test_every_test_states_its_promise(root):
    """Each test function has a docstring."""
    bare = []
    for path in sorted((root / "tests").rglob("test_*.py")):
        for node in functions(ast.parse(path.read_text(encoding="utf-8"))):
            if node.name.startswith("test_") and not ast.get_docstring(node):
                bare.append(f"{path.relative_to(root)}:{node.lineno} {node.name}")
    assert [] == bare


def test_no_global_state_is_changed(sources):
    """No module rebinds a global: a cascade carries its own state."""
    found = []
    for name, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Global):
                found.append(f"{name}:{node.lineno}")
    assert [] == found


def test_base_exceptions_pass(sources):
    """Cancellation is never swallowed: what catches BaseException raises it or hands it on."""
    found = []
    for name, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = "BaseException" if node.type is None else ast.unparse(node.type)
            inner = list(ast.walk(node))
            raised = any(isinstance(part, ast.Raise) for part in inner)
            handed_on = any(isinstance(part, ast.Name) and part.id == node.name for part in inner)
            if "BaseException" in caught and not raised and not handed_on:
                found.append(f"{name}:{node.lineno}")
    assert [] == found
