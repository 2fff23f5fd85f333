"""See in Phoenix which tier answered a LlamaIndex query, why, and what the others said.

Start Phoenix (`pip install arize-phoenix`, `phoenix serve`), then run this file and open
http://localhost:6006. `--check` reads the trace back through Phoenix's API; `--local` needs no
Phoenix and prints the spans here.
"""

import argparse
import json
import time
import urllib.request
from contextlib import suppress
from urllib.error import HTTPError

from llama_index.core import Document, VectorStoreIndex
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from cascadellm import demo
from cascadellm.demo.llamaindex import WordCountEmbedding
from llamaindex_cascade import CascadeLLM, Threshold, mean_logprob, tracing

facts = ["The capital of Fenland is Ostrov.", "The capital of Moorland is Brine."]
documents = [Document(text=fact) for fact in facts]
index = VectorStoreIndex.from_documents(documents, embed_model=WordCountEmbedding())
# no mean logprob reaches this threshold, so that every call escalates
llm = CascadeLLM(
    tiers=[demo.load("small"), demo.load("large")], policy=Threshold(mean_logprob, 0.1)
)
engine = index.as_query_engine(llm=llm)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--endpoint", default="http://localhost:6006")
parser.add_argument("--project", default="cascade")
parser.add_argument("--check", action="store_true")
parser.add_argument("--local", action="store_true")
options = parser.parse_args()

if options.local:
    provider = TracerProvider()
    console = ConsoleSpanExporter(formatter=lambda span: f"{span.name} {span.status.status_code}\n")
    provider.add_span_processor(SimpleSpanProcessor(console))
    with tracing.instrument(provider):
        print(engine.query("What is the capital of Fenland?"))
else:
    with tracing.to_phoenix(options.endpoint, project=options.project):
        print(engine.query("What is the capital of Fenland?"))

url = f"{options.endpoint}/v1/projects/{options.project}/spans?limit=1000"
for _ in range(60 if options.check else 0):
    # Phoenix takes spans in one by one, and knows a project after its first
    with suppress(HTTPError), urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310
        spans = json.load(reply)["data"]
        found = [span for span in spans if span["name"] == "CascadeLLM.chat"]
        if found and any(span["parent_id"] is None for span in spans):
            answered_by = found[-1]["attributes"]["metadata.cascade_answered_by"]
            print(
                json.dumps({"answered_by": answered_by, "spans": sorted(s["name"] for s in spans)})
            )
            break
    time.sleep(0.5)
else:
    if options.check:
        raise SystemExit(f"Phoenix at {options.endpoint} shows no such trace")
