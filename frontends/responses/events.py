"""The events of a response in the background, which clients may read again from any of them on."""

from array import array
from bisect import bisect_right

from frontends.openai import sse

END = b"\n\n"
# Maximum bytes that a client gets at once, and holds while it does not read; one event may have more.
PIECE = 2**16
# The last event of a response, by its status. The format has none of its own for a cancelled one.
LAST = {status: f"response.{status}" for status in ("completed", "incomplete", "failed")} | {"cancelled": "response.failed"}


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

    def read(self, number: int) -> bytes:
        """Return events from a `sequence_number` on; empty if there are none yet."""
        if number >= len(self._ends):
            return b""
        begin = self._ends[number - 1] if number else 0
        last = max(number, bisect_right(self._ends, begin + PIECE) - 1)
        return bytes(memoryview(self._data)[begin : self._ends[last]])


def count(events: bytes) -> int:
    return events.count(END)


def lost(number: int) -> bytes:
    """Return the last event for a client whose response has been deleted or dropped."""
    words = "the response is no longer kept"
    fields = {"type": "error", "code": "not_found", "message": words, "param": None, "sequence_number": number}
    return b"event: error\n" + sse.event(fields)
