"""LlamaIndex's own `HuggingFaceLLM` as a tier: scored by one pass over what it wrote."""

from __future__ import annotations

import gc
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("llama_index.llms.huggingface")

import torch
from llama_index.llms.huggingface import HuggingFaceLLM

from cascadellm.demo import path
from cascadellm.local import posthoc
from cascadellm.testing import FakeModel
from llamaindex_cascade import Always, CascadeLLM, Never, Threshold, margin, mean_logprob
from tests.llamaindex.li_support import ENDPOINTS, asked, user

QUESTION = "Ana has 3 apples and buys 4 more. How many apples has she now?"


def made(**options: Any) -> Any:
    """Return the demo's small model behind LlamaIndex's class."""
    folder = path("small")
    defaults: dict[str, Any] = {
        "model_name": str(folder),
        "tokenizer_name": str(folder),
        "device_map": "cpu",
        "max_new_tokens": 24,
        "model_kwargs": {"dtype": torch.float32},
        "generate_kwargs": {"do_sample": False},
        "is_chat_model": True,
    }
    return HuggingFaceLLM(**{**defaults, **options})


def drafted(llm: Any, policy: Any, endpoint: str = "chat") -> Any:
    """Ask a cascade whose first tier it is."""
    large = FakeModel("seven", name="large")
    return asked(CascadeLLM([llm, large], policy), endpoint, QUESTION)[-1]


def truth(llm: Any, prompt: str) -> list[float]:
    """Return the scores of the model's own `generate(output_logits=True)`."""
    inputs = llm._tokenizer(prompt, return_tensors="pt")
    out = llm._model.generate(
        **inputs,
        max_new_tokens=24,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    new = out.sequences[0, inputs["input_ids"].shape[1] :]
    laws = torch.log_softmax(torch.cat(out.logits).float(), dim=-1)
    scores = laws.gather(1, new.unsqueeze(1)).squeeze(1).tolist()
    hidden = llm._tokenizer.all_special_ids
    return [s for s, token in zip(scores, new.tolist(), strict=True) if token not in hidden]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("chat", [True, False])
def test_t28_scores_are_those_of_generate(chat: bool, endpoint: str) -> None:
    """On every endpoint the score is the mean of the logits that wrote the answer."""
    llm = made(is_chat_model=chat)
    response = drafted(llm, Threshold(mean_logprob, -1e9), endpoint)
    attempt = response.additional_kwargs["cascade"]["attempts"][0]
    prompt = QUESTION
    if chat or "complete" not in endpoint:
        prompt = llm.messages_to_prompt(user(QUESTION))
    expected = truth(llm, prompt)
    assert attempt["score"] == pytest.approx(sum(expected) / len(expected), abs=2e-5)
    assert attempt["action"] == "accept"
    assert attempt["input_tokens"] == len(llm._tokenizer(prompt)["input_ids"])
    assert len(expected) <= attempt["output_tokens"] <= 24


def test_t28_every_token_and_its_alternatives_are_scored() -> None:
    """Tokens spell the answer, each with its own logprob, and margins can be read."""
    llm = made()
    prompt = llm.messages_to_prompt(user(QUESTION))
    response = llm.complete(prompt, formatted=True)
    ids = response.raw["model_output"]
    answer = posthoc.score_written(llm._model, llm._tokenizer, ids, prompt, text=response.text)
    tokens = answer.tokens or ()
    assert response.text == "".join(token.token for token in tokens)
    assert truth(llm, prompt) == pytest.approx([token.logprob for token in tokens], abs=2e-5)
    assert all(token.top[0] == (token.token, token.logprob) for token in tokens)
    assert drafted(llm, Threshold(margin, -1)).raw["cascade"]["answered_by"] != "large"


def test_t28_no_tensor_stays_in_the_response() -> None:
    """The ids are let go, whether the policy reads scores or not."""
    llm = made()
    for policy in (Threshold(mean_logprob, -1e9), Never()):
        response = drafted(llm, policy)
        assert "model_output" not in response.raw["response"]
        found = [one for one in gc.get_referents(response.raw["response"]) if torch.is_tensor(one)]
        assert not found


def test_t28_a_policy_without_scores_costs_no_second_pass() -> None:
    """The extra forward pass happens only for a policy that reads logprobs."""
    llm = made()
    forwards: list[None] = []
    hook = llm._model.register_forward_pre_hook(lambda *_: forwards.append(None))
    drafted(llm, Always())
    without = len(forwards)
    drafted(llm, Threshold(mean_logprob, -1e9))
    hook.remove()
    assert len(forwards) == 2 * without + 1


def test_t28_the_check_has_power(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores read from the neighbouring rows do not pass."""
    right = posthoc.score_rows
    monkeypatch.setattr(
        posthoc, "score_rows", lambda rows, tokens, top: right(rows.roll(1, 0), tokens, top)
    )
    llm = made()
    attempt = drafted(llm, Threshold(mean_logprob, -1e9)).raw["cascade"]["attempts"][0]
    expected = truth(llm, llm.messages_to_prompt(user(QUESTION)))
    assert attempt["score"] != pytest.approx(sum(expected) / len(expected), abs=0.1)
