"""A retrieval chain: the small model answers what its context supports."""

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from cascadellm.demo import load, questions
from cascadellm.demo.langchain import WordCountEmbeddings
from langchain_cascade import (
    CascadeLLM,
    Grounded,
    RetrievedDocuments,
    Threshold,
    mean_logprob,
    record_cascade,
)

items = questions(4, seed=3, skill="one_fact")
facts = sorted({fact for item in items for fact in item.facts})
retriever = InMemoryVectorStore.from_texts(facts, WordCountEmbeddings()).as_retriever()

llm = CascadeLLM(
    tiers=[load("small"), load("large")],
    policy=Grounded(0.6) | Threshold(mean_logprob, -0.05),  # defer when either says so
)
prompt = ChatPromptTemplate.from_template(
    "Answer from the context.\n\nContext:\n{context}\n\nQuestion: {question}"
)
context = retriever | (lambda found: "\n".join(document.page_content for document in found))
chain = {"context": context, "question": RunnablePassthrough()} | prompt | llm | StrOutputParser()
chain = chain.with_config(callbacks=[RetrievedDocuments()])  # Grounded sees what was retrieved

with record_cascade() as recorder:
    for item in items:
        print(item.query, "->", chain.invoke(item.query))
print(recorder.summary())
