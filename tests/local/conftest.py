"""Tiny models shared by the tests of this room, built once per run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cascadellm.local import LocalModel
from tests.local.tiny_models import script_model, tiny_llama, tiny_mistral, tiny_qwen2, tiny_t5

SCRIPT = (
    "<think>\nTwo and three.\n</think>\n\nLet me see \u20ac.\n"
    '<tool_call>\n{"name": "calc", "arguments": {"x": "2+3"}}\n</tool_call>'
)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    """A random Llama chat model."""
    with LocalModel(tiny_llama(tmp_path_factory.mktemp("llama")), max_new_tokens=40) as model:
        yield model


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    """A random Qwen2 chat model."""
    with LocalModel(tiny_qwen2(tmp_path_factory.mktemp("qwen2")), max_new_tokens=40) as model:
        yield model


@pytest.fixture(scope="session")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    """A random model with a sliding window, shorter than its prompts."""
    with LocalModel(tiny_mistral(tmp_path_factory.mktemp("mistral")), max_new_tokens=40) as model:
        yield model


@pytest.fixture(scope="session")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    """A random T5 model without a chat template."""
    with LocalModel(tiny_t5(tmp_path_factory.mktemp("t5")), max_new_tokens=30) as model:
        yield model


@pytest.fixture(scope="session")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    """A chat model that answers everything with SCRIPT: reasoning, text, a tool call."""
    with LocalModel(script_model(tmp_path_factory.mktemp("writer"), SCRIPT)) as model:
        yield model
