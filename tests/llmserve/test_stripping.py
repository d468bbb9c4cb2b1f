"""What is left of an image's file before a library reads it, and the orientation."""

import io
import struct
import warnings
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import picture
from PIL import Image as Pixels
from PIL import ImageOps

from llmserve import Image, InvalidRequest
from llmserve.images.decoding import decode_all
from llmserve.images.headers import MAX_SEGMENTS
from llmserve.images.stripping import MAX_CHUNKS, MAX_ENTRIES, orientation, stripped

# Some kilobytes that become megabytes.
BOMB = zlib.compress(bytes(4_000_000), 9)
EXIF = b"Exif\0\0"


def png_chunk(name, data=b""):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def riff_chunk(name, data):
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def segment(marker, data):
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def tiff(value, order="<", before=0, kind=3, count=1):
    """Return EXIF data whose entry for the orientation comes after some others."""
    entries = [struct.pack(f"{order}HHII", 1, 4, 1, 0)] * before + [struct.pack(f"{order}HHIHH", 0x0112, kind, count, value, 0)]
    return {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(entries)) + b"".join(entries) + bytes(4)


def in_png(*chunks, at=33):
    data = picture("PNG")
    return data[:at] + b"".join(chunks) + data[at:]


def in_webp(*chunks):
    frame = picture("WEBP", lossless=True)[12:]
    body = b"WEBP" + riff_chunk(b"VP8X", bytes([0x2C, 0, 0, 0, 7, 0, 0, 5, 0, 0])) + frame + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def in_jpeg(*segments, where=b"\xff\xdb"):
    data = picture("JPEG")
    at = data.index(where)
    return data[:at] + b"".join(segments) + data[at:]


def in_gif(*blocks):
    data = picture("GIF")
    at = 13 + (3 << (data[10] & 7) + 1)
    return data[:at] + b"".join(blocks) + data[at:]


def decoded(data):
    found = []
    decode_all([("image", Image(data))], found)
    return found[0].pixels


METADATA = [
    ("PNG", in_png(png_chunk(b"zTXt", b"SECRET\0\0" + BOMB))),
    ("PNG", in_png(png_chunk(b"iTXt", b"SECRET\0\1\0\0\0" + BOMB))),
    ("PNG", in_png(png_chunk(b"tEXt", b"SECRET\0a"))),
    ("PNG", in_png(png_chunk(b"iCCP", b"SECRET\0\0" + BOMB))),
    ("PNG", in_png(png_chunk(b"eXIf", tiff(1, before=600) + b"SECRET"))),
    ("PNG", in_png(png_chunk(b"acTL", b"\0\0\0\2\0\0\0\0"), png_chunk(b"fdAT", b"SECRET"))),
    ("PNG", in_png(png_chunk(b"zTXt", b"SECRET\0\0" + BOMB), at=len(picture()) - 12)),
    ("PNG", in_png(png_chunk(b"IHDR", b"SECRET"))),
    ("PNG", picture() + png_chunk(b"zTXt", b"SECRET\0\0" + BOMB)),
    ("JPEG", in_jpeg(segment(0xE1, EXIF + tiff(1) + b"SECRET"))),
    ("JPEG", in_jpeg(segment(0xE2, b"MPF\0SECRET"), segment(0xFE, b"SECRET"))),
    ("JPEG", in_jpeg(segment(0xED, b"Photoshop 3.0\0SECRET"), where=b"\xff\xda")),
    ("JPEG", in_jpeg(segment(0xF0, segment(0xE1, EXIF + tiff(1) + b"SECRET")))),
    ("JPEG", picture("JPEG") + segment(0xFE, b"SECRET")),
    ("GIF", in_gif(b"!\xfe\6SECRET\0" * 9)),
    ("GIF", in_gif(b"!\xff\x0bNETSCAPE2.0\3\1\0\0\6SECRET\0")),
    ("WEBP", in_webp(riff_chunk(b"EXIF", tiff(1) + b"SECRET"), riff_chunk(b"XMP ", b"SECRET"), riff_chunk(b"ICCP", b"SECRET!"))),
]


