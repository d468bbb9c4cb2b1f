"""The simulated engine's tokens of images. They differ with the images' files."""

import hashlib

import anyio.to_thread

from llmserve.images.decoding import Decoded, ImageDecoder
from llmserve.images.parts import images
from llmserve.request import GenerationRequest


async def image_ids(decoder: ImageDecoder, request: GenerationRequest, count: int) -> tuple[int, ...]:
    """Return `count` tokens for each image of a request. Raises InvalidRequest."""
    found = images(request.messages)
    if not found:
        return ()
    async with decoder.decoded(found, request.tenant) as decoded:
        return await anyio.to_thread.run_sync(_ids, decoded, count)


def _ids(decoded: list[Decoded], count: int) -> tuple[int, ...]:
    return tuple(token for image in decoded for token in hashlib.shake_128(image.data).digest(count))
