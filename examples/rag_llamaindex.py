"""A query engine: the small model answers what its context supports."""

from llama_index.core import Document, VectorStoreIndex

from cascadellm.demo import load, questions
from cascadellm.demo.llamaindex import WordCountEmbedding
from llamaindex_cascade import CascadeLLM, Grounded, Threshold, mean_logprob, record_cascade

items = questions(4, seed=3, skill="one_fact")
facts = sorted({fact for item in items for fact in item.facts})
documents = [Document(text=fact) for fact in facts]
index = VectorStoreIndex.from_documents(documents, embed_model=WordCountEmbedding())

llm = CascadeLLM(
    tiers=[load("small"), load("large")],
    policy=Grounded(0.6) | Threshold(mean_logprob, -0.05),  # defer when either says so
)
engine = index.as_query_engine(llm=llm, similarity_top_k=4)

with record_cascade() as recorder:
    for item in items:
        print(item.query, "->", engine.query(item.query))
print(recorder.summary())
