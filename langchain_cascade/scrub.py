"""Credentials taken out of the runs that a tracer is about to send."""

from __future__ import annotations

from typing import Any

from cascadellm.scrub import scrubbed, scrubbed_text

__all__ = ["scrub"]


def scrub(run: Any) -> None:
    """Take the credentials out of a run before it is sent."""
    run.serialized, run.extra = scrubbed(run.serialized), scrubbed(run.extra)
    if isinstance(run.error, str):
        run.error = scrubbed_text(run.error)
