"""See in Phoenix which tier answered a LlamaIndex query, why, and what the others said.

Start Phoenix (`pip install arize-phoenix`, `phoenix serve`), then run this file and open
http://localhost:6006. `--check` reads the trace back through Phoenix's API and says what it
found; `--local` needs no Phoenix and prints the same tree here.
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any

from llama_index.core import Document, VectorStoreIndex
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cascadellm import demo
from cascadellm.demo.llamaindex import WordCountEmbedding
from llamaindex_cascade import CascadeLLM, Threshold, mean_logprob, tracing

QUESTION = "What is the capital of Fenland?"


def build() -> Any:
    """Return a query engine whose LLM is a cascade; an impossible threshold makes it escalate."""
    facts = ["The capital of Fenland is Ostrov.", "The capital of Moorland is Brine."]
    index = VectorStoreIndex.from_documents(
        [Document(text=fact) for fact in facts], embed_model=WordCountEmbedding()
    )
    tiers = [demo.load("small"), demo.load("large")]
    llm = CascadeLLM(tiers=tiers, policy=Threshold(mean_logprob, 0.1))
    return index.as_query_engine(llm=llm)


def check(endpoint: str, project: str) -> None:
    """Read the trace back and print the cascade's span as Phoenix holds it."""
    url = f"{endpoint}/v1/projects/{project}/spans?limit=1000"
    found: list[dict[str, Any]] = []
    for _ in range(60):
        # Phoenix takes spans in one by one, and knows a project after its first
        with suppress(urllib.error.HTTPError), urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310 - the user's own server
            spans: list[dict[str, Any]] = json.load(reply)["data"]
            found = [span for span in spans if span["name"] == "CascadeLLM.chat"]
            if found and any(span["parent_id"] is None for span in spans):
                break
        time.sleep(0.5)
    if not found:
        raise SystemExit(f"no trace arrived in project {project!r} of {endpoint}")
    attributes, trace = found[-1]["attributes"], found[-1]["context"]["trace_id"]
    names = sorted(span["name"] for span in spans if span["context"]["trace_id"] == trace)
    shown = {"answered_by": attributes["metadata.cascade_answered_by"], "spans": names}
    print(json.dumps(shown, indent=1))


def local(engine: Any) -> None:
    """Print the tree without any server."""
    memory, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    with tracing.instrument(provider):
        print(engine.query(QUESTION))
    children: dict[int | None, list[Any]] = {}
    for span in sorted(memory.get_finished_spans(), key=lambda span: span.start_time or 0):
        children.setdefault(span.parent and span.parent.span_id, []).append(span)

    def show(parent: int | None, depth: int) -> None:
        for span in children.get(parent, ()):
            reason = (span.attributes or {}).get("cascade.reason", "")
            print("  " * depth + span.name, reason)
            show(span.context.span_id, depth + 1)

    show(None, 0)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", default="http://localhost:6006")
    parser.add_argument("--project", default="cascade")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--local", action="store_true")
    options = parser.parse_args()
    engine = build()
    if options.local:
        local(engine)
        return
    with tracing.to_phoenix(options.endpoint, project=options.project):
        print(engine.query(QUESTION))
    if options.check:
        check(options.endpoint, options.project)


if __name__ == "__main__":
    main()
