"""A run from point to point: systems made ready, load applied, recordings kept."""
