"""Step times: roofs of memory and arithmetic, host time, padding of batches, noise."""

import attrs


@attrs.frozen(kw_only=True)
class Law:
    """The time of a step in seconds.

    The GPU is bound by what it reads (the weights, and the cache of all decoding sequences) or by
    what it computes, whichever takes longer. The host adds a time per sequence. The result is not
    linear: the corner between the two roofs lies where batches of real traffic are.

    Attributes:
        weights: Time to read the weights once.
        kv: Time to read one token's keys and values.
        flops: Time to compute one token.
        attention: Time for one token to attend to another.
        host: The host's time per step.
        sequence: The host's time per sequence.
        padding: Batches of decoding sequences are padded to a multiple of this.
        noise: Standard deviation of the logarithm of a step's time.
        hiccup_chance: Probability of a pause of `hiccup_seconds`.
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
        """Return the time of a step.

        Args:
            prefill: Number of prompt tokens.
            attended: Number of (token, attended token) pairs of the prompt tokens.
            decoding: Number of decoding sequences.
            cached: Cached tokens of the decoding sequences.
        """
        padded = -(-decoding // self.padding) * self.padding
        memory = self.weights + self.kv * cached
        compute = self.flops * (prefill + padded) + self.attention * attended
        return max(memory, compute) + self.host + self.sequence * decoding

    def of_size(self, times: float) -> "Law":
        """Return the law of a model with `times` the parameters on the same GPU and host."""
        return attrs.evolve(
            self, weights=self.weights * times, kv=self.kv * times, flops=self.flops * times, attention=self.attention * times
        )


# vLLM 0.25.1 on one H200 with a model of Qwen2.5-1.5B's shape. The values are medians of 5,621
# steps by `python -m benchmarks calibrate --concurrency 1,8,64,128,256,512` (docs/admission.md).
# Those loads do not show the following, which is calculated: 28 KiB of keys and values per token at
# 4.8 TB/s, and 4 x 28 layers x 1536 operations per pair at a third of 989 TFLOP/s.
H200_1_5B = Law(
    weights=6.8e-4, kv=6e-9, flops=4.8e-6, attention=5e-10, host=1.35e-3, sequence=1.07e-5, noise=0.18, hiccup_chance=0.059,
    hiccup_seconds=4.2e-3,
)  # fmt: skip
# A model of 8 billion parameters on the same GPU.
H200_8B = H200_1_5B.of_size(8.0 / 1.5)
