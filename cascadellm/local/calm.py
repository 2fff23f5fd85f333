"""Run tiny models without waiting threads and without loading bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.utils import logging

__all__ = ["calm"]


@contextmanager
def calm(threads: int = 1) -> Iterator[None]:
    """Use a few threads and hide transformers' progress bars inside the block.

    Args:
        threads: Threads of torch; in tiny models more only wait for each other.
    """
    before, shown = torch.get_num_threads(), logging.is_progress_bar_enabled()
    torch.set_num_threads(threads)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
