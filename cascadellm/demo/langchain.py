"""The demo's word-count embedding as LangChain's embedding model."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings

from cascadellm.demo.embedding import embed

__all__ = ["WordCountEmbeddings"]


class WordCountEmbeddings(Embeddings):
    """Retrieval by shared words, offline and without a model.

    Args:
        dim: Number of buckets that words are hashed into.
    """

    def __init__(self, dim: int = 512) -> None:
        self.dim = dim

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed passages."""
        return [embed(text, self.dim) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Embed a question."""
        return embed(text, self.dim)
