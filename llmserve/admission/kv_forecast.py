"""Predicts how full the KV cache will get.

Past-Future (Gong et al., ASPLOS 2025): sequences grow together and leave one after another, so the
cache is fullest just before one of them leaves.
"""

from collections.abc import Iterable

from llmserve.admission.ticket import Ticket


def peak(sequences: Iterable[tuple[float, float]], part: float = 1.0, *, enough: float = float("inf")) -> float:
    """Return the maximum number of tokens that will be in the cache at one time.

    Each sequence is given as (tokens still to come, tokens so far). The cache holds a `part` of the
    tokens so far, 0 to 1: less than 1 because prompts with the same beginning share it. The search
    stops when the result exceeds `enough`.
    """
    used = found = 0.0
    for count, (remaining, so_far) in enumerate(sorted(sequences, reverse=True), start=1):
        used += so_far * part
        # When this sequence leaves, those that stay longer have grown by as many tokens.
        found = max(found, used + count * remaining)
        if found > enough:
            break
    return found


def growth(sequences: Iterable[tuple[Ticket, float]]) -> tuple[list[tuple[float, float]], float]:
    """Return (tokens still to come, tokens so far) for each (ticket, tokens of its answer), and the sum so far."""
    found, total = [], 0.0
    for ticket, made in sequences:
        used = ticket.prompt_tokens + made
        total += used
        found.append((max(ticket.expected_tokens - made, 1.0), used))
    return found, total
