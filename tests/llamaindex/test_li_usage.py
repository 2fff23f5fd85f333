"""Tokens are counted once, whichever way callback managers arrive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms.callbacks import llm_chat_callback

from llamaindex_cascade import CascadeLLM
from tests.llamaindex.li_support import ENDPOINTS, asked, pair, user


def _words(text: str) -> list[str]:
    return text.split()


@pytest.fixture
def counter() -> TokenCountingHandler:
    """Count tokens; words where a response reports none."""
    return TokenCountingHandler(tokenizer=_words)


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Leave the global settings as they were."""
    before = Settings._callback_manager, Settings._llm
    yield
    Settings._callback_manager, Settings._llm = before


def _expected(response: Any) -> int:
    rows = response.additional_kwargs["cascade"]["tokens_by_tier"].values()
    return sum(row["input"] + row["output"] for row in rows)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("order", ["settings first", "cascade first", "explicit", "argument"])
def test_t03_t04_tokens_are_counted_once_in_any_order(
    order: str, endpoint: str, counter: TokenCountingHandler
) -> None:
    """One escalation is two LLM events with the tiers' tokens, whatever was built first."""
    manager = CallbackManager([counter])
    if order == "settings first":
        Settings.callback_manager = manager
        llm = pair()[0]
    elif order == "cascade first":
        Settings.llm = pair()[0]
        Settings.callback_manager = manager
        llm = Settings.llm
    elif order == "explicit":
        llm = pair()[0]
        llm.callback_manager = manager
    else:
        llm = pair(callback_manager=manager)[0]
    response = asked(llm, endpoint)[-1]
    assert len(counter.llm_token_counts) == 2
    assert counter.total_llm_token_count == _expected(response)


def test_t03_would_notice_upstreams_decorator(counter: TokenCountingHandler) -> None:
    """With upstream's decorator on the cascade the events are three, so the check has power."""

    class Decorated(CascadeLLM):
        @llm_chat_callback()
        def chat(self, messages: Any, **kwargs: Any) -> Any:
            return super().chat(messages, **kwargs)

    _, small, large = pair()
    from tests.llamaindex.li_support import CHOW

    llm = Decorated([small, large], CHOW, callback_manager=CallbackManager([counter]))
    llm.chat(user())
    assert len(counter.llm_token_counts) == 3


def test_t04_a_new_manager_replaces_the_shared_one_only(counter: TokenCountingHandler) -> None:
    """A tier with handlers of its own keeps them; a manager that came from us is replaced."""
    from cascadellm import Always
    from cascadellm.testing import FakeModel
    from llamaindex_cascade import LocalLLM

    own = CallbackManager([TokenCountingHandler(tokenizer=_words)])
    small = LocalLLM(FakeModel("a", name="small"), callback_manager=own)
    large = LocalLLM(FakeModel("b", name="large"))
    llm = CascadeLLM([small, large], Always())
    llm.callback_manager = CallbackManager([TokenCountingHandler(tokenizer=_words)])
    second = CallbackManager([counter])
    llm.callback_manager = second
    assert small.callback_manager is own
    assert large.callback_manager is second


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_returned_response_has_the_accepted_tiers_usage(endpoint: str) -> None:
    """The response handed to the caller reports the accepted tier's tokens, and no sum."""
    response = asked(pair()[0], endpoint)[-1]
    record = response.additional_kwargs["cascade"]["attempts"][-1]
    assert record["name"] == "large"
    assert response.additional_kwargs["prompt_tokens"] == record["input_tokens"]
    assert response.additional_kwargs["completion_tokens"] == record["output_tokens"]
