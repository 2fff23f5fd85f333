"""Credentials of judges, voters and resampled tiers leave in nothing, in both frameworks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_core.tracers.langchain import LangChainTracer
from langchain_openai import ChatOpenAI
from langsmith import Client

import langchain_cascade
import llamaindex_cascade
from cascadellm import Agreement, Judge, SelfConsistency, Tier, record_cascade
from cascadellm.report import write_report
from cascadellm.testing import FakeModel
from llamaindex_cascade import tracing
from tests.llamaindex.li_support import asked, openai
from tests.servers.langsmith_server import LangSmithServer
from tests.servers.openai_server import OpenAIServer, Said

# the instrumentor calls pydantic's old `json`; a warning there would lose the span silently
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

KEY = "sk-planted-0451"
HEADERS = {"extra_headers": {"X-Key": KEY}}
CALLS = {"judge": 1, "voter": 1, "resamples": 3}


def _parts(purpose: str, model: Any) -> tuple[list[Any], Any]:
    """Return tiers and a policy that asks the hosted model beside the tiers' own calls."""
    small = FakeModel("Perhaps?", name="small", logprob=-1.2)
    large = FakeModel("Paris.", name="large")
    hosted = Tier(model, name="hosted", kwargs=HEADERS)
    if purpose == "judge":
        return [small, large], Judge(hosted, threshold=7)
    if purpose == "voter":
        return [small, large], Agreement([hosted])
    return [hosted, large], SelfConsistency(3)


@pytest.mark.parametrize("purpose", CALLS)
@pytest.mark.parametrize("framework", ["langchain", "llamaindex"])
def test_no_secret_of_a_side_call_leaves(framework: str, purpose: str, tmp_path: Path) -> None:
    """The provider gets the key; traces, records, pages and reprs do not."""
    path = tmp_path / "traces.jsonl"
    with OpenAIServer(Said.text("Score: 2", -3.0)) as provider, LangSmithServer() as server:
        if framework == "langchain":
            with httpx.Client() as http, record_cascade(path) as recorder:
                model = ChatOpenAI(
                    model="m", base_url=provider.url, api_key=KEY, max_retries=0, http_client=http
                )
                llm: Any = langchain_cascade.CascadeLLM(*_parts(purpose, model))
                client = Client(api_url=server.url, api_key="ls-none")
                said: Any = llm.invoke("hi", {"callbacks": [LangChainTracer(client=client)]})
                client.flush()
                client.cleanup()
            shown = [repr(llm), str(llm.to_config()), repr(said)]
        else:
            model = openai(provider, api_key=KEY)
            llm = llamaindex_cascade.CascadeLLM(*_parts(purpose, model))
            with (
                tracing.to_langsmith("p", api_key="none", endpoint=server.url),
                record_cascade(path) as recorder,
            ):
                said = asked(llm, "chat")
            shown = [repr(llm), str(llm.to_dict()), str(llm.to_payload()), repr(said)]
        assert len(provider.headers) == CALLS[purpose]
        assert all(KEY in str(headers) for headers in provider.headers)
        # three equal resamples are accepted, a judge or voter of another mind defers
        assert server.filtered(cascade_escalated=purpose != "resamples")
        shown.append(server.searched())
    write_report(path, tmp_path / "page.html")
    shown += [repr(recorder.records), path.read_text("utf-8")]
    shown.append((tmp_path / "page.html").read_text("utf-8"))
    assert not [text for text in shown if KEY in text]
