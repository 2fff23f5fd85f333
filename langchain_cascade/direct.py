"""The direct path: the same plan, without building the runs that nobody would see.

It is taken by `invoke` and `ainvoke` when no handler, tracer, cache or rate limiter is active.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.globals import get_debug, get_llm_cache
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    convert_to_messages,
)
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers.context import _tracing_v2_is_enabled
from langchain_core.utils.uuid import uuid7

from cascadellm.answer import Answer
from cascadellm.cascade import Outcome
from cascadellm.effects import Call, Plan
from cascadellm.events import observed
from langchain_cascade.convert import answer_of, as_message
from langchain_cascade.engine import Engine
from langchain_cascade.local import LocalChatModel
from langchain_cascade.muting import hooked
from langchain_cascade.performing import AsyncLangChainPerformer, LangChainPerformer
from langchain_cascade.streams import final_message

__all__ = ["AsyncDirectPerformer", "DirectPerformer", "answered", "messages_of", "unseen"]


def unseen(
    model: Any, engine: Engine, config: Mapping[str, Any] | None, kwargs: Mapping[str, Any]
) -> bool:
    """Return whether nobody would see a call's runs, and nothing else wants them built."""
    if engine.feedback_loop is not None:
        # feedback names a call by its run
        return False
    own = model.__dict__
    if own["rate_limiter"] is not None or own["output_version"] is not None or own["streaming"]:
        return False
    if own["callbacks"] or own["verbose"] or kwargs.get("stream") or not engine.quiet:
        return False
    if own["cache"] or (own["cache"] is None and get_llm_cache() is not None):
        return False
    for one in (config, var_child_runnable_config.get()):
        if one is not None and (_heard(one.get("callbacks")) or one.get("configurable")):
            return False
    return not (get_debug() or _tracing_v2_is_enabled() or hooked())


def _heard(callbacks: Any) -> bool:
    handlers = callbacks if isinstance(callbacks, list) else getattr(callbacks, "handlers", ())
    return bool(handlers)


def messages_of(asked: Any) -> list[BaseMessage] | None:
    """Return the messages of plain text; None when LangChain should normalise them first."""
    if isinstance(asked, str):
        return [HumanMessage(asked)]
    if isinstance(asked, PromptValue):
        messages = asked.to_messages()
    elif isinstance(asked, Sequence):
        messages = convert_to_messages(asked)
    else:
        return None
    return messages if all(isinstance(message.content, str) for message in messages) else None


class DirectPerformer(LangChainPerformer):
    """Asks tiers without a context or manager of their own."""

    def plan(self) -> Plan[Outcome]:
        """Return the call's plan; its events are not built where no recorder listens."""
        return self.context.plan(observed=observed(self.handlers))

    def call(self, effect: Call) -> Answer:
        """Ask a tier."""
        if effect.watch is not None or effect.tier.timeout_s or effect.purpose != "tier":
            return super().call(effect)
        runnable, arguments = self.context.asked(effect)
        messages = self.context.messages(effect, runnable)
        if _bare(runnable):
            return answer_of(runnable.answer(messages, arguments))
        return answer_of(as_message(runnable.invoke(messages, **arguments)))


class AsyncDirectPerformer(AsyncLangChainPerformer):
    """Asks tiers without a context or manager of their own."""

    def plan(self) -> Plan[Outcome]:
        """Return the call's plan; its events are not built where no recorder listens."""
        return self.context.plan(observed=observed(self.handlers))

    async def call(self, effect: Call) -> Answer:
        """Ask a tier."""
        if effect.watch is not None or effect.tier.timeout_s or effect.purpose != "tier":
            return await super().call(effect)
        runnable, arguments = self.context.asked(effect)
        messages = self.context.messages(effect, runnable)
        if _bare(runnable):
            return answer_of(await runnable.aanswer(messages, arguments))
        if self.context.sync_only(runnable):
            return await super().call(effect)
        try:
            return answer_of(as_message(await runnable.ainvoke(messages, **arguments)))
        except NotImplementedError:
            self.context.note_sync_only(runnable)
            return await super().call(effect)


def _bare(runnable: Any) -> bool:
    """Return whether a local model's answer needs nothing of LangChain's own machinery."""
    return (
        type(runnable) is LocalChatModel
        and runnable.cache is None
        and runnable.rate_limiter is None
        and runnable.output_version is None
    )


def answered(outcome: Outcome, config: Mapping[str, Any] | None) -> AIMessage:
    """Return the message as the long path gives it, id and usage included."""
    run_id = (config or {}).get("run_id") or uuid7()
    return final_message(outcome, message_id=f"lc_run--{run_id}-0", with_usage=True)[0]
