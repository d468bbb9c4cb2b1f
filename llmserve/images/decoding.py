"""Decodes images to pixels in threads, for a few requests at a time. Pillow does the work.

Pillow releases the interpreter's lock while it decodes. Its other calls hold the lock for
milliseconds, and with many threads these add up to a delay of the event loop.
"""

import os
import weakref
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import attrs

from llmserve.errors import InvalidRequest, Overloaded
from llmserve.images.headers import Header, read_header
from llmserve.images.parts import AnyImage
from llmserve.images.stripping import stripped
from llmserve.runtime.cgroups import memory_limit
from llmserve.runtime.cpus import available_cpus
from llmserve.runtime.fair_semaphore import FairSemaphore

if TYPE_CHECKING:
    from PIL.Image import Image as Pixels

# Maximum number of pixels of one image, and of all images of a request. A pixel takes 4 bytes.
MAX_PIXELS = 2**24
MAX_ALL_PIXELS = 2**27
# A progressive JPEG file refines all its pixels with each scan; encoders make about ten.
MAX_SCANS = 100
# Maximum number of requests whose images are decoded and processed at the same time. The engine
# processes those of one request at a time, and meanwhile another one's are decoded.
AT_ONCE = 2
# Maximum number of requests with images that wait for that, and of those of one tenant. Each holds a
# body of up to 4 MiB.
MAX_WAITING = 128
MAX_OF_ONE = MAX_WAITING // 2
RETRY_SECONDS = 1.0
# Share of the memory that the processed images of one process may take before more are refused; those
# of one tenant may take half of it. Those of one request have up to 24 bytes for each pixel.
HELD_SHARE = 0.25
# Blocks of 16 MiB that Pillow keeps for the next image. New memory for an image of 4 megapixels held
# the interpreter's lock for up to 50 ms on a busy virtual machine, because each page is a fault.
KEPT_BLOCKS = 8
FORMATS = "a PNG, JPEG, WebP or GIF image"


@attrs.frozen
class Decoded:
    """The pixels of an image, and the file that they come from."""

    pixels: "Pixels"
    data: bytes


class ImageDecoder:
    """Bounds the memory and the threads that take part in decoding, and shares them between tenants.

    It leaves one CPU to the event loop: on two CPUs, two threads delayed the loop by up to 50 ms.

    Args:
        cpus: number of CPUs; None counts them.
        max_held: bytes of processed images that requests hold, from which on more are refused, and
            those of one tenant from half of it on; None is a share of the memory.
    """

    def __init__(self, cpus: int | None = None, max_held: int | None = None) -> None:
        self.at_once = max(1, min(AT_ONCE, (cpus or available_cpus()) - 1))
        self._room = FairSemaphore(self.at_once)
        # The number of choices that wait or decode, by their tenant and images.
        self._inside: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self._max_held = int(_memory() * HELD_SHARE) if max_held is None else max_held
        # Bytes by tenant, and those that were freed since the last look.
        self._held: Counter[str] = Counter()
        self._freed: deque[tuple[str, int]] = deque()

    def hold(self, owner: object, size: int, tenant: str) -> None:
        """Count `size` bytes of a tenant's processed images until `owner` is freed, in any thread."""
        self._held[tenant] += size
        # The thread that frees the owner, or collects garbage, only notes it: between two steps of a
        # subtraction there it would lose what the event loop adds.
        weakref.finalize(owner, self._freed.append, (tenant, size)).atexit = False

    def held(self) -> Counter[str]:
        """Return the bytes of processed images that requests hold, by tenant. For the event loop's thread."""
        while self._freed:
            tenant, size = self._freed.popleft()
            self._held[tenant] -= size
            if not self._held[tenant]:
                del self._held[tenant]
        return self._held

    @asynccontextmanager
    async def decoded(self, found: Sequence[tuple[str, AnyImage]], tenant: str) -> AsyncIterator[list[Decoded]]:
        """Decode the images of a tenant's request, each with the name of its field.

        The next request's turn comes when this context ends. The choices of one HTTP request have
        the same images, and take one place together. Raises InvalidRequest or Overloaded.
        """
        place = tenant, tuple(id(image) for _, image in found)
        if place not in self._inside and self._is_full(tenant):
            words = f"too many images wait to be decoded; try again in {RETRY_SECONDS} s"
            raise Overloaded(words, retry_after=RETRY_SECONDS, reason="tokenizer_busy")
        self._inside[place] += 1
        images: list[Decoded] = []
        try:
            async with self._room.place(tenant):
                self._check_memory(tenant)
                try:
                    await anyio.to_thread.run_sync(decode_all, found, images)
                    yield images
                finally:
                    # Freeing the pixels of a large image takes milliseconds.
                    with anyio.CancelScope(shield=True):
                        await anyio.to_thread.run_sync(images.clear)
        finally:
            self._inside[place] -= 1
            if not self._inside[place]:
                del self._inside[place]

    def _check_memory(self, tenant: str) -> None:
        """Raise Overloaded if requests hold as much memory as they may."""
        held = self.held()
        if held[tenant] >= self._max_held / 2:
            whose = "the images of this tenant's other requests take its half of the memory for images"
        elif held.total() >= self._max_held:
            whose = "the images of other requests take all memory for images"
        else:
            return
        raise Overloaded(f"{whose}; try again in {RETRY_SECONDS} s", retry_after=RETRY_SECONDS, reason="tokenizer_busy")

    def _is_full(self, tenant: str) -> bool:
        mine = sum(one == tenant for one, _ in self._inside)
        return mine >= self.at_once + MAX_OF_ONE or len(self._inside) >= self.at_once + MAX_WAITING


