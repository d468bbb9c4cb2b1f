"""Those who wait: by priority, then by arrival. Every operation is O(log n) or better, leaving in the middle included."""

from collections.abc import Iterator
from typing import Generic, TypeVar

from llmserve.admission.ticket import Ticket

T = TypeVar("T", bound=Ticket)


class WaitingLine(Generic[T]):
    """Smaller priority first, first come first served within one."""

    def __init__(self) -> None:
        # Bands are few, so finding the smallest key is cheap; dicts keep arrival order and drop from the middle in O(1).
        self._bands: dict[int, dict[T, None]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        for priority in sorted(self._bands):
            yield from self._bands[priority]

    def push(self, ticket: T) -> None:
        self._bands.setdefault(ticket.priority, {})[ticket] = None
        self._length += 1

    def head(self) -> T:
        """The next to go; the line must not be empty."""
        return next(iter(self._bands[min(self._bands)]))

    def remove(self, ticket: T) -> None:
        band = self._bands[ticket.priority]
        del band[ticket]
        self._length -= 1
        if not band:
            del self._bands[ticket.priority]

    def ahead_of(self, priority: int) -> int:
        """How many go before a newcomer with this priority."""
        return sum(len(band) for key, band in self._bands.items() if key <= priority)
