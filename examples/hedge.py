"""Hedging: the large tier starts while the small one is still being judged.

    python examples/hedge.py

Fake models with known delays stand in for slow services, so the times can be read off.
"""

from __future__ import annotations

import asyncio
import time

from cascadellm import Hedge, Judge, Tier
from cascadellm.testing import FakeModel
from langchain_cascade import CascadeLLM


async def timed(name: str, grade: str, *, hedged: bool) -> None:
    """Ask once and print who answered, and how long it took."""
    judge = Tier(FakeModel(f"Score: {grade}", name="judge", delay_s=0.4))
    policy = Judge(judge)
    llm = CascadeLLM(
        tiers=[
            FakeModel("A quick draft.", name="small", delay_s=0.1),
            FakeModel("Settled.", name="large", delay_s=0.6),
        ],
        policy=Hedge(policy, after_s=0.0) if hedged else policy,
    )
    begun = time.perf_counter()
    record = (await llm.ainvoke("Why is the sky blue?")).response_metadata["cascade"]
    seconds = time.perf_counter() - begun
    extra = [call["name"] for call in record["attempts"][0]["calls"]]
    print(f"{name:20} {seconds:4.2f} s  answered by {record['answered_by']:5}  also paid: {extra}")


async def main() -> None:
    """Compare both ways on a draft that is deferred and on one that is accepted."""
    await timed("deferred", "2", hedged=False)
    await timed("deferred, hedged", "2", hedged=True)
    await timed("accepted", "9", hedged=False)
    await timed("accepted, hedged", "9", hedged=True)


if __name__ == "__main__":
    asyncio.run(main())
