"""A FunctionAgent with a tool; malformed calls and unsure answers go to the larger tier."""

import asyncio

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.tools import FunctionTool

from cascadellm.demo import load
from cascadellm.demo.tools import calculator
from llamaindex_cascade import CascadeLLM, Threshold, Valid, mean_logprob, record_cascade


def calculate(expression: str) -> str:
    """Evaluate an arithmetic expression."""
    return calculator(expression)


llm = CascadeLLM(
    tiers=[load("small"), load("large")],
    policy=Valid() | Threshold(mean_logprob, -0.05, over="all"),
)
tool = FunctionTool.from_defaults(calculate, name="calculator")
agent = FunctionAgent(tools=[tool], llm=llm, streaming=False)


async def main() -> None:
    """Ask once and show who answered each step."""
    with record_cascade() as recorder:
        print(await agent.run("What is 127 * 46?"))
    for trace in recorder.traces:
        print(trace.answered_by, "answered:", trace.attempts[0].reason)


asyncio.run(main())
