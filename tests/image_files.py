"""Images for tests, as files of each format."""

import base64
import io
import struct
import zlib

from PIL import Image


def picture(kind="PNG", color="red", size=(8, 6), mode="RGB", **more):
    """Return the bytes of a file with one colour."""
    out = io.BytesIO()
    Image.new(mode, size, color).save(out, kind, **more)
    return out.getvalue()


def noise(kind, width, height, seed=0, **more):
    """Return the bytes of a file that hardly compresses."""
    import numpy

    out = io.BytesIO()
    pixels = numpy.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=numpy.uint8)
    Image.fromarray(pixels).resize((width, height)).save(out, kind, **more)
    return out.getvalue()


def bomb(width, height):
    """Return a PNG file of some hundred bytes that claims this size."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b"")


def data_url(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def part(data, kind="image/png"):
    """Return the part of a message in OpenAI's form."""
    return {"type": "image_url", "image_url": {"url": data_url(data, kind), "detail": "low"}}


def asking(*parts):
    """Return a conversation with one message."""
    return [{"role": "user", "content": ["What is this?", *parts]}]
