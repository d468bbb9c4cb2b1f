"""Predicts how full the KV cache will get.

Past-Future (Gong et al., ASPLOS 2025): sequences grow together and leave one after another, so the
cache is fullest just before one of them leaves.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

from llmserve.admission.length_estimates import LOOK
from llmserve.admission.prediction import EngineSample
from llmserve.admission.safety_margins import Preemptions
from llmserve.admission.ticket import Room, Ticket


def exceeds(sequences: Iterable[tuple[float, float]], most: float, part: float = 1.0) -> bool:
    """Whether more than `most` tokens will be in the cache at one time.

    Each sequence is given as (tokens still to come, tokens so far). The cache holds a `part` of the
    tokens so far, 0 to 1: less than 1 because prompts with the same beginning share it.
    """
    used = 0.0
    for count, (remaining, so_far) in enumerate(sorted(sequences, reverse=True), start=1):
        used += so_far * part
        # When this sequence leaves, those that stay longer have grown by as many tokens.
        if used + count * remaining > most:
            return True
    return False


class Live(Protocol):
    """A ticket in the engine: when its first token came, and the engine's step count then."""

    first_token: float | None
    steps: float


def growth(live: Mapping[Ticket, Live], steps: float) -> tuple[list[tuple[float, float]], float]:
    """Return (tokens still to come, tokens so far) for each ticket at this step count, and the sum so far."""
    found, total = [], 0.0
    for ticket, at in live.items():
        made = 0.0 if at.first_token is None else steps - at.steps
        used = ticket.prompt_tokens + made
        total += used
        found.append((max(ticket.expected_tokens - made, 1.0), used))
    return found, total


class CacheForecast:
    """Whether the KV cache has room for one more ticket until the running ones end."""

    def __init__(self) -> None:
        self.preemptions = Preemptions()
        # Sum of the tokens that the live tickets will have when they are complete.
        self.committed = 0.0
        # The number of starts and departures; what the last plan depended on; and whether the cache
        # was too full then.
        self._changes = 0
        self._looked: tuple[Ticket, Room, int, float] | None = None
        self._full = False

    def started(self, ticket: Ticket) -> None:
        self._changes += 1
        self.committed += ticket.prompt_tokens + ticket.expected_tokens

    def left(self, ticket: Ticket) -> None:
        self._changes += 1
        self.committed -= ticket.prompt_tokens + ticket.expected_tokens

    def grown(self, live: Iterable[Ticket]) -> None:
        """Note that the expected lengths of answers may have changed."""
        self.committed = sum(ticket.prompt_tokens + ticket.expected_tokens for ticket in live)

    def lacks_room(self, ticket: Ticket, size: float, live: Mapping[Ticket, Live], sample: EngineSample, *, pending: bool) -> bool:
        """Whether the cache would be too full at some time with this ticket, and with the `room` that it leaves.

        `size` is the prompt tokens of the ticket, and `pending` whether prompts are being computed.
        """
        if sample.kv_tokens is None:
            return False
        tickets, prompt_tokens, answer_tokens, overdraft = ticket.room
        most = (self.preemptions.margin + overdraft) * sample.kv_tokens
        if self.committed + size + ticket.expected_tokens + tickets * (prompt_tokens + answer_tokens) <= most:
            return False
        # Planning takes 75 us for 256 sequences. Until a ticket starts or leaves, and for a
        # few steps, the result would be the same.
        looked = (ticket, ticket.room, self._changes, sample.steps // LOOK)
        if looked != self._looked:
            self._looked = looked
            found, cached = growth(live, sample.steps)
            # While new prompts are being computed, the cache seems emptier than it is.
            known = cached > 0 and not pending
            found += [(ticket.expected_tokens, size), *[(answer_tokens, float(prompt_tokens))] * tickets]
            part = min(1.0, sample.kv_usage * sample.kv_tokens / cached) if known else 1.0
            self._full = exceeds(found, most, part)
        return self._full
