"""Structured prediction: a draft that does not fit the schema, or an unsure one, is deferred."""

from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel

from cascadellm.demo import load
from llamaindex_cascade import CascadeLLM, Threshold, mean_logprob, record_cascade


class Person(BaseModel):
    """A person."""

    name: str
    age: int


llm = CascadeLLM(
    tiers=[load("small"), load("large")],
    policy=Threshold(mean_logprob, -0.005, over="all"),
)

for text in ("name: Nia; age: 41", "The age of Tom is 27."):
    with record_cascade() as recorder:
        print(repr(llm.structured_predict(Person, PromptTemplate("{text}"), text=text)))
    (trace,) = recorder.traces
    print(" ", trace.answered_by, "answered:", trace.attempts[0].reason)
