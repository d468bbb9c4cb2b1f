"""The events of a response in the background, which clients may read again from any of them on."""

from array import array
from bisect import bisect_right
from typing import NamedTuple

from frontends.openai import sse
from frontends.openai.sse import END

# Maximum bytes that a client gets at once, and holds while it does not read.
PIECE = 2**16
# The last event of a response, by its status. The format has none of its own for a cancelled one.
LAST = {status: f"response.{status}" for status in ("completed", "incomplete", "failed")} | {"cancelled": "response.failed"}

# How such an event begins.
_LAST = tuple({f"event: {kind}\n".encode() for kind in LAST.values()})


class Place(NamedTuple):
    """How far a client has read: the `sequence_number` of its next event, and the bytes of that event that it has."""

    number: int
    offset: int = 0

    def after(self, piece: bytes) -> "Place":
        """Return the place behind a piece that was read here."""
        return Place(self.number + piece.count(END)) if piece.endswith(END) else Place(self.number, self.offset + len(piece))


START = Place(0)
# Behind all events. A read from here returns none, and so tells only whether the response can be followed.
BEHIND = Place(2**63 - 1)


class Events:
    """Events as bytes. Their `sequence_number`s are their places, from 0 on."""

    def __init__(self) -> None:
        self._data = bytearray()
        # The places where events end.
        self._ends = array("Q")

    @property
    def size(self) -> int:
        return len(self._data) + len(self._ends) * self._ends.itemsize

    def add(self, events: bytes) -> None:
        """Add complete events. JSON has no line breaks, so an empty line is an event's end."""
        begin, at = len(self._data), -len(END)
        while (at := events.find(END, at + len(END))) >= 0:
            self._ends.append(begin + at + len(END))
        self._data += events

    def close(self, status: str, body: bytes) -> None:
        """Add the last event: the response as JSON, which has ended with this status."""
        kind = LAST[status].encode()
        self.add(b'event: %b\ndata: {"type":"%b","sequence_number":%d,"response":%b}\n\n' % (kind, kind, len(self._ends), body))

    def read(self, place: Place) -> bytes:
        """Return what is behind a place: whole events, or a part of one; empty if there is nothing yet.

        A part never has the end of its event, so a piece that ends with `END` has only whole events.
        """
        if place.number >= len(self._ends):
            return b""
        begin = (self._ends[place.number - 1] if place.number else 0) + place.offset
        last = bisect_right(self._ends, begin + PIECE) - 1
        end = self._ends[last] if last >= place.number else min(begin + PIECE, self._ends[place.number] - len(END))
        return bytes(memoryview(self._data)[begin:end])


def begin_of_end(piece: bytes, place: Place, before: bytes) -> bytes:
    """Return how the event begins in which a piece ends. `before` is the result for the piece before."""
    begin = piece.rfind(END, 0, -len(END)) + len(END)
    if begin < len(END):
        if place.offset:
            return before
        begin = 0
    return piece[begin : begin + max(map(len, _LAST))]


def is_last(begin: bytes) -> bool:
    """Return whether an event that begins like this is the last one of a response."""
    return begin.startswith(_LAST)


def lost(number: int) -> bytes:
    """Return the last event for a client whose response has been deleted or dropped."""
    return _error(number, "not_found", "the response is no longer kept")


def stopping(number: int) -> bytes:
    """Return the last event for a client whose next event would have this number, and who may continue.

    It repeats the number before, so a client that continues after the last number that it has seen
    misses nothing.
    """
    return _error(max(number - 1, 0), "unavailable", "the server is stopping; continue the stream on a new connection")


def _error(number: int, code: str, words: str) -> bytes:
    return b"event: error\n" + sse.event({"type": "error", "code": code, "message": words, "param": None, "sequence_number": number})
