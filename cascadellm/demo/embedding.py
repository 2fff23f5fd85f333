"""A word-count embedding: enough for retrieval by shared words, with the standard library only."""

from __future__ import annotations

import math
import re
from hashlib import blake2b

_WORD = re.compile(r"\w+")


def embed(text: str, dim: int = 512) -> list[float]:
    """Embed a text by counting its words in hashed buckets.

    Args:
        text: Any text; case is ignored.
        dim: Number of buckets.
    Returns: A vector of length `dim` and Euclidean norm 1; for a text without words, all zeros.
    """
    counts = [0.0] * dim
    for word in _WORD.findall(text.lower()):
        digest = blake2b(word.encode(), digest_size=8).digest()
        counts[int.from_bytes(digest, "big") % dim] += 1.0
    norm = math.sqrt(sum(count * count for count in counts))
    return [count / norm for count in counts] if norm else counts
