"""Install each extra alone, and the oldest supported frameworks, and use what they bring.

Run by `make matrix`; needs a package index. `--row NAME` runs one row.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
import tomllib
import venv
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENVS = ROOT / ".venv-matrix"

ENGINE = """
from cascadellm import Cascade, Request, Threshold, mean_logprob
from cascadellm.perform import LocalPerformer, drive
from cascadellm.testing import FakeModel
cascade = Cascade([FakeModel("a", logprob=-2.0), FakeModel("b")], Threshold(mean_logprob, -1.0))
outcome = drive(cascade.plan(Request("hi")), LocalPerformer())
assert outcome.answer.text == "b", outcome
"""
LANGCHAIN = """
from langchain_cascade import CascadeLLM, Threshold, mean_logprob
from cascadellm.testing import FakeModel
llm = CascadeLLM([FakeModel("a", logprob=-2.0), FakeModel("b")], Threshold(mean_logprob, -1.0))
assert llm.invoke("hi").content == "b"
"""
LLAMAINDEX = """
from llamaindex_cascade import CascadeLLM, Threshold, mean_logprob
from cascadellm.testing import FakeModel
llm = CascadeLLM([FakeModel("a", logprob=-2.0), FakeModel("b")], Threshold(mean_logprob, -1.0))
assert llm.complete("hi").text == "b"
"""
LOCAL = """
import cascadellm.demo
with cascadellm.demo.load("small") as model:
    assert model.generate([{"role": "user", "content": "What is 2 + 2?"}]).text
"""
CALIBRATE = """
from cascadellm.calibration import CalibrationRecord, calibrate_threshold
from cascadellm.evaluation import evaluate
records = [CalibrationRecord(score=i / 400, correct=(True, True)) for i in range(400)]
assert calibrate_threshold(records, target_risk=0.05, confidence=0.9).threshold is not None
"""
TRACE = "import langsmith, openinference.instrumentation.llama_index, opentelemetry.sdk.trace\n"
CLI = """
from cascadellm.cli import main
sys_argv = __import__("sys").argv
sys_argv[:] = ["cascadellm", "--version"]
main()
"""
ROWS = {
    "none": ("", ENGINE),
    "langchain": ("[langchain]", LANGCHAIN),
    "agents": ("[agents]", LANGCHAIN + "import langchain.agents\n"),
    "llamaindex": ("[llamaindex]", LLAMAINDEX),
    "local": ("[local]", LOCAL),
    "structured": ("[structured]", LOCAL + "import xgrammar\n"),
    "calibrate": ("[calibrate]", CALIBRATE),
    "trace": ("[trace]", TRACE),
    "cli": ("[cli]", CLI),
    "demo": ("[demo]", ENGINE + LANGCHAIN + LLAMAINDEX + LOCAL + CALIBRATE),
    "all": ("[all]", ENGINE + LANGCHAIN + LLAMAINDEX + LOCAL + CALIBRATE + TRACE),
}
FLOORED = ("langchain-core", "llama-index-core", "transformers")
# what must move with a floored framework, so it is left to the resolver
FOLLOWS = re.compile(r"^(lang|llama|transformers|tokenizers|huggingface|hf-|xgrammar)", re.I)
FLOOR_TESTS = ("tests/engine", "tests/langchain", "tests/llamaindex", "tests/local")


def floors() -> dict[str, str]:
    """Return the oldest supported version of each framework, read from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found = {}
    for requirement in chain.from_iterable(project["optional-dependencies"].values()):
        match = re.match(r"([\w-]+)>=([\d.]+)", requirement)
        if match and match[1] in FLOORED:
            found[match[1]] = match[2]
    return found


def install(row: str, requirement: str, constraints: Path) -> Path:
    """Make a fresh environment with one requirement; return its interpreter."""
    place = VENVS / row
    shutil.rmtree(place, ignore_errors=True)
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    command = [python, "-m", "pip", "install", "-q", "-c", constraints, requirement]
    subprocess.run(command, check=True, cwd=ROOT)
    return python


def run_row(row: str) -> None:
    """Install one extra alone and use it."""
    extra, code = ROWS[row]
    python = install(row, f"{ROOT}{extra}", ROOT / "constraints.txt")
    subprocess.run([python, "-I", "-c", code], check=True, cwd=VENVS)


def run_floors() -> None:
    """Run the tests on the oldest supported frameworks."""
    VENVS.mkdir(exist_ok=True)
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    kept = [line for line in pins if not FOLLOWS.match(line) or line.startswith("langchain-tests")]
    constraints = VENVS / "floors.txt"
    oldest = [f"{name}=={version}" for name, version in floors().items()]
    constraints.write_text("\n".join(kept + oldest) + "\n", "utf-8")
    python = install("floors", f"{ROOT}[test]", constraints)
    subprocess.run([python, "-m", "pytest", *FLOOR_TESTS], check=True, cwd=ROOT)


def main() -> int:
    """Run the rows; the exit status counts the failures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", choices=[*ROWS, "floors"], action="append")
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    chosen = parser.parse_args()
    failed = []
    for row in chosen.row or [*ROWS, "floors"]:
        begun = time.monotonic()
        try:
            run_floors() if row == "floors" else run_row(row)
        except subprocess.CalledProcessError as error:
            failed.append(row)
            print(f"{row}: FAILED ({error})", flush=True)
        else:
            print(f"{row}: ok ({time.monotonic() - begun:.0f} s)", flush=True)
        if not chosen.keep:
            shutil.rmtree(VENVS / row, ignore_errors=True)
    print(f"{len(failed)} failed: {', '.join(failed)}" if failed else "all rows passed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
