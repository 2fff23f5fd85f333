"""A config is data: whatever stands in it, loading it runs nothing and loads no model."""

from __future__ import annotations

import pytest

LOAD = """
import json, sys
from cascadellm.errors import CascadeError
from cascadellm.policies import Policy, config
import cascadellm.calibration, cascadellm.local, cascadellm.local.rules
from langchain_cascade import CascadeLLM, Never
from cascadellm.testing import FakeModel

FATAL = ("os.", "subprocess.", "pickle.", "socket.", "ctypes.", "shutil.")
seen = []

def watch(event, args):
    if event.startswith(FATAL) or (event in ("import", "open") and "evil" in str(args[0])):
        seen.append(event)

NAMES = (
    "evil", "evil.Attack", "evil:Attack", "os.system", "subprocess.Popen", "builtins.eval",
    "__main__.Attack", "LocalModel", "SpeculativePair", "compare", "Any", "model", "__class__",
)
OPTIONS = (
    {}, {"source": "evil", "trust_remote_code": True}, {"draft": "evil", "target": "evil"},
    {"args": ["touch evil"]}, {"name": "evil"}, {"schema": "cascadellm.learned_score/1"},
)

def configs():
    for name in NAMES:
        for options in OPTIONS:
            value = {"type": name, **options}
            yield value
            yield {"type": "Threshold", "score": value, "threshold": 0}
            yield {"type": "AnyOf", "parts": [{"type": "Never"}, value]}
            yield {"type": "Judge", "model": value}
            yield {"type": "SpeculativeCascade", "rule": value}
            yield {"type": "named", "name": name}

ready = json.dumps(CascadeLLM(tiers=[FakeModel("a"), FakeModel("b")], policy=Never()).to_config())

def attempts():
    for hostile in configs():
        yield lambda: Policy.from_config(hostile)
        cascade = {**json.loads(ready), "policy": [hostile]}
        yield lambda: CascadeLLM.from_config(cascade, [FakeModel("a"), FakeModel("b")])
    for name in NAMES:
        tiers = [{"name": name}, {"name": "hf:evil"}]
        yield lambda: CascadeLLM.from_config({"tiers": tiers, "policy": []}, {})

PLANTED
sys.addaudithook(watch)
count = other = 0
for attempt in attempts():
    count += 1
    try:
        attempt()
    except CascadeError:
        continue
    except Exception as error:
        other += 1
        print("no error of ours:", type(error).__name__, error)
    else:
        other += 1
        print("taken")
print(json.dumps([count, other, sorted(set(seen))]))
"""

ATTACK = """
from pathlib import Path

Path("ran").write_text("evil")
"""


@pytest.fixture
def attacked(run_python, tmp_path):
    """Run the attempts in a folder with a module and a model folder named evil."""
    (tmp_path / "evil.py").write_text(ATTACK)
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "config.json").write_text("{}")

    def run(planted: str = ""):
        code = "import sys; sys.path.insert(0, '.')\n" + LOAD.replace("PLANTED", planted)
        done = run_python(code, cwd=tmp_path)
        return done.stdout + done.stderr, (tmp_path / "ran").exists()

    return run


def test_loading_a_config_runs_nothing(attacked):
    """Types, names and options of any kind import, open, start and load nothing."""
    said, ran = attacked()
    assert said.strip().splitlines()[-1] == "[949, 0, []]"
    assert not ran


IMPORTS = """
import importlib
config._elsewhere = lambda kind: getattr(importlib.import_module(kind.split(".")[0]), "x")
"""
TAKES = "config._elsewhere = lambda kind: getattr(cascadellm.local, kind, None)"


@pytest.mark.parametrize(("planted", "sign"), [(IMPORTS, '"open"'), (TAKES, "taken")])
def test_a_config_that_runs_something_is_noticed(attacked, planted, sign):
    """Loading dotted names, or any class that a room holds, is seen (mutation)."""
    said, _ = attacked(planted)
    assert sign in said
