"""Real (tiny, random) local models behind the LlamaIndex adapter."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from llamaindex_cascade import (
    CascadeLLM,
    ConfigurationError,
    LocalLLM,
    LocalModel,
    Lossless,
    ModelError,
    SpeculativeCascade,
    Threshold,
    mean_logprob,
)
from tests.llamaindex.li_support import ENDPOINTS, asked, text_of, user
from tests.local.spec_models import noisy_copy
from tests.local.tiny_models import tiny_llama


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalModel, LocalModel]:
    """Two tiny models with one vocabulary, the draft a noisy copy of the target."""
    torch.set_num_threads(1)
    target = tiny_llama(tmp_path_factory.mktemp("target"))
    draft = noisy_copy(target, tmp_path_factory.mktemp("draft"))
    return (
        LocalModel(draft, name="small", max_new_tokens=24),
        LocalModel(target, name="large", max_new_tokens=24),
    )


@pytest.mark.parametrize("threshold", [-1e9, 0.5])
def test_every_endpoint_gives_one_answer(models: Any, threshold: float) -> None:
    """Greedy answers and decisions are the same on all eight endpoints."""
    llm = CascadeLLM(list(models), Threshold(mean_logprob, threshold))
    results = set()
    for endpoint in ENDPOINTS:
        response = asked(llm, endpoint)[-1]
        record = response.additional_kwargs["cascade"]
        score = round(record["attempts"][0]["score"], 4)
        results.add((text_of(response), record["answered_by"], score))
        assert len(response.logprobs) == response.additional_kwargs["completion_tokens"]
    (only,) = results
    assert only[1] == ("small" if threshold < 0 else "large")


def test_a_token_level_boundary_streams_live(models: Any) -> None:
    """A pair is one tier: its text is the target's, streamed with the split on the last chunk."""
    small, large = models
    llm = CascadeLLM([LocalLLM(small), large], SpeculativeCascade(Lossless(), gamma=3))
    alone = text_of(asked(CascadeLLM([large]), "chat")[0])
    for endpoint in ENDPOINTS:
        chunks = asked(llm, endpoint)
        record = chunks[-1].additional_kwargs["cascade"]
        assert text_of(chunks[-1]) == alone
        assert record["answered_by"] == "small+large"
        assert record["speculation"]["verify_calls"] > 0
        if "stream" in endpoint:
            assert "".join(c.delta or "" for c in chunks) == alone


def test_t31_a_closed_stream_stops_the_model(tmp_path: Path) -> None:
    """The model's forward count stops growing after the stream is closed, sync and async."""
    model = LocalModel(tiny_llama(tmp_path), max_new_tokens=200)
    llm = CascadeLLM([model])
    forwards = 0

    def count(*args: Any) -> None:
        nonlocal forwards
        forwards += 1

    hook = model.module.register_forward_pre_hook(count)

    async def close() -> None:
        stream = await llm.astream_chat(user())
        await anext(stream)
        await stream.aclose()

    stream = llm.stream_chat(user())
    next(stream)
    stream.close()
    asyncio.run(close())
    time.sleep(0.1)
    seen = forwards
    time.sleep(0.2)
    hook.remove()
    assert seen == forwards


def test_a_path_loads_a_model_and_a_wrong_one_names_it(tmp_path: Path) -> None:
    """A tier given as `hf:<folder>` is loaded; an unknown folder is an error that names it."""
    folder = tiny_llama(tmp_path)
    assert asked(CascadeLLM([f"hf:{folder}"]), "complete", max_tokens=3)[0].raw["cascade"]
    assert LocalLLM(folder).metadata.context_window > 0
    with pytest.raises(ModelError, match="nowhere"):
        CascadeLLM([f"hf:{tmp_path}/nowhere"])
    with pytest.raises(ConfigurationError, match="frobnicate"):
        LocalLLM(folder).complete("x", frobnicate=1)
