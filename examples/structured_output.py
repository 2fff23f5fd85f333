"""Structured output: a draft that does not satisfy the schema is deferred."""

from pydantic import BaseModel, Field

from cascadellm.demo import load
from langchain_cascade import CascadeLLM, Valid, record_cascade


class Person(BaseModel):
    """A person."""

    name: str
    age: int = Field(ge=0)
    pet: str


llm = CascadeLLM(tiers=[load("small"), load("large")], policy=Valid())
text = "The age of Nia is 41. The pet of Nia is a cat."
ask = f"{text}\nWrite a JSON object with the keys name, age, pet."

with record_cascade() as recorder:
    message = llm.invoke(
        ask,
        response_format={
            "type": "json_schema",
            "json_schema": {
                "name": "Person",
                "schema": Person.model_json_schema(),
            },
        },
    )
print(Person.model_validate_json(message.content))
print(recorder.traces[0].attempts[0].reason)
