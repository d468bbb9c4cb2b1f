"""Cuts an image's file down to what makes its pixels, before an image library sees it.

Texts, profiles and comments may be compressed, or many: a library that reads them may need
gigabytes of memory for a file of some kilobytes. Of all that, only the orientation is read, here.
"""

import re
import struct
from collections.abc import Callable, Iterator

import attrs

from llmserve.images.headers import ALONE, FRAMES, MAX_SEGMENTS
from llmserve.images.parts import PIECE

# Chunks of a PNG or WebP file, and blocks of a GIF file before its first frame. Encoders write
# chunks of 8 KiB or more, so a file of 32 MiB has some 4,096.
MAX_CHUNKS = 2**14
# A camera writes some 20 entries.
MAX_ENTRIES = 512
ORIENTATION = 0x0112

_PNG_KEPT = frozenset({b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_WEBP_KEPT = frozenset({b"VP8X", b"ALPH", b"VP8 ", b"VP8L", b"ANIM", b"ANMF"})
# The bits of a WebP file's header that announce a profile, EXIF data and XMP data.
_WEBP_ANNOUNCED = 0x20 | 0x08 | 0x04
_EXIF = b"Exif\0\0"
_SCAN, _END = 0xDA, 0xD9
# Frames, tables, and APP0 and APP14, which say what the colours mean. Readers take the inside of
# some other segments for further segments.
_JPEG_KEPT = FRAMES | {0xC4, 0xCC, 0xDB, 0xDD, 0xE0, 0xEE}
# Within a scan, 0xFF comes before 0, the marker of a restart, or another 0xFF.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")


@attrs.frozen
class Stripped:
    """A file without metadata, and its orientation as in EXIF: 1 to 8, where 1 is upright."""

    data: bytes
    orientation: int = 1


def stripped(kind: str, data: bytes) -> Stripped:
    """Return the parts of a file that make the pixels of its first frame. Copies the file once.

    Args:
        kind: The format, by Pillow's name.
        data: The file.

    Raises:
        ValueError: The file is damaged, or has more parts than any encoder writes.
    """
    try:
        return _STRIPPED[kind](data)
    except (struct.error, IndexError):
        raise ValueError("the file ends early") from None


def orientation(tiff: bytes) -> int:
    """Return the orientation in EXIF data, from its first directory; 1 if it has none."""
    tiff = tiff.removeprefix(_EXIF)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, at)
        for number in range(min(count, MAX_ENTRIES)):
            tag, kind, values, value = struct.unpack_from(f"{order}HHIH", tiff, at + 2 + 12 * number)
            if tag == ORIENTATION:
                # One number of 16 bits.
                return value if (kind, values) == (3, 1) and 1 <= value <= 8 else 1
    except struct.error:
        # Damaged metadata does not make the pixels wrong.
        pass
    return 1


def _png(data: bytes) -> Stripped:
    view, turn = memoryview(data), 1
    kept = [view[:8]]
    for name, begin, end in _chunks(data, 8, ">I4s", 12):
        # A second header may name another size.
        if name in _PNG_KEPT or begin == 8:
            kept.append(view[begin:end])
        elif name == b"eXIf":
            turn = orientation(data[begin + 8 : end - 4])
        if name == b"IEND":
            break
    return Stripped(b"".join(kept), turn)


def _webp(data: bytes) -> Stripped:
    view, turn, frames = memoryview(data), 1, 0
    kept, last = [view[8:12]], 8 + struct.unpack_from("<I", data, 4)[0]
    for name, begin, end in _chunks(data, 12, "<4sI", 8):
        if begin >= last:
            # Libraries ignore what follows the container.
            break
        if end > len(data) + 1:
            raise ValueError("a chunk ends early")
        frames += name == b"ANMF"
        if name == b"VP8X":
            kept.append(memoryview(data[begin : begin + 8] + bytes([data[begin + 8] & ~_WEBP_ANNOUNCED]) + data[begin + 9 : end]))
        elif name in _WEBP_KEPT and not (name == b"ANMF" and frames > 1):
            kept.append(view[begin:end])
        elif name == b"EXIF":
            turn = orientation(data[begin + 8 : end])
    length = struct.pack("<I", sum(map(len, kept)))
    return Stripped(b"".join((b"RIFF", length, *kept)), turn)


def _chunks(data: bytes, at: int, form: str, more: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name, the begin and the end of chunks; `more` bytes of each are not its data."""
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return
        first, second = struct.unpack_from(form, data, at)
        name, length = (first, second) if isinstance(first, bytes) else (second, first)
        # WebP pads its chunks to an even length.
        end = at + more + length + (length % 2 if more == 8 else 0)
        yield name, at, end
        at = end
    raise ValueError(f"more than {MAX_CHUNKS} chunks")


def _jpeg(data: bytes) -> Stripped:
    view, at, turn, frames = memoryview(data), 2, 0, 0
    kept = [view[:2]]
    for _ in range(MAX_SEGMENTS):
        if data[at] != 0xFF:
            raise ValueError("no marker")
        marker = data[at + 1]
        if marker == _SCAN:
            kept.append(view[at : _end_of_scans(data, at)])
            return Stripped(b"".join(kept), turn or 1)
        if marker == 0xFF:
            at += 1
            continue
        end = at + 2 if marker in ALONE else at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        frames += marker in FRAMES
        if frames > 1:
            raise ValueError("two frames")
        if marker in _JPEG_KEPT:
            kept.append(view[at:end])
        elif marker == 0xE1 and not turn and data.startswith(_EXIF, at + 4):
            turn = orientation(data[at + 4 : end])
        at = end
    raise ValueError(f"more than {MAX_SEGMENTS} segments")


def _end_of_scans(data: bytes, at: int) -> int:
    """Return the end of the scans that begin here, with the tables between them."""
    for _ in range(MAX_SEGMENTS):
        at = _next_marker(data, at)
        if at == len(data):
            return at
        if data[at + 1] == _END:
            return at + 2
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    raise ValueError(f"more than {MAX_SEGMENTS} segments")


def _next_marker(data: bytes, at: int) -> int:
    """Search in pieces: a search holds the interpreter's lock."""
    while at < len(data):
        found = _MARKER.search(data, at, at + PIECE)
        if found is not None:
            return found.start()
        at += PIECE - 1
    return len(data)


def _gif(data: bytes) -> Stripped:
    """Keep the header, the extensions that set transparency, and everything from the first frame on."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0)
    kept, begin, size = [data[:at]], at, struct.unpack_from("<HH", data, 6)
    inside = False
    for _ in range(MAX_CHUNKS):
        if inside:
            inside = data[at] != 0
            at += 1 + data[at]
            if not inside and data[begin + 1] == 0xF9:
                kept.append(data[begin:at])
        elif data[at] == 0x21:
            begin, at, inside = at, at + 2, True
        elif data[at] == 0x2C:
            left, top, width, height = struct.unpack_from("<4H", data, at + 1)
            if left + width > size[0] or top + height > size[1]:
                raise ValueError("the frame is outside of the image")
            return Stripped(b"".join([*kept, memoryview(data)[at:]]))
        else:
            # Readers skip other bytes.
            at += 1
    raise ValueError(f"more than {MAX_CHUNKS} blocks")


_STRIPPED: dict[str, Callable[[bytes], Stripped]] = {"PNG": _png, "JPEG": _jpeg, "WEBP": _webp, "GIF": _gif}
