"""Structured output: a draft that does not fit the schema, or an unsure one, is deferred."""

from pydantic import BaseModel

from cascadellm.demo import load
from langchain_cascade import CascadeLLM, Threshold, Valid, mean_logprob


class Person(BaseModel):
    """A person."""

    name: str
    age: int


llm = CascadeLLM(
    tiers=[load("small"), load("large")],
    policy=Valid() | Threshold(mean_logprob, -0.005, over="all"),
)
reader = llm.with_structured_output(Person, include_raw=True)

for text in ("name: Nia; age: 41", "The age of Tom is 27."):
    answer = reader.invoke(text)
    record = answer["raw"].response_metadata["cascade"]
    print(repr(answer["parsed"]))
    print(" ", record["answered_by"], "answered:", record["attempts"][0]["reason"])
