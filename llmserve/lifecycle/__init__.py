"""An open request from its tokenization to its end, and the engine's supervision."""
