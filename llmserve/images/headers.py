"""Reads the format and the size of an image from the first bytes of its file.

No image library is involved, so a file that claims to be huge is refused before anything is built
for it.
"""

import struct
from collections.abc import Callable

import attrs

# A photo has some ten segments before its size, and profiles of colours some hundred.
MAX_SEGMENTS = 1024
# Markers of a JPEG file that begin a frame, and those without a length.
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
ALONE = frozenset({0x01, *range(0xD0, 0xD9)})


@attrs.frozen
class Header:
    """What a file's first bytes say: its format, by Pillow's name, and its size in pixels."""

    kind: str
    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height


def read_header(data: bytes) -> Header | None:
    """Return the header of a PNG, JPEG, WebP or GIF file; None for anything else."""
    for kind, signature, size in _FORMATS:
        if data.startswith(signature):
            try:
                found = size(data)
            except (struct.error, IndexError):
                return None
            return None if found is None or 0 in found else Header(kind, *found)
    return None


def _png(data: bytes) -> tuple[int, int] | None:
    width, height = struct.unpack_from(">II", data, 16)
    return (width, height) if data[12:16] == b"IHDR" else None


def _gif(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _webp(data: bytes) -> tuple[int, int] | None:
    """Read the size of the canvas, of a lossless frame, or of a lossy one."""
    if data[8:12] != b"WEBP":
        return None
    match data[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    """Read the size from the frame's header, which comes after other segments."""
    at = 2
    for _ in range(MAX_SEGMENTS):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker in FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        if marker == 0xFF:
            at += 1
        elif marker in ALONE:
            at += 2
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


_FORMATS: tuple[tuple[str, bytes, Callable[[bytes], tuple[int, int] | None]], ...] = (
    ("PNG", b"\x89PNG\r\n\x1a\n", _png),
    ("JPEG", b"\xff\xd8", _jpeg),
    ("WEBP", b"RIFF", _webp),
    ("GIF", b"GIF87a", _gif),
    ("GIF", b"GIF89a", _gif),
)
