"""One CascadeLLM in place of a LlamaIndex LLM."""

from cascadellm.demo import load, questions
from llamaindex_cascade import CascadeLLM, Threshold, mean_logprob

llm = CascadeLLM(
    tiers=[load("small"), load("large")],  # or "hf:Qwen/Qwen3-0.6B", OpenAI(model="...")
    policy=Threshold(mean_logprob, -0.05),
)

for item in questions(3, seed=1, skill="word_problem"):
    response = llm.complete(item.question)
    record = response.additional_kwargs["cascade"]
    print(item.question)
    print(" ", response.text)
    print(" ", record["answered_by"], "answered:", record["attempts"][0]["reason"])
