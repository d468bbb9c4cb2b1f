"""How long a step takes: roofs of memory and arithmetic, the host's own time, padding to captured batch sizes, noise."""

import attrs


@attrs.frozen(kw_only=True)
class Law:
    """Seconds of a step.

    The GPU is bound by what it reads (weights, and the cache of all that decode) or by what it computes, whichever takes longer; the host
    adds a part of its own for each sequence. That is no line in anything: the corner between the two roofs lies where batches of
    real traffic move.

    Attributes:
        weights: reading the weights once.
        kv: reading one token's keys and values.
        flops: computing one token; `attention`: one token attending to another.
        host: of any step; `sequence`: of each sequence in it.
        padding: batches of decoding sequences are padded to a multiple of it.
        noise: the standard deviation of the step's logarithm; `hiccup_chance` of a pause of `hiccup_seconds`.
    """

    weights: float
    kv: float
    flops: float
    attention: float
    host: float
    sequence: float
    padding: int = 8
    noise: float
    hiccup_chance: float
    hiccup_seconds: float

    def seconds(self, prefill: int, attended: float, decoding: int, cached: int) -> float:
        """`prefill` tokens that attend to `attended` pairs, beside `decoding` sequences with `cached` tokens."""
        padded = -(-decoding // self.padding) * self.padding
        memory = self.weights + self.kv * cached
        compute = self.flops * (prefill + padded) + self.attention * attended
        return max(memory, compute) + self.host + self.sequence * decoding

    def of_size(self, times: float) -> "Law":
        """For a model with so many times the parameters on the same GPU: it has more to read and to compute, and the same host."""
        return attrs.evolve(
            self, weights=self.weights * times, kv=self.kv * times, flops=self.flops * times, attention=self.attention * times
        )


# vLLM 0.25.1 on one H200 with a model of Qwen2.5-1.5B's shape, 5,621 steps: `python -m benchmarks calibrate --concurrency
# 1,8,64,128,256,512`, whose medians these are (docs/admission.md). What those loads do not show is arithmetic: 28 KiB of keys and values
# a token at 4.8 TB/s, and 4 x 28 layers x 1536 operations for a pair at a third of 989 TFLOP/s.
H200_1_5B = Law(
    weights=6.8e-4, kv=6e-9, flops=4.8e-6, attention=5e-10, host=1.35e-3, sequence=1.07e-5, noise=0.18, hiccup_chance=0.059,
    hiccup_seconds=4.2e-3,
)  # fmt: skip
# A model of 8 billion parameters on it.
H200_8B = H200_1_5B.of_size(8.0 / 1.5)
