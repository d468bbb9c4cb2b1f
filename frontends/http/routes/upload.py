"""Receives a form with a file, block by block, within limits of its size, its time and its memory."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import BinaryIO

import anyio
import anyio.to_thread
from aiohttp import BodyPartReader, MultipartReader, web

from frontends.batch.objects import FileObject
from frontends.batch.service import BatchService
from frontends.batch.store import MAX_FILE, Store
from frontends.http.authentication import CALLER
from frontends.http.request_checks import allow_continue, too_slow
from frontends.net import deadlines
from frontends.openai.errors import HTTPFailure
from llmserve import InvalidRequest

# Bytes that a thread writes at once. Each block must arrive in the time that a body has.
BLOCK, CHUNK = 2**20, 2**16
MAX_FIELD = 256


class _Arrival:
    """A file that is arriving: its name and purpose, and the bytes that the store has counted."""

    def __init__(self, store: Store, part: BinaryIO, tenant: str | None) -> None:
        self._store = store
        self._tenant = tenant
        self._part = part
        self.size = 0
        self._name: str | None = None
        self._purpose: str | None = None

    async def take(self, field: BodyPartReader) -> None:
        """Take a field of the form. Raises HTTPFailure, InvalidRequest."""
        if field.name == "purpose" and self._purpose is None:
            self._purpose = (await _text(field)).strip()
        elif field.name == "file" and self._name is None:
            self._name = field.filename or "file.jsonl"
            async for block in _blocks(field):
                await self._write(block)
        else:
            name = str(field.name)[:64]
            raise InvalidRequest(f"the field {name!r} is not supported, or was sent twice: send file and purpose", name)

    async def _write(self, block: bytes) -> None:
        if self.size + len(block) > MAX_FILE:
            raise HTTPFailure(413, f"the file is larger than {MAX_FILE} bytes", "body_too_large")
        self._store.reserve(len(block), self._tenant)
        self.size += len(block)
        await anyio.to_thread.run_sync(self._part.write, block)

    def finish(self) -> str:
        """Let the disk have the file; return its name. Raises InvalidRequest."""
        if self._name is None or not self.size:
            raise InvalidRequest("file is missing or empty", "file")
        if self._purpose != "batch":
            raise InvalidRequest("purpose must be batch", "purpose")
        self._part.flush()
        os.fsync(self._part.fileno())
        return self._name


async def receive_file(request: web.Request, batches: BatchService) -> FileObject:
    """Store the file of a form. Raises HTTPFailure, InvalidRequest; then nothing of the file stays."""
    if request.content_type != "multipart/form-data":
        raise HTTPFailure(415, "send the file as Content-Type: multipart/form-data", "unsupported_media_type")
    allow_continue(request)
    in_thread, store, tenant = anyio.to_thread.run_sync, batches.store, request[CALLER].tenant
    file_id, part = await begun(store, tenant)
    arrival = _Arrival(store, part, tenant)
    try:
        with part:
            async with _in_time():
                reader = await request.multipart()
            async for field in _fields(reader):
                await arrival.take(field)
            name = await in_thread(arrival.finish)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await in_thread(store.drop, file_id, arrival.size, tenant)
        raise
    keep = partial(store.keep, file_id, arrival.size, name, "batch", tenant)
    return await batches.finish(partial(in_thread, keep))


async def begun(store: Store, tenant: str | None) -> tuple[str, BinaryIO]:
    """Begin a file. Raises HTTPFailure. Nothing of it stays if the client leaves in the meantime."""
    beginning = asyncio.ensure_future(anyio.to_thread.run_sync(store.begin, tenant))
    try:
        return await asyncio.shield(beginning)
    except asyncio.CancelledError:
        with suppress(HTTPFailure, OSError):
            file_id, part = await beginning
            part.close()
            await anyio.to_thread.run_sync(store.drop, file_id, 0, tenant)
        raise


async def _fields(reader: MultipartReader) -> AsyncIterator[BodyPartReader]:
    """Yield the fields of a form. Raises HTTPFailure for a form that is invalid or too slow."""
    while True:
        async with _in_time():
            field = await reader.next()
        if field is None:
            return
        if not isinstance(field, BodyPartReader):
            raise HTTPFailure(400, "the form has a form in it", "invalid_body")
        yield field


async def _blocks(field: BodyPartReader) -> AsyncIterator[bytes]:
    """Yield a field's content in blocks of at most `BLOCK` bytes and a chunk."""
    block = bytearray()
    while True:
        async with _in_time():
            while len(block) < BLOCK and not field.at_eof():
                block += await field.read_chunk(CHUNK)
        if not block:
            return
        yield bytes(block)
        block.clear()


async def _text(field: BodyPartReader) -> str:
    """Return the content of a short field."""
    content = b""
    async for block in _blocks(field):
        content += block
        if len(content) > MAX_FIELD:
            raise InvalidRequest(f"{field.name} must have at most {MAX_FIELD} bytes", field.name)
    return content.decode(errors="replace")


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    """Limit the time in which the next piece arrives. Raises HTTPFailure, also for an invalid form."""
    try:
        async with asyncio.timeout(deadlines.spread(deadlines.BODY_SECONDS)):
            yield
    except TimeoutError:
        raise too_slow() from None
    except (ValueError, AssertionError, EOFError, web.RequestPayloadError, web.HTTPRequestEntityTooLarge):
        # What aiohttp raises for a form that breaks off, or whose boundaries or headers are wrong.
        raise HTTPFailure(400, "the multipart form is invalid", "invalid_body") from None
