"""What is known before a tier is chosen, and which tiers a prompt does not fit."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
from llama_index.core.base.llms.types import LLMMetadata, MessageRole
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.memory import ChatMemoryBuffer

from cascadellm.testing import FakeModel
from llamaindex_cascade import CascadeLLM, LocalLLM, Never
from tests.llamaindex.li_support import ENDPOINTS, asked, pair, text_of, user


class _Sized(LocalLLM):
    sizes: tuple[int, int] = (8192, 256)
    role: MessageRole = MessageRole.SYSTEM

    @property
    def metadata(self) -> LLMMetadata:
        metadata = super().metadata
        metadata.context_window, metadata.num_output = self.sizes
        metadata.system_role = self.role
        return metadata


def _cascade(*sizes: tuple[int, int], **options: Any) -> CascadeLLM:
    models = [FakeModel("ok", name=f"m{i}") for i in range(len(sizes))]
    llm = CascadeLLM(models, Never(), **options)
    for model, size in zip(models, sizes, strict=True):
        llm._book._llms[id(model)] = _Sized(model, sizes=size)
    return llm


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (((300, 256), (100_000, 1000)), (300, 256)),
        (((100_000, 1000), (300, 256)), (300, 256)),
        (((4096, -1), (8192, 8000)), (8192, 8000)),
        (((4096, -1), (4000, 10)), (4096, 256)),
        (((2048, 512), (2048, 256), (2048, 1024)), (2048, 1024)),
    ],
)
def test_t35_window_and_output_are_one_tiers_pair(sizes: Any, expected: tuple[int, int]) -> None:
    """The binding tier's own two numbers are announced, never a mixture."""
    metadata = _cascade(*sizes).metadata
    assert (metadata.context_window, metadata.num_output) == expected
    PromptHelper.from_llm_metadata(metadata)


def test_t35_would_notice_a_mixture() -> None:
    """Core raises on the smallest window with the largest output, so the rule matters."""
    mixed = LLMMetadata(context_window=300, num_output=1000)
    helper = PromptHelper.from_llm_metadata(mixed)
    from llama_index.core.prompts import PromptTemplate

    with pytest.raises(ValueError, match="not non-negative"):
        helper.truncate(PromptTemplate("{x}"), ["text"])


def test_t35_the_roomiest_tier_can_be_announced() -> None:
    """`context="max"` announces the tier with the most room."""
    metadata = _cascade((300, 256), (100_000, 1000), context="max").metadata
    assert (metadata.context_window, metadata.num_output) == (100_000, 1000)


def test_memory_built_from_the_cascade_fits_every_tier() -> None:
    """Chat memory sized from the announced window fits the smallest tier."""
    memory = ChatMemoryBuffer.from_defaults(llm=_cascade((1000, 256), (100_000, 1000)))
    assert memory.token_limit <= 1000


def test_metadata_names_the_tiers_and_takes_the_last_ones_role() -> None:
    """Name, role and chat flag hold whichever tier answers."""
    llm = _cascade((300, 256), (400, 256))
    last = llm._book.llm(llm.tiers[-1].model)
    last.role = MessageRole.USER
    metadata = llm.metadata
    assert metadata.model_name == "cascade(m0,m1)"
    assert metadata.system_role == MessageRole.USER
    assert metadata.is_chat_model


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_t36_a_prompt_too_long_for_a_tier_skips_it(endpoint: str) -> None:
    """A long prompt passes the small tier by, with the reason recorded."""
    small = FakeModel("short memory", name="small", context_window=300)
    llm = CascadeLLM([small, FakeModel("long memory", name="large")], Never())
    response = asked(llm, endpoint, "word " * 400)[-1]
    attempts = response.additional_kwargs["cascade"]["attempts"]
    assert text_of(response) == "long memory"
    assert [(a["action"], a["code"]) for a in attempts] == [
        ("skip", "context_window"),
        ("accept", "last"),
    ]
    assert not small.calls


def test_t36_counts_tokens_and_not_characters() -> None:
    """A prompt whose characters exceed the room but whose tokens fit is admitted."""
    small = FakeModel("fits", name="small", context_window=800)
    llm = CascadeLLM([small, FakeModel("no", name="large")], Never())
    prompt = "international " * 100
    assert len(prompt) + 256 > 800
    assert llm.complete(prompt).text == "fits"


def test_t36_a_models_own_tokenizer_counts() -> None:
    """Where the model has a tokenizer, that one counts."""

    class Letters:
        def encode(self, text: str) -> list[str]:
            return list(text)

    small = FakeModel("no", name="small", context_window=800)
    small.tokenizer = Letters()  # type: ignore[attr-defined]
    llm = CascadeLLM([small, FakeModel("yes", name="large")], Never())
    assert llm.complete("international " * 100).text == "yes"


def test_t36_the_last_tier_is_always_asked() -> None:
    """When the prompt fits nowhere the last tier's own error is what the caller sees."""
    tiers = [FakeModel("a", name=n, context_window=270) for n in ("s", "l")]
    response = CascadeLLM(tiers, Never()).complete("word " * 400)
    assert response.raw["cascade"]["answered_by"] == "l"


def test_local_llm_announces_its_models_output_length() -> None:
    """`num_output` is the number of new tokens that the model would write."""
    assert LocalLLM(FakeModel()).metadata.num_output == -1
    llm = LocalLLM(FakeModel(), generate_kwargs={"max_new_tokens": 32})
    assert llm.metadata.num_output == 32


def test_deepcopy_and_model_copy_work() -> None:
    """Workflows copy LLMs; a copy answers like the original."""
    llm, _, _ = pair()
    assert copy.deepcopy(llm).chat(user()).message.content == "Four, I am certain."
    assert llm.model_copy().chat(user()).message.content == "Four, I am certain."


def test_class_names_are_in_the_mro_as_integrations_expect() -> None:
    """Both classes are `BaseLLM`s with their own serialised names."""
    for cls in (CascadeLLM, LocalLLM):
        assert "BaseLLM" in {base.__name__ for base in cls.__mro__}
        assert cls.class_name() == cls.__name__


def test_importing_and_using_the_package_loads_no_heavy_or_foreign_library() -> None:
    """A cascade of hosted or fake tiers never loads torch, langchain or opentelemetry."""
    code = """
import sys
from llamaindex_cascade import CascadeLLM
from cascadellm.testing import FakeModel
CascadeLLM([FakeModel()]).complete("x")
print(" ".join(name.split(".")[0] for name in sys.modules))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240
    )
    loaded = set(result.stdout.split())
    unwanted = {"torch", "transformers", "langchain", "langchain_core", "langchain_cascade"}
    assert not loaded & (unwanted | {"opentelemetry", "openinference", "langsmith"})
    assert "llama_index" in loaded


def test_public_names_are_pinned() -> None:
    """The public list is sorted, complete and importable."""
    import llamaindex_cascade

    names = llamaindex_cascade.__all__
    assert names == sorted(names)
    for name in names:
        assert getattr(llamaindex_cascade, name) is not None
    assert {"CascadeLLM", "LocalLLM", "Threshold", "record_cascade", "Tier", "Price"} <= set(names)
