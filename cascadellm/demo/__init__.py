"""The embedded default: two tiny trained models, their questions and a word-count embedding.

The models are small enough to ship and to run on any CPU. They answer the questions that
`questions` draws, in the message layouts that LangChain and LlamaIndex send; MODEL_CARD.md says how
well, and what they cannot do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cascadellm.demo.embedding import embed
from cascadellm.demo.question import Question
from cascadellm.demo.tasks import SKILLS, questions

if TYPE_CHECKING:
    from cascadellm.local.model import LocalModel

__all__ = ["SKILLS", "Question", "embed", "load", "path", "questions"]

Name = Literal["small", "large"]


def path(name: Name) -> Path:
    """Return the folder of a demo model, in the usual Hugging Face layout.

    Args:
        name: "small" or "large".

    Raises:
        ValueError: If the name is another one.
    """
    if name not in ("small", "large"):
        raise ValueError(f"expected 'small' or 'large', received {name!r}")
    return Path(__file__).parent / name


def load(name: Name, **kwargs: Any) -> LocalModel:
    """Load a demo model through the code that loads any local model.

    Args:
        name: "small" or "large"; also the model's name, unless `name=` is among the keywords.
        **kwargs: Passed on to `LocalModel`.

    Returns: The loaded model.

    Raises:
        ValueError: If the name is another one.
    """
    folder = path(name)
    from cascadellm.local.model import LocalModel

    return LocalModel(str(folder), **{"name": name, **kwargs})
