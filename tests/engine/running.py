"""Runs a bare cascade in the four ways that adapters run one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from cascadellm import Cascade, Outcome, Request
from cascadellm.drivers import Done, aadvance, adrive, advance, drive
from cascadellm.perform import AsyncLocalPerformer, LocalPerformer

MODES = ("invoke", "ainvoke", "stream", "astream")

ASKED = Request([{"role": "user", "content": "hi"}], "hi")


def run(
    cascade: Cascade,
    mode: str = "invoke",
    request: Request = ASKED,
    handlers: Sequence[Any] = (),
    **options: Any,
) -> Outcome:
    """Return the outcome of one call."""
    plan = cascade.plan(request, **options)
    if mode == "invoke":
        return drive(plan, LocalPerformer(handlers))
    if mode == "stream":
        return _stream(plan, LocalPerformer(handlers))
    if mode == "ainvoke":
        return asyncio.run(adrive(plan, AsyncLocalPerformer(handlers)))
    return asyncio.run(_astream(plan, AsyncLocalPerformer(handlers)))


def _stream(plan: Any, perform: Any) -> Outcome:
    step = advance(plan, perform)
    while not isinstance(step, Done):
        try:
            shown = perform(step)
        except Exception as error:
            step = advance(plan, perform, throw=error)
        else:
            step = advance(plan, perform, send=shown)
    return step.value  # type: ignore[no-any-return]


async def _astream(plan: Any, perform: Any) -> Outcome:
    step = await aadvance(plan, perform)
    while not isinstance(step, Done):
        try:
            shown = await perform(step)
        except Exception as error:
            step = await aadvance(plan, perform, throw=error)
        else:
            step = await aadvance(plan, perform, send=shown)
    return step.value  # type: ignore[no-any-return]
