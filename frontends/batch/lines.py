"""One line of a batch's input, and one line of its output, in OpenAI's format."""

from collections.abc import Collection

import attrs
import msgspec

from frontends.net.receive_budget import LARGEST
from llmserve import InvalidRequest

# Maximum bytes of a line: the largest body over HTTP, and the fields around it.
MAX_LINE = LARGEST + 4096
MAX_CUSTOM_ID = 512
PREFIX = "batch_req_"


class _Line(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Named(msgspec.Struct):
    """The name of a line whose other fields may be invalid."""

    custom_id: str | None = None


class Streams(msgspec.Struct):
    """The field of a body that asks for a stream, which a file cannot hold."""

    stream: bool | None = None


class Response(msgspec.Struct):
    """The answer to a line: an HTTP status, the answer's id, and the body."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class Failure(msgspec.Struct):
    """Why a line has no answer."""

    code: str
    message: str


class Result(msgspec.Struct):
    """One line of the output. `id` ends with the number of the input's line, from 1."""

    id: str
    custom_id: str | None
    response: Response | None
    error: Failure | None

    @property
    def number(self) -> int:
        """The number of the input's line. Raises ValueError."""
        return int(self.id.removeprefix(PREFIX))

    @property
    def succeeded(self) -> bool:
        return self.response is not None and self.response.status_code == 200


@attrs.frozen
class Line:
    """A line of the input that can be answered. `number` counts from 1."""

    number: int
    custom_id: str
    url: str
    body: bytes


class InvalidLine(Exception):
    """A line that cannot be answered; `result` is its line of the output."""

    def __init__(self, number: int, custom_id: str | None, message: str) -> None:
        super().__init__(message)
        self.result = Result(f"{PREFIX}{number}", custom_id, None, Failure("invalid_line", f"line {number}: {message}"))


_line = msgspec.json.Decoder(_Line).decode
_named = msgspec.json.Decoder(_Named).decode
_streams = msgspec.json.Decoder(Streams).decode
read_result = msgspec.json.Decoder(Result).decode


def name_of(text: bytes) -> str | None:
    """Return the `custom_id` of a line; None if it has none, or is not JSON."""
    try:
        return _named(text).custom_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def read_line(number: int, text: bytes, urls: Collection[str]) -> Line:
    """Read a line of the input. Raises InvalidLine.

    Args:
        number: the line's number, from 1.
        text: the line.
        urls: the paths that a line may name.
    """
    if len(text) > MAX_LINE:
        raise InvalidLine(number, None, f"the line is longer than {MAX_LINE} bytes")
    try:
        found = _line(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidLine(number, name_of(text), str(error)[:300]) from None
    if not 0 < len(found.custom_id) <= MAX_CUSTOM_ID:
        raise InvalidLine(number, found.custom_id, f"custom_id must have 1 to {MAX_CUSTOM_ID} characters")
    if found.method != "POST":
        raise InvalidLine(number, found.custom_id, f"method must be POST, not {found.method[:16]!r}")
    if found.url not in urls:
        raise InvalidLine(number, found.custom_id, f"url must be {' or '.join(urls)}, not {found.url[:64]!r}")
    return Line(number, found.custom_id, found.url, bytes(found.body))


def refuse_streams(body: bytes) -> None:
    """Raise InvalidRequest for a body that asks for a stream."""
    try:
        streams = _streams(body).stream
    except msgspec.DecodeError:
        # The route's own decoder names the invalid field.
        return
    if streams:
        raise InvalidRequest("stream must be false in a batch", "stream")


def answered(line: Line, status: int, request_id: str, body: bytes) -> Result:
    """Return the line of the output for an answer, or for an error with an HTTP status."""
    return Result(f"{PREFIX}{line.number}", line.custom_id, Response(status, request_id, msgspec.Raw(body)), None)


def unanswered(number: int, custom_id: str | None, code: str, message: str) -> Result:
    """Return the line of the output for a line without an answer."""
    return Result(f"{PREFIX}{number}", custom_id, None, Failure(code, message))


def write_result(result: Result) -> bytes:
    """Return a line of the output, with its line break."""
    return msgspec.json.encode(result) + b"\n"
