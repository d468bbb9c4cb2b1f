"""What vLLM's pooling models need beside its generating ones."""
