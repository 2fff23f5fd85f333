"""The prompts that the frameworks send, as patterns for the training text.

Each is the wording of LlamaIndex's default prompts, of LangChain's retrieval prompts or of the
plain "context, question" prompt; the training text fills them in.
"""

from __future__ import annotations

from random import Random
from typing import Any

Message = dict[str, Any]
Conversation = tuple[list[Message], list[dict[str, Any]]]
"""Messages and tools."""

QA_SYSTEM = (
    "You are an expert Q&A system that is trusted around the world.\n"
    "Always answer the query using the provided context information, and not prior knowledge.\n"
    "Some rules to follow:\n"
    "1. Never directly reference the given context in your answer.\n"
    "2. Avoid statements like 'Based on the context, ...' or "
    "'The context information ...' or anything along those lines."
)
QA = (
    "Context information is below.\n---------------------\n{context}\n---------------------\n"
    "Given the context information and not prior knowledge, answer the query.\n"
    "Query: {query}\nAnswer: "
)
TREE = (
    "Context information from multiple sources is below.\n---------------------\n{context}\n"
    "---------------------\nGiven the information from multiple sources and not prior knowledge, "
    "answer the query.\nQuery: {query}\nAnswer: "
)
REFINE = (
    "You are an expert Q&A system that strictly operates in two modes "
    "when refining existing answers:\n"
    "1. **Rewrite** an original answer using the new context.\n"
    "2. **Repeat** the original answer if the new context isn't useful.\n"
    "Never reference the original answer or context directly in your answer.\n"
    "When in doubt, just repeat the original answer.\n"
    "New Context: {context}\nQuery: {query}\nOriginal Answer: {answer}\nNew Answer: "
)
CHAT_SYSTEMS = (
    (
        "Use the context information below to assist the user."
        "\n--------------------\n{context}\n--------------------\n"
    ),
    (
        "\n  The following is a friendly conversation between a user and an AI assistant.\n"
        "  The assistant is talkative and provides lots of specific details from its context.\n"
        "  If the assistant does not know the answer to a question, it truthfully says it\n"
        "  does not know.\n\n  Here are the relevant documents for the context:\n\n  {context}\n\n"
        "  Instruction: Based on the above documents, provide a detailed answer for the user "
        'question below.\n  Answer "don\'t know" if not present in the document.\n  '
    ),
    "Answer from the context.\n\nContext:\n{context}",
    "You are a helpful assistant. Use the following context in your response:\n\n{context}",
)
PLAIN = (
    "Answer from the context.\n\nContext:\n{context}\n\nQuestion: {query}",
    "Answer from the context.\n\nContext:\n{context}\n\nQuestion: {query}",
    "Answer from the context.\n\nContext:\n{context}\n\nQuestion: {query}",
    "Answer the question based only on the following context:\n{context}\n\nQuestion: {query}\n",
    (
        "You are an assistant for question-answering tasks. Use the following pieces of retrieved "
        "context to answer the question. If you don't know the answer, just say that you don't "
        "know. Use three sentences maximum and keep the answer concise.\n"
        "Question: {query} \nContext: {context} \nAnswer:"
    ),
    (
        "Use the following pieces of context to answer the question at the end. If you don't know "
        "the answer, just say that you don't know, don't try to make up an answer.\n\n{context}\n\n"
        "Question: {query}\nHelpful Answer:"
    ),
    "Context:\n{context}\n\nQuestion: {query}",
    "{context}\n\n{query}",
)
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful AI assistant.",
    "Answer the question.",
    "Answer briefly.",
    "Be brief.",
    "You are a careful assistant. Use the tools.",
    "You answer questions. Use the tools where they help.",
    "Use the tools to answer.",
    "Solve the problem step by step.",
    "You are a math assistant. Work step by step.",
)


def qa(rng: Random, context: str, query: str) -> list[Message]:
    """Lay out a context and a question as one of the frameworks would."""
    turn = rng.random()
    if turn < 0.42:
        system = maybe_system(rng, 0.15)
        return [*system, user(rng.choice(PLAIN).format(context=context, query=query))]
    if turn < 0.8:
        pattern = QA if rng.random() < 0.85 else TREE
        body = user(pattern.format(context=context, query=query))
        return [system_message(QA_SYSTEM), body] if rng.random() < 0.85 else [body]
    return [
        system_message(rng.choice(CHAT_SYSTEMS).format(context=context)),
        user(query),
    ]


def maybe_system(rng: Random, share: float) -> list[Message]:
    """A system message with the given probability."""
    return [system_message(rng.choice(SYSTEMS))] if rng.random() < share else []


def system_message(text: str) -> Message:
    """A system message."""
    return {"role": "system", "content": text}


def user(text: str) -> Message:
    """A user message."""
    return {"role": "user", "content": text}


def assistant(text: str, call: dict[str, Any] | None = None) -> Message:
    """An assistant message, which may call a tool."""
    message: Message = {"role": "assistant", "content": text}
    if call is not None:
        message["tool_calls"] = [{"type": "function", "function": call}]
    return message


def tool_result(text: str) -> Message:
    """A tool's result."""
    return {"role": "tool", "content": text}
