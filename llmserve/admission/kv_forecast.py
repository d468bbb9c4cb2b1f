"""Predicts how full the KV cache will get.

Past-Future (Gong et al., ASPLOS 2025): sequences grow together and leave one after another, so the
cache is fullest just before one of them leaves.
"""

from collections.abc import Iterable


def peak(sequences: Iterable[tuple[float, float]], part: float = 1.0, *, enough: float = float("inf")) -> float:
    """Return the maximum number of tokens that will be in the cache at one time.

    Each sequence is given as (tokens still to come, tokens so far). The cache holds a `part` of the
    tokens so far, 0 to 1. The search stops when the result exceeds `enough`.
    """
    used = found = 0.0
    for count, (remaining, so_far) in enumerate(sorted(sequences, reverse=True), start=1):
        used += so_far * part
        # When this sequence leaves, those that stay longer have grown by as many tokens.
        found = max(found, used + count * remaining)
        if found > enough:
            break
    return found
