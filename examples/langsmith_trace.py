"""See in LangSmith which tier answered: one trace of an escalated question.

With LANGSMITH_API_KEY set the trace goes to LangSmith. Without it, or with `--local`, it goes to
a server on this machine, which the tests use too, and the tree that arrived is printed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from langchain_core.tracers.langchain import LangChainTracer
from langsmith import Client

from cascadellm.testing import FakeModel
from langchain_cascade import CascadeLLM, Price, Threshold, Tier, mean_logprob

sys.path.insert(0, str(Path(__file__).parent.parent))

small = FakeModel("Perhaps Lyon?", name="small", logprob=-1.2)
large = FakeModel("Paris is the capital of France.", name="large")
llm = CascadeLLM(
    tiers=[Tier(small, price=Price(0.1, 0.4)), Tier(large, price=Price(2.0, 8.0))],
    policy=Threshold(mean_logprob, -0.35),
)


def ask(client: Client) -> None:
    """Ask one question and wait until its trace was sent."""
    tracer = LangChainTracer(client=client, project_name="cascade-demo")
    message = llm.invoke("What is the capital of France?", {"callbacks": [tracer]})
    client.flush()
    record = message.response_metadata["cascade"]
    print(f"{record['answered_by']} answered: {message.text}")


def local() -> None:
    """Trace to a server on this machine and print what arrived."""
    from tests.servers.langsmith_server import LangSmithServer, Node

    def show(node: Node, depth: int = 0) -> None:
        shown = {k: v for k, v in node.metadata.items() if k.startswith("cascade_")}
        shown = shown or node.run.get("outputs") or {}
        print(f"{'  ' * depth}{node.kind} {node.name} {shown}")
        for child in node.children:
            show(child, depth + 1)

    with LangSmithServer() as server:
        client = Client(api_url=server.url, api_key="local")
        ask(client)
        show(server.tree())
        client.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--local", action="store_true", help="send to a server on this machine")
    if parser.parse_args().local or "LANGSMITH_API_KEY" not in os.environ:
        local()
    else:
        ask(Client())