def decode_all(found: Sequence[tuple[str, AnyImage]], images: list[Decoded]) -> None:
    """Append the pixels of images, each with the name of its field. Raises InvalidRequest.

    All bounds are checked before the first image is decoded.
    """
    files = [(field, *_opened(field, image)) for field, image in found]
    if (pixels := sum(header.pixels for _, _, header in files)) > MAX_ALL_PIXELS:
        raise InvalidRequest(f"messages: the images have {pixels:,} pixels together, but may have at most {MAX_ALL_PIXELS:,}", "messages")
    _keep_blocks()
    for field, data, header in files:
        images.append(Decoded(_decoded(field, data, header), data))


def _memory() -> int:
    """Return the bytes of memory that this process may use."""
    return memory_limit() or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _keep_blocks() -> None:
    """Let Pillow keep freed memory, unless the program has a setting of its own."""
    # Pillow's manual describes the setting, which has no other name.
    from PIL import _imaging

    if not _imaging.get_blocks_max():
        _imaging.set_blocks_max(KEPT_BLOCKS)


def _opened(field: str, image: AnyImage) -> tuple[bytes, Header]:
    """Return an image's file and its header, if they are within the bounds."""
    try:
        data = image.read()
    except ValueError:
        raise InvalidRequest(f"{field}: the data is not valid base64", field) from None
    header = read_header(data)
    if header is None:
        raise InvalidRequest(f"{field}: the data is not {FORMATS}", field)
    if header.pixels > MAX_PIXELS:
        words = f"the image has {header.width:,} x {header.height:,} pixels, but may have at most {MAX_PIXELS:,}"
        raise InvalidRequest(f"{field}: {words}", field)
    if header.kind == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS:
        raise InvalidRequest(f"{field}: the JPEG image has more than {MAX_SCANS} scans", field)
    return data, header


def _decoded(field: str, data: bytes, header: Header) -> "Pixels":
    from PIL import Image

    damaged = InvalidRequest(f"{field}: the {header.kind} image is damaged or incomplete", field)
    try:
        file = stripped(header.kind, data)
        image = Image.open(BytesIO(file.data), formats=[header.kind])
        # A second header in the file may name another size.
        if image.size == (header.width, header.height):
            image.load()
            return _turned(_rgb(image), file.orientation)
    except Exception as error:
        # Pillow's readers raise errors of many types for damaged files.
        raise damaged from error
    raise damaged


def _turned(pixels: "Pixels", orientation: int) -> "Pixels":
    """Return the pixels upright, and nothing else of their file."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    if orientation in turns:
        pixels = pixels.transpose(turns[orientation])
    pixels.info.clear()
    return pixels


def _rgb(image: "Pixels") -> "Pixels":
    """Return a copy of the image in red, green and blue, on white where it is transparent, as in vLLM.

    An image of a file keeps the file, and a WebP image its decoder with copies of the pixels.
    """
    from PIL import Image

    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white
