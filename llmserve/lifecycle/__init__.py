"""Open requests from tokenization to their end, and the supervision of the engine."""
