"""The wire formats of requests for vectors: OpenAI's embeddings, and vLLM's scores and classes."""
