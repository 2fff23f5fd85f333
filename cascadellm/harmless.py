"""What watches a call must not break it: errors of tracing are logged, and the call goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["harmless"]

_log = logging.getLogger("cascadellm")


@contextmanager
def harmless(what: str) -> Iterator[None]:
    """Log what the block raises, and go on after it; a cancellation passes.

    Args:
        what: The log's sentence, which says what is missing now.
    """
    try:
        yield
    except Exception:
        _log.warning("%s", what, exc_info=True)
