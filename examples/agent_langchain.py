"""An agent with a tool; after a deferral the thread stays on the larger tier."""

from langchain.agents import create_agent
from langchain_core.tools import tool

from cascadellm.demo import load
from cascadellm.demo.tools import calculator as evaluate
from langchain_cascade import CascadeLLM, Threshold, Valid, mean_logprob
from langchain_cascade.middleware import CascadeMiddleware


@tool
def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression."""
    return evaluate(expression)


llm = CascadeLLM(
    tiers=[load("small"), load("large")],
    policy=Valid() | Threshold(mean_logprob, -0.05, over="all"),
)
agent = create_agent(llm, [calculator], middleware=[CascadeMiddleware(sticky_steps=3)])
state = agent.invoke({"messages": [("user", "What is 127 * 46?")]})

for message in state["messages"]:
    calls = [call["args"] for call in getattr(message, "tool_calls", [])]
    print(f"{message.type:6}", message.content or calls)
for step in state["cascade_trail"]:
    print(step["answered_by"], "answered:", step["attempts"][0]["reason"])
