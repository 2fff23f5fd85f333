"""See in Phoenix which tier answered a LlamaIndex query, why, and what the others said.

Run it beside Phoenix (`pip install arize-phoenix`, `phoenix serve`); open http://localhost:6006.
`--check` starts Phoenix if need be and reads the trace back. With `--local`, or where no Phoenix
answers, the trace goes to a receiver on this machine, which the tests use too, and is printed.
"""

import argparse
import atexit
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit

from llama_index.core import Document, VectorStoreIndex

from cascadellm import demo
from cascadellm.demo.llamaindex import WordCountEmbedding
from llamaindex_cascade import CascadeLLM, Threshold, mean_logprob, tracing

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.servers.otlp_server import OtlpServer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--endpoint", default="http://localhost:6006")
parser.add_argument("--project", default="cascade")
parser.add_argument("--check", action="store_true")
parser.add_argument("--local", action="store_true")
options = parser.parse_args()

facts = ["The capital of Fenland is Ostrov.", "The capital of Moorland is Brine."]
documents = [Document(text=fact) for fact in facts]
index = VectorStoreIndex.from_documents(documents, embed_model=WordCountEmbedding())
tiers = [demo.load("small"), demo.load("large")]
# no mean logprob reaches this threshold, so that every call escalates
engine = index.as_query_engine(llm=CascadeLLM(tiers=tiers, policy=Threshold(mean_logprob, 0.1)))


def spans() -> list[dict]:
    """Return the project's spans; Phoenix knows a project after its first."""
    url = f"{options.endpoint}/v1/projects/{options.project}/spans?limit=1000"
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310
            return list(json.load(reply)["data"])
    except HTTPError:
        return []


def answers() -> bool:
    """Return whether Phoenix answers."""
    try:
        return spans() is not None
    except (OSError, ValueError):
        return False


def phoenix() -> None:
    """Start Phoenix for the time of this program unless it answers already."""
    env = {**os.environ, "PHOENIX_PORT": str(urlsplit(options.endpoint).port)}
    python = os.environ.get("CASCADE_PHOENIX_PYTHON", sys.executable)
    command, quiet = [python, "-m", "phoenix.server.main", "serve"], subprocess.DEVNULL
    server = None
    while not answers():
        if server is None:
            server = subprocess.Popen(command, env=env, stdout=quiet, stderr=quiet)  # noqa: S603
            atexit.register(server.terminate)
        elif server.poll() is not None:
            sys.exit(f"no Phoenix answers at {options.endpoint}; pip install arize-phoenix")
        time.sleep(1)


def show(server: OtlpServer, parent: str = "", depth: int = 0) -> None:
    """Print the tree that arrived."""
    for span in (span for span in server.spans if span.parent_id == parent):
        told = {k: v for k, v in span.attributes.items() if k.startswith("cascade.")}
        print("  " * depth + span.name, told or "")
        show(server, span.span_id, depth + 1)


if options.check:
    phoenix()
if options.local or not answers():
    if not options.local:
        print(f"no Phoenix answers at {options.endpoint}; it would get this:")
    with OtlpServer() as receiver:
        with tracing.to_otlp(receiver.url):
            print(engine.query("What is the capital of Fenland?"))
        show(receiver)
    sys.exit()

with tracing.to_phoenix(options.endpoint, project=options.project):
    print(engine.query("What is the capital of Fenland?"))
for _ in range(60 if options.check else 0):
    # Phoenix takes spans in one by one
    known = {span["name"]: span["attributes"] for span in spans()}
    if "CascadeLLM.chat" in known and "RetrieverQueryEngine.query" in known:
        answered_by = known["CascadeLLM.chat"]["metadata.cascade_answered_by"]
        names = sorted(span["name"] for span in spans())
        print(json.dumps({"answered_by": answered_by, "spans": names}))
        sys.exit()
    time.sleep(0.5)
if options.check:
    sys.exit(f"Phoenix at {options.endpoint} shows no such trace")
