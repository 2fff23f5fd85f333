"""Whether two models share one vocabulary, so that a row of one can judge a token of the other."""

from __future__ import annotations

from typing import Any

from cascadellm.errors import ConfigurationError, VocabularyMismatchError

__all__ = ["check_pair", "common_width"]

_ADVICE = (
    "token-level deferral compares next-token laws, so both models need one vocabulary; "
    "different tokenizers work at answer level, e.g. policy=Threshold(mean_logprob, -0.35)"
)


def check_pair(draft: Any, target: Any) -> None:
    """Refuse two local models that cannot decode together.

    Args:
        draft: The small `LocalModel`.
        target: The large one.

    Raises:
        VocabularyMismatchError: Their tokenizers differ; names the first difference.
        ConfigurationError: Different devices, or only one has an encoder.
    """
    names = f"{draft.model_name!r} (draft) and {target.model_name!r} (target)"
    if draft.is_encoder_decoder != target.is_encoder_decoder:
        raise ConfigurationError(
            f"{names} must be of one family: one is an encoder-decoder model, the other is not"
        )
    if draft.device != target.device:
        raise ConfigurationError(
            f"{names} must be on one device, got {draft.device} and {target.device}; rows would "
            "travel at every step. Load both with the same device="
        )
    _same_tokens(draft, target, names)
    common_width(draft, target)


def common_width(draft: Any, target: Any) -> int:
    """Return how many logits both models give; ids behind the tokenizer's are padding.

    Raises:
        VocabularyMismatchError: A model gives fewer logits than its tokenizer has tokens
            while the other gives more.
    """
    widths = [_width(model) for model in (draft, target)]
    tokens = max(target.tokenizer.get_vocab().values()) + 1
    if widths[0] != widths[1] and min(widths) < tokens:
        raise VocabularyMismatchError(
            f"{draft.model_name!r} gives {widths[0]} logits and {target.model_name!r} "
            f"{widths[1]}, but the tokenizer has {tokens} tokens; {_ADVICE}"
        )
    return min(widths)


def _width(model: Any) -> int:
    head = model.module.get_output_embeddings()
    return int(model.module.config.vocab_size if head is None else head.weight.shape[0])


def _same_tokens(draft: Any, target: Any, names: str) -> None:
    ours, theirs = draft.tokenizer.get_vocab(), target.tokenizer.get_vocab()
    if ours == theirs:
        return
    by_id = [{number: text for text, number in vocab.items()} for vocab in (ours, theirs)]
    first = min(i for i in by_id[0].keys() | by_id[1].keys() if by_id[0].get(i) != by_id[1].get(i))
    small, large = (repr(found[first]) if first in found else "nothing" for found in by_id)
    raise VocabularyMismatchError(
        f"{names} do not share a vocabulary: token {first} is {small} for the draft and {large} "
        f"for the target ({len(ours)} and {len(theirs)} tokens); {_ADVICE}"
    )
