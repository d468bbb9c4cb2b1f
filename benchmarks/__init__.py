"""Makes load, keeps facts, draws conclusions; draws no pictures."""
