"""The frame codec under atheris: any bytes in any pieces give only messages and FrameErrors.

`tox run -e fuzz`, or `python tests/fuzz/fuzz_frames.py -runs=10000000` where atheris is installed.
"""

import sys

import atheris

with atheris.instrument_imports(include=["frontends.rawsocket.frames"]):
    from frontends.rawsocket import frames
    from frontends.rawsocket.frames import FrameError, FrameReader

LIMIT = 4096


def read(kind, data, size):
    """Return the messages of bytes in pieces of `size`, and whether an error ended them."""
    reader, found = FrameReader(kind, LIMIT), []
    try:
        for start in range(0, len(data), size):
            reader.feed(data[start : start + size])
            while (message := reader.next()) is not None:
                found.append(message)
    except FrameError as error:
        assert 0 < len(str(error)) < 400
        return found, True
    # The reader keeps no more than one frame may have.
    assert len(reader._buffer) <= LIMIT + frames.LENGTH
    return found, False


def framed(data):
    """Return the bytes as frames with the right lengths, which random bytes rarely have."""
    parts = []
    while data:
        length = min(data[0] % 64, len(data) - 1)
        parts.append(length.to_bytes(frames.LENGTH, "big") + data[1 : 1 + length])
        data = data[1 + length :]
    return b"".join(parts)


def test_one(data):
    if len(data) < 2:
        return
    kind = frames.FromClient if data[0] & 1 else frames.FromServer
    body = framed(data[2:]) if data[0] & 2 else data[2:]
    whole = read(kind, body, len(body) or 1)
    assert read(kind, body, data[1] % 16 + 1) == whole
    for message in whole[0]:
        # A message that was read can be written, and the result is equal.
        assert read(kind, frames.encode(message), LIMIT) == ([message], False)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one)
    atheris.Fuzz()
