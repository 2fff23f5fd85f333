"""Feedback on calls: given by hand, or read from LangSmith."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cascadellm.errors import CalibrationError, ConfigurationError
from cascadellm.events import dispatch
from langchain_cascade.handler import CascadeCallbackHandler

if TYPE_CHECKING:
    from langsmith import Client

__all__ = ["feedback_from_langsmith", "give_feedback"]

_BATCH = 100


def give_feedback(llm: Any, run: Any, correct: float, reference_correct: float | None) -> bool:
    """Hand feedback to the cascade's loop and tell its handlers what follows."""
    engine = llm.engine
    if engine.feedback_loop is None:
        raise ConfigurationError(
            "the cascade has no feedback_loop; give it FeedbackLoop([DriftMonitor(...)])"
        )
    counted, events = engine.feedback_loop.feedback(
        engine.cascade, run, correct=correct, reference_correct=reference_correct
    )
    own = llm.callbacks if isinstance(llm.callbacks, list) else ()
    listening = [one for one in own if isinstance(one, CascadeCallbackHandler)]
    for event in events:
        dispatch(event, (*engine.handlers, *listening))
    return bool(counted)


def feedback_from_langsmith(
    llm: Any,
    client: Client,
    *,
    key: str = "correctness",
    run_ids: Sequence[Any] | None = None,
    right: float = 0.5,
) -> int:
    """Read LangSmith's feedback on a cascade's runs and hand it to `llm.feedback`.

    Feedback counts that was given to the cascade's own run, of which the run id is the id of
    the answer's message. Call it now and then: what was counted is not counted again.

    Args:
        llm: The cascade, with a `feedback_loop`.
        client: LangSmith's client.
        key: Name of the feedback that says whether an answer is right.
        run_ids: Runs to ask for; by default the remembered ones that nobody judged yet.
        right: Least score of a right answer.

    Returns:
        How many calls were counted.

    Raises:
        ConfigurationError: The cascade has no `feedback_loop`.
    """
    loop = llm.engine.feedback_loop
    if loop is None:
        raise ConfigurationError(
            "the cascade has no feedback_loop; give it FeedbackLoop([DriftMonitor(...)])"
        )
    asked = list(loop.waiting if run_ids is None else run_ids)
    counted = 0
    for start in range(0, len(asked), _BATCH):
        batch = asked[start : start + _BATCH]
        for one in client.list_feedback(run_ids=batch, feedback_key=[key]):
            if one.score is None or one.key != key:
                continue
            try:
                counted += llm.feedback(one.run_id, correct=float(one.score >= right))
            except CalibrationError:
                # somebody judged a run that no policy of this cascade decided
                continue
    return counted
