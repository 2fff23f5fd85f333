"""What the overhead benchmark calls: models that answer at once, and the wrappers around them."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableBranch
from llama_index.core.base.llms.types import CompletionResponse, LLMMetadata
from llama_index.core.llms import CustomLLM

from langchain_cascade import CascadeLLM, Threshold, mean_logprob

PARTS = ["The", " answer", " is", " 42", "."]


class Instant(BaseChatModel):
    """Answers at once, with token log-probabilities in OpenAI's shape."""

    logprob: float = -0.01
    # a price list that does not know the model would print a line per call
    model_name: str = "gpt-4o-mini"

    @property
    def _llm_type(self) -> str:
        return "instant"

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        content = [{"token": part, "logprob": self.logprob, "top_logprobs": []} for part in PARTS]
        message = AIMessage(
            content="".join(PARTS),
            response_metadata={"finish_reason": "stop", "logprobs": {"content": content}},
            usage_metadata={"input_tokens": 9, "output_tokens": 5, "total_tokens": 14},
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        return self._generate(*args, **kwargs)


class InstantIndex(CustomLLM):
    """The same for LlamaIndex."""

    logprob: float = -0.01

    @property
    def metadata(self) -> LLMMetadata:
        """Nothing of note."""
        return LLMMetadata(model_name="instant")

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer."""
        content = [{"token": part, "logprob": self.logprob, "top_logprobs": []} for part in PARTS]
        raw = {"choices": [{"logprobs": {"content": content}, "finish_reason": "stop"}]}
        return CompletionResponse(text="".join(PARTS), raw=raw)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        """Answer in one piece."""
        yield self.complete(prompt)


class Deaf(BaseCallbackHandler):
    """A handler that does nothing."""

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        """Take the messages; without this, LangChain formats them as text for every run."""


def cascades() -> tuple[CascadeLLM, CascadeLLM]:
    """Return a cascade that accepts its draft, and one that escalates."""
    policy = Threshold(mean_logprob, -0.05)
    accepts = CascadeLLM(tiers=[Instant(name="small"), Instant(name="large")], policy=policy)
    tiers = [Instant(name="small", logprob=-1.0), Instant(name="large")]
    return accepts, CascadeLLM(tiers=tiers, policy=policy)


def peer() -> dict[str, Any]:
    """Return cascadeflow's cascade where it is installed: accepting, and escalating."""
    try:
        from cascadeflow.integrations.langchain import CascadeFlow
    except ImportError:
        return {}
    options = {"enable_pre_router": False, "cost_tracking_provider": "cascadeflow"}
    good, bad = Instant(name="small"), Instant(name="small", logprob=-5.0)
    return {
        "cascadeflow, accept": CascadeFlow(
            drafter=good, verifier=Instant(), quality_threshold=0.1, **options
        ),
        "cascadeflow, escalate": CascadeFlow(
            drafter=bad, verifier=Instant(), quality_threshold=0.999, **options
        ),
        "cascadeflow with its pre-router, accept": CascadeFlow(
            drafter=good, verifier=Instant(), quality_threshold=0.1,
            cost_tracking_provider="cascadeflow",
        ),
    }  # fmt: skip


def runnables() -> dict[str, tuple[Any, int]]:
    """Return the Runnables that are compared, with the number of models that each calls."""
    inner, accepts = Instant(), cascades()
    branch = RunnableBranch((lambda text: len(str(text)) < 0, Instant()), inner)
    found: dict[str, tuple[Any, int]] = {
        "inner": (inner, 1),
        "with_fallbacks": (inner.with_fallbacks([Instant()]), 1),
        "RunnableBranch": (branch, 1),
        "CascadeLLM, accept": (accepts[0], 1),
        "CascadeLLM, escalate": (accepts[1], 2),
    }
    for name, model in peer().items():
        found[name] = (model, 2 if "escalate" in name else 1)
    return found
