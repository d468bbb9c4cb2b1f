"""A given run for comparison: Qwen2.5-1.5B on one NVIDIA RTX 4090 with vLLM 0.13.

Only the figures are available, not the requests behind them. So no figure has an interval, and the
run is drawn in grey.
"""

from collections.abc import Sequence

import attrs


@attrs.frozen
class Reference:
    """A sweep by concurrency: tokens per second, and the p99 of TTFT in seconds."""

    name: str
    concurrency: Sequence[int]
    tokens_per_second: Sequence[float]
    ttft_p99: Sequence[float]


RTX_4090 = Reference(
    "RTX 4090, Qwen2.5-1.5B, vLLM 0.13 (reference)",
    (1, 2, 4, 8, 16, 32),
    (213.5, 402.7, 699.0, 1289.8, 2367.8, 2413.3),
    (0.0131, 0.0106, 0.0222, 0.0236, 0.0334, 0.5478),
)
