"""vLLM's configuration of an engine core: the sizes of its CUDA graphs."""

import pytest

from llmserve.engines.vllm.args import build_config, build_engine_args, graph_size
from llmserve.models import resolve


@pytest.mark.parametrize(
    ("given", "graphs", "sequences", "size"),
    [
        ({}, 512, 1024, 1024),
        ({}, 512, 1000, 1008),
        ({}, 512, 4096, 1024),
        ({}, 512, 512, None),
        ({}, 0, 1024, None),
        ({"max_cudagraph_capture_size": 512}, 512, 1024, None),
        ({"cudagraph_capture_sizes": [1, 512]}, 512, 1024, None),
        ({"compilation_config": {"max_cudagraph_capture_size": 512}}, 512, 1024, None),
    ],
)
def test_graphs_cover_every_batch_unless_the_operator_chose_their_sizes(given, graphs, sequences, size):
    """A regression: an H200 made half of the tokens per second with more than 512 sequences."""
    config = build_config(resolve("bundled"), {}, 1)
    # What vLLM's configuration has on a GPU; on a CPU there are no graphs.
    config.compilation_config.max_cudagraph_capture_size = graphs
    config.scheduler_config.max_num_seqs = sequences
    assert graph_size(build_engine_args(resolve("bundled"), given), config) == size
