"""The demo's word-count embedding as LlamaIndex's embedding model."""

from __future__ import annotations

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field

from cascadellm.demo.embedding import embed

__all__ = ["WordCountEmbedding"]


class WordCountEmbedding(BaseEmbedding):
    """Retrieval by shared words, offline and without a model.

    Args:
        dim: Number of buckets that words are hashed into.
    """

    model_name: str = "word-count"
    dim: int = Field(default=512, gt=0)

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which the class is serialised."""
        return "WordCountEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return embed(query, self.dim)

    def _get_text_embedding(self, text: str) -> list[float]:
        return embed(text, self.dim)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return embed(query, self.dim)
