from __future__ import annotations

import pytest

SMALL_LLM = "FakeModel('a', name='small')"
CASES = {
    "langchain": (
        ["langchain_core"],
        "import langchain_cascade",
    ),
    "llamaindex": (
        ["llama_index", "llama_index_instrumentation"],
        "import llamaindex_cascade",
    ),
    "local": (
        ["torch"],
        "from cascadellm.local import LocalModel; LocalModel('some/model')",
    ),
    "local-transformers": (
        ["transformers"],
        "from cascadellm.local import LocalModel; LocalModel('some/model')",
    ),
    "local-langchain": (
        ["torch"],
        "from langchain_cascade import LocalChatModel; LocalChatModel(model='some/model')",
    ),
    "local-llamaindex": (
        ["torch"],
        "from llamaindex_cascade import LocalLLM; LocalLLM(model='some/model')",
    ),
    "structured": (
        ["xgrammar"],
        "from cascadellm import demo as d; d.load('small').generate('hi', response_schema={})",
    ),
    "structured-langchain": (
        ["xgrammar"],
        (
            "from langchain_cascade import LocalChatModel; from cascadellm.demo import load; "
            "LocalChatModel(load('small')).with_structured_output({'title': 'T', 'type': "
            "'object', 'properties': {}}, method='json_schema').invoke('hi')"
        ),
    ),
    "calibrate": (
        ["numpy"],
        "from cascadellm.calibration import calibrate_threshold",
    ),
    "calibrate-scipy": (
        ["scipy"],
        "from cascadellm.calibration import calibrate_threshold",
    ),
    "calibrate-evaluation": (
        ["numpy"],
        "from cascadellm.evaluation import evaluate",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_missing_extra_is_named(case, run_python):
    """Without an extra its entry points raise MissingDependencyError naming that extra."""
    blocked, statement = CASES[case]
    extra = case.split("-")[0]
    code = (
        "from cascadellm.errors import MissingDependencyError\n"
        "try:\n"
        f"    {statement}\n"
        "except MissingDependencyError as error:\n"
        "    print(error)\n"
        "else:\n"
        "    print('no error')\n"
    )
    done = run_python(code, blocked=blocked)
    assert done.returncode == 0, done.stderr
    assert f"pip install 'cascadellm[{extra}]'" in done.stdout


def test_a_missing_langchain_is_named_by_a_model_string(run_python):
    """A tier string of a provider needs `langchain`, and the error says so."""
    code = (
        "from langchain_cascade import CascadeLLM, MissingDependencyError\n"
        "try:\n"
        "    CascadeLLM(tiers=['openai:gpt-4o-mini'])\n"
        "except MissingDependencyError as error:\n"
        "    print(error)\n"
    )
    code = code.replace(", MissingDependencyError\n", "\n", 1)
    code = "from cascadellm import MissingDependencyError\n" + code
    done = run_python(code, blocked=["langchain"])
    assert done.returncode == 0, done.stderr
    assert "langchain" in done.stdout
    assert "pip install" in done.stdout


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_the_command_line_names_its_extra(package, run_python):
    """`cascadellm` without typer or rich is one sentence and exit status 1."""
    done = run_python("from cascadellm.cli import main; main()", "--help", blocked=[package])
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "pip install 'cascadellm[cli]'" in done.stderr


def test_a_command_without_its_extra_says_so(run_python):
    """`cascadellm calibrate` without numpy is one sentence; the other commands stay."""
    code = "from cascadellm.cli import main; main()"
    done = run_python(code, "calibrate", "records.jsonl", blocked=["numpy"])
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "pip install 'cascadellm[calibrate]'" in done.stderr
    assert "report" in run_python(code, "--help", blocked=["numpy"]).stdout
