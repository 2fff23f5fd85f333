"""Nothing that leaves the process holds a credential of a tier."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_openai import ChatOpenAI

from cascadellm import record_cascade
from cascadellm.report import write_report
from cascadellm.scrub import scrubbed
from langchain_cascade import CascadeLLM, Tier
from tests.langchain.lc_openai import OpenAIFake, chat_openai
from tests.langchain.lc_tools import CHOW, PATHS, fakes
from tests.langchain.test_lc_langsmith import traced
from tests.servers.openai_server import OpenAIServer, Said

__all__ = ["traced"]


def test_no_secret_leaves_the_process(traced):
    """A key planted in every place of a tier appears in nothing that was sent."""
    planted = "sk-planted-0451"
    tier = chat_openai(
        OpenAIFake("draft", logprob=-3.0),
        api_key=planted,
        default_headers={"Authorization": f"Bearer {planted}"},
    )
    llm = CascadeLLM(
        [Tier(tier, name="remote", kwargs={"extra_headers": {"X-Key": planted}}), fakes()[1]],
        CHOW,
        api_key=planted,
    )
    message = llm.invoke("hi", traced.config)
    assert "remote" in traced.root().shape()[2][0]
    shown = repr(llm) + repr(llm.engine.tiers) + str(llm.to_config()) + str(message)
    assert planted not in shown
    sent = traced.server.searched()
    assert "CascadeLLM" in sent
    assert planted not in sent


def test_credentials_in_a_url_are_hidden():
    """A URL keeps its host and loses its user; a secret's placeholder and plain text stay."""
    secret = {"lc": 1, "type": "secret", "id": ["OPENAI_API_KEY"]}
    given = {
        "openai_api_base": "http://me:pw@host/v1",
        "openai_api_key": secret,
        "model_kwargs": {"extra_headers": {"x": "y"}, "max_tokens": 7},
        "messages": ["mail me@host"],
    }
    assert scrubbed(given) == {
        "openai_api_base": "http://**hidden**@host/v1",
        "openai_api_key": secret,
        "model_kwargs": {"extra_headers": "**hidden**", "max_tokens": 7},
        "messages": ["mail me@host"],
    }


def test_mutation_an_unscrubbed_header_is_noticed(traced, monkeypatch):
    """Without the scrubbing, the planted header is found in what was sent."""
    monkeypatch.setattr("langchain_cascade.scrub.scrubbed", lambda value: value)
    tier = chat_openai(OpenAIFake("draft"), default_headers={"X-Key": "sk-planted-0451"})
    CascadeLLM([tier, fakes()[1]], CHOW).invoke("hi", traced.config)
    traced.client.flush()
    assert "sk-planted-0451" in traced.server.searched()


HEADERS = {"extra_headers": {"X-Key": "sk-planted-0451"}}


class _SentInBetween(OpenAIFake):
    """Answers after everything so far has gone out, as under a call that takes long."""

    def __init__(self, traced: Any, text: str = "draft", **settings: Any) -> None:
        super().__init__(text, **settings)
        self.traced = traced

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert "sk-planted-0451" in str(request.headers)
        self.traced.client.flush()
        return super().__call__(request)


def _asked(llm: CascadeLLM, path: str, config: Any) -> None:
    if path == "batch":
        llm.batch(["hi", "ho"], config, **HEADERS)
    elif path == "stream":
        list(llm.stream("hi", config, **HEADERS))
    elif path == "invoke":
        llm.invoke("hi", config, **HEADERS)
    else:
        asyncio.run(llm.ainvoke("hi", config, **HEADERS))


@pytest.mark.parametrize("path", ["invoke", "ainvoke", "stream", "batch"])
@pytest.mark.parametrize("where", ["call", "tier"])
def test_headers_of_a_call_leave_in_no_part_of_a_run(traced, path, where):
    """Headers of a call or tier are in neither the start nor the end of any run."""
    model = chat_openai(_SentInBetween(traced, logprob=-3.0), api_key="sk-planted-0451")
    if where == "call":
        _asked(CascadeLLM([Tier(model, name="remote"), fakes()[1]], CHOW), path, traced.config)
    else:
        llm = CascadeLLM([Tier(model, name="remote", kwargs=HEADERS), fakes()[1]], CHOW)
        PATHS[path](llm, "hi", traced.config)
    traced.client.flush()
    assert all(tree.named("remote") for tree in traced.server.trees())
    assert "sk-planted-0451" not in traced.server.searched()


def test_mutation_a_start_that_is_sent_as_it_is_is_noticed(traced, monkeypatch):
    """Without the tracer's own defaults scrubbed, the start of a run shows the header."""
    from langchain_cascade import guard

    monkeypatch.setattr(guard, "_scrub", lambda tracer, run: guard.scrub(run))
    model = chat_openai(_SentInBetween(traced, logprob=-3.0), api_key="sk-planted-0451")
    llm = CascadeLLM([Tier(model, name="remote"), fakes()[1]], CHOW)
    llm.invoke("hi", traced.config, **HEADERS)
    traced.client.flush()
    assert "sk-planted-0451" in traced.server.searched()


@pytest.fixture
def broken():
    """A tier whose key ends in a newline, which the HTTP client refuses and quotes."""
    with OpenAIServer(Said.text("never")) as server:
        key: Any = "sk-planted-0451\n"
        model = ChatOpenAI(model="gpt-fake", base_url=server.url, api_key=key, max_retries=0)
        yield Tier(model, name="remote")


@pytest.mark.parametrize("path", ["invoke", "ainvoke", "stream", "astream"])
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_key_that_an_error_quotes_stays_here(traced, broken, tmp_path: Path, path, place):
    """A key that no header can hold stands in the error's stack, and leaves in nothing."""
    planted = "sk-planted-0451"
    tiers = [broken, fakes()[1]] if place == "first" else [fakes()[0], broken]
    file = tmp_path / "traces.jsonl"
    with record_cascade(file):
        if place == "first":
            PATHS[path](CascadeLLM(tiers, CHOW), "hi", traced.config)
        else:
            with pytest.raises(Exception, match="Connection error"):
                PATHS[path](CascadeLLM(tiers, CHOW), "hi", traced.config)
    write_report(file, tmp_path / "page.html")
    (run,) = traced.root().named("remote")
    assert "Illegal header value" in run.run["error"]
    assert planted not in traced.server.searched()
    assert planted not in file.read_text() + (tmp_path / "page.html").read_text()


def test_mutation_an_error_sent_as_it_is_is_noticed(traced, broken, monkeypatch):
    """Without the scrubbing of errors the quoted key is found in what was sent."""
    monkeypatch.setattr("langchain_cascade.scrub.scrubbed_text", lambda text: text)
    CascadeLLM([broken, fakes()[1]], CHOW).invoke("hi", traced.config)
    traced.client.flush()
    assert "sk-planted-0451" in traced.server.searched()