@pytest.mark.parametrize(("kind", "data"), METADATA)
def test_a_library_sees_no_metadata(kind, data, monkeypatch):
    seen = []
    original = Pixels.open

    def opened(file, **more):
        seen.append(file.getvalue())
        return original(file, **more)

    monkeypatch.setattr(Pixels, "open", opened)
    pixels = decoded(data)
    assert b"SECRET" in data
    assert b"SECRET" not in seen[0]
    assert len(seen[0]) <= len(picture(kind, lossless=True)) + 30
    assert pixels.getpixel((3, 3))[0] > 240
    assert (type(pixels), pixels.size, pixels.info) == (Pixels.Image, (8, 6), {})


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_the_pixels_are_those_of_the_whole_file(kind, mode):
    data = picture(kind, mode="RGB" if kind == "JPEG" and mode in ("P", "RGBA") else mode, color=0, size=(9, 7))
    kept = stripped(kind, data)
    assert kept.orientation == 1
    with Pixels.open(io.BytesIO(data)) as whole, Pixels.open(io.BytesIO(kept.data)) as rest:
        assert (whole.convert("RGBA").tobytes(), whole.mode) == (rest.convert("RGBA").tobytes(), rest.mode)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_image_is_turned_as_its_exif_data_says(kind, turn):
    source = Pixels.new("RGB", (16, 8))
    source.paste((255, 255, 255), (0, 0, 8, 4))
    exif = Pixels.Exif()
    exif[0x0112] = turn
    out = io.BytesIO()
    source.save(out, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    pixels = decoded(out.getvalue())
    expected = ImageOps.exif_transpose(Pixels.open(out)).convert("RGB")
    assert (pixels.size, pixels.tobytes()) == (expected.size, expected.tobytes())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (tiff(6), 6),
        (EXIF + tiff(6, ">"), 6),
        (tiff(6, before=MAX_ENTRIES - 1), 6),
        (tiff(6, before=MAX_ENTRIES), 1),
        (tiff(0), 1),
        (tiff(9), 1),
        (tiff(6, kind=4), 1),
        (tiff(6, count=2), 1),
        (tiff(6)[:12], 1),
        (b"II*\0\xff\xff\xff\xff", 1),
        (b"", 1),
        (b"SECRET", 1),
    ],
)
def test_the_orientation_is_one_number_from_one_to_eight(data, expected):
    assert orientation(data) == expected


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("PNG", in_png(*[png_chunk(b"IDAT")] * MAX_CHUNKS)),
        ("JPEG", in_jpeg(*[segment(0xFE, b"")] * MAX_SEGMENTS, where=b"\xff\xda")),
        ("JPEG", picture("JPEG")[:-2] + segment(0xFE, b"") * MAX_SEGMENTS),
        ("GIF", in_gif(b"!\xfe" + b"\1a" * MAX_CHUNKS + b"\0")),
        ("GIF", in_gif(bytes(MAX_CHUNKS))),
        ("WEBP", in_webp(*[riff_chunk(b"JUNK", b"")] * MAX_CHUNKS)),
    ],
)
def test_a_file_of_too_many_parts_is_refused(kind, data):
    with pytest.raises(ValueError, match="more than"):
        stripped(kind, data)
    with pytest.raises(InvalidRequest, match=f"the {kind} image is damaged"):
        decoded(data)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("JPEG", in_jpeg(segment(0xC0, b"\x08\x27\x10\x27\x10\x01\x01\x11\0"), where=b"\xff\xda")),
        ("GIF", in_gif(b"," + struct.pack("<4HB", 0, 0, 10_000, 10_000, 0))),
    ],
)
def test_a_second_size_is_refused_before_a_library_sees_it(kind, data):
    with pytest.raises(ValueError, match=r"two frames|outside"):
        stripped(kind, data)


@given(st.sampled_from(METADATA), st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_a_damaged_file_is_stripped_or_refused(case, at, damage):
    kind, data = case[0], bytearray(case[1])
    data[at : at + len(damage)] = damage
    try:
        kept = stripped(kind, bytes(data))
    except ValueError:
        return
    assert len(kept.data) <= len(data) + 1
    # Pillow warns of metadata, which it does not see.
    with warnings.catch_warnings(action="error"):
        try:
            decoded(bytes(data))
        except InvalidRequest as error:
            assert not isinstance(error.__cause__, Warning)
