"""How full the KV cache will get, from what is in it and what is still to come.

Past-Future (Gong et al., ASPLOS 2025): sequences grow together and leave one after another, so the cache is fullest at the
moment before one of them leaves.
"""

from collections.abc import Iterable


def peak(sequences: Iterable[tuple[float, float]], part: float = 1.0, *, enough: float = float("inf")) -> float:
    """The most tokens that will lie in the cache at once, for (tokens still to come, tokens so far) of each sequence.

    The cache holds a `part` of those so far, 0 to 1. Stops as soon as it is more than `enough`.
    """
    used = found = 0.0
    for count, (remaining, so_far) in enumerate(sorted(sequences, reverse=True), start=1):
        used += so_far * part
        # When this one leaves, those that stay longer have grown by as much.
        found = max(found, used + count * remaining)
        if found > enough:
            break
    return found
