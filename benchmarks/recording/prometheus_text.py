"""Reads a server's /metrics as fields of a sample. Pure."""

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

# Field of a sample -> names of its metric: ours first, then vLLM's.
SERIES = {
    "running": ("llmserve_engine_running", "vllm:num_requests_running"),
    "waiting": ("llmserve_engine_waiting", "vllm:num_requests_waiting"),
    "admission_waiting": ("llmserve_requests_waiting",),
    "kv_usage": ("llmserve_engine_kv_usage", "vllm:kv_cache_usage_perc"),
    "preemptions": ("llmserve_engine_preemptions_total", "vllm:num_preemptions_total"),
    "prompt_tokens": ("llmserve_engine_prompt_tokens_total", "vllm:prompt_tokens_total"),
    "generation_tokens": ("llmserve_engine_generation_tokens_total", "vllm:generation_tokens_total"),
    "prefix_queries": ("llmserve_engine_prefix_cache_queries_total", "vllm:prefix_cache_queries_total"),
    "prefix_hits": ("llmserve_engine_prefix_cache_hits_total", "vllm:prefix_cache_hits_total"),
}


def parse_metrics(text: str) -> dict[str, Any]:
    """Return the fields in a Prometheus text, each summed over its labels."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    found: dict[str, Any] = {}
    for field, names in SERIES.items():
        known = [values[name] for name in names if name in values]
        if known:
            found[field] = known[0] if field == "kv_usage" else int(known[0])
    return found
