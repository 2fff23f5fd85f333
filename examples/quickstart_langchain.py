"""One CascadeLLM in place of a LangChain chat model."""

from cascadellm.demo import load, questions
from langchain_cascade import CascadeLLM, Threshold, mean_logprob

llm = CascadeLLM(
    tiers=[load("small"), load("large")],  # or "hf:Qwen/Qwen3-0.6B", ChatOpenAI(model="...")
    policy=Threshold(mean_logprob, -0.05),
)

for item in questions(3, seed=1, skill="word_problem"):
    answer = llm.invoke(item.question)
    record = answer.response_metadata["cascade"]
    print(item.question)
    print(" ", answer.content)
    print(" ", record["answered_by"], "answered:", record["attempts"][0]["reason"])
