"""One request through both adapters; prints traces, calls that a filter finds, ways of ingestion.

Run in a process of its own, because LangSmith reads its OpenTelemetry settings once.
"""

from __future__ import annotations

import os

from langchain_core.runnables import RunnableLambda
from langsmith import Client, tracing_context
from llama_index.core.base.llms.types import ChatMessage

import langchain_cascade
import llamaindex_cascade
from cascadellm import Threshold, mean_logprob
from cascadellm.testing import FakeModel
from llamaindex_cascade import tracing
from tests.servers.langsmith_server import LangSmithServer


def cascade(package: object) -> object:
    """Return a cascade that escalates."""
    tiers = [FakeModel("Lyon?", name="small", logprob=-2.0), FakeModel("Paris.", name="large")]
    return package.CascadeLLM(tiers, Threshold(mean_logprob, -0.35))  # type: ignore[attr-defined]


def look_up(question: str) -> str:
    """Ask the LlamaIndex cascade from inside a LangChain chain."""
    answer = cascade(llamaindex_cascade).chat([ChatMessage(content=question)])  # type: ignore[attr-defined]
    return str(answer.message.content)


def main() -> None:
    """Send one request and count."""
    with LangSmithServer() as server:
        with tracing.to_langsmith("p", api_key="none", endpoint=server.url) as traced:
            own = {"otel_tracer_provider": traced.provider} if _otel() else {}
            client = Client(api_url=server.url, api_key="none", **own)  # type: ignore[arg-type]
            chain = RunnableLambda(look_up) | cascade(langchain_cascade)  # type: ignore[operator]
            with tracing_context(enabled=True, client=client, project_name="p"):
                chain.invoke("capital of France?")
            client.flush()
            traced.flush()
        runs = server.runs.values()
        traces = {run["trace_id"] for run in runs}
        found = server.filtered(cascade_escalated=True)
        print(len(traces), len(found), ",".join(sorted(server.ways)))


def _otel() -> bool:
    return bool(os.environ.get("LANGSMITH_OTEL_ENABLED"))


if __name__ == "__main__":
    main()
