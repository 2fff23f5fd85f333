"""Nothing that leaves the process holds a credential of a tier."""

from __future__ import annotations

from langchain_cascade import CascadeLLM, Tier
from langchain_cascade.scrub import scrubbed
from tests.langchain.lc_openai import OpenAIFake, chat_openai
from tests.langchain.lc_tools import CHOW, fakes
from tests.langchain.test_lc_langsmith import traced

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
