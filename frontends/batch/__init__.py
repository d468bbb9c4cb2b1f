"""Batches of requests in files, in OpenAI's format: behind other requests, resumed after a kill."""
