"""Arguments checked within bounds, and results as plain values."""
