"""An agent with a tool; after a deferral the thread stays on the larger tier."""

from langchain.agents import create_agent

from cascadellm.demo import load
from cascadellm.demo.tools import calculator
from langchain_cascade import CascadeLLM, Threshold, Valid, mean_logprob
from langchain_cascade.middleware import CascadeMiddleware


def calculate(expression: str) -> str:
    """Evaluate an arithmetic expression."""
    return calculator(expression)


calculate.__name__ = "calculator"  # the name that the demo models know

llm = CascadeLLM(
    tiers=[load("small"), load("large")],
    policy=Valid() | Threshold(mean_logprob, -0.05, over="all"),
)
agent = create_agent(llm, [calculate], middleware=[CascadeMiddleware(sticky_steps=3)])
state = agent.invoke({"messages": [("user", "What is 127 * 46?")]})

for message in state["messages"]:
    calls = [call["args"] for call in getattr(message, "tool_calls", [])]
    print(f"{message.type:6}", message.content or calls)
for step in state["cascade_trail"]:
    print(step["answered_by"], "answered:", step["attempts"][0]["reason"])
