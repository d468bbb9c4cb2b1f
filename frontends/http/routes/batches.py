"""The routes of files and batches, in OpenAI's format. Without a folder they answer an error."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NoReturn

import anyio.to_thread
from aiohttp import web

from frontends.batch.objects import (
    BatchList,
    BatchObject,
    BatchRecord,
    CreateBatch,
    FileDeleted,
    FileList,
    FileObject,
    FileRecord,
)
from frontends.batch.service import BatchService
from frontends.batch.store import Record, owned
from frontends.http.authentication import CALLER
from frontends.http.request_checks import Handler
from frontends.http.responses import json_response
from frontends.http.routes.paging import page
from frontends.http.routes.served_model import ServedModel
from frontends.http.routes.upload import receive_file
from frontends.openai.errors import HTTPFailure
from frontends.openai.sizes import check_metadata
from llmserve import InvalidRequest

# Uploads at the same time; each holds up to two blocks of a MiB.
MAX_UPLOADS = 8


class BatchRoutes:
    """The handlers.

    Args:
        served: the model, for reading bodies.
        batches: the batches; None without a folder.
    """

    def __init__(self, served: ServedModel, batches: BatchService | None) -> None:
        self._served = served
        self._create = served.reader(CreateBatch)
        self._uploads = 0
        if batches is not None:
            self._batches, self._store = batches, batches.store
        self._exist = batches is not None

    def routes(self) -> dict[str, Handler]:
        routes: dict[str, Handler] = {
            "POST /v1/files": self.upload,
            "GET /v1/files": self.files,
            "GET /v1/files/{file_id}": self.file,
            "GET /v1/files/{file_id}/content": self.content,
            "DELETE /v1/files/{file_id}": self.delete,
            "POST /v1/batches": self.create,
            "GET /v1/batches": self.batches,
            "GET /v1/batches/{batch_id}": self.batch,
            "POST /v1/batches/{batch_id}/cancel": self.cancel,
        }
        return routes if self._exist else dict.fromkeys(routes, _refuse)

    # Files

    async def upload(self, request: web.Request) -> web.Response:
        if self._uploads >= MAX_UPLOADS:
            raise HTTPFailure(503, f"at most {MAX_UPLOADS} files may arrive at once; retry later", "receiving_too_much")
        self._uploads += 1
        try:
            return json_response(await receive_file(request, self._batches))
        finally:
            self._uploads -= 1

    async def files(self, request: web.Request) -> web.Response:
        found = owned(self._store.files.values(), request[CALLER].tenant)
        purpose = request.query.get("purpose")
        data, more = page([one.object for one in found if purpose in (None, one.object.purpose)], request, lambda one: one.id)
        return json_response(FileList(data=data, first_id=_id(data[:1]), last_id=_id(data[-1:]), has_more=more))

    async def file(self, request: web.Request) -> web.Response:
        return json_response(self._file(request, request.match_info["file_id"], "file_id").object)

    async def content(self, request: web.Request) -> web.StreamResponse:
        found = self._file(request, request.match_info["file_id"], "file_id").object
        return web.FileResponse(self._store.content(found.id), headers={"Content-Type": "application/jsonl"})

    async def delete(self, request: web.Request) -> web.Response:
        found = self._file(request, request.match_info["file_id"], "file_id").object
        if not await self._batches.finish(partial(anyio.to_thread.run_sync, self._store.delete, found.id)):
            raise _missing("file", found.id, "file_id")
        return json_response(FileDeleted(id=found.id))

    def _file(self, request: web.Request, file_id: str, param: str) -> FileRecord:
        return _owned_one(self._store.files, file_id, request, "file", param)

    # Batches

    async def create(self, request: web.Request) -> web.Response:
        wanted = await self._served.read(request, self._create, _checked)
        if wanted.endpoint not in self._batches.answers.table:
            raise InvalidRequest(f"endpoint must be one of {', '.join(self._batches.answers.table)}", "endpoint")
        if self._file(request, wanted.input_file_id, "input_file_id").object.purpose != "batch":
            raise InvalidRequest("input_file_id must name a file with the purpose batch", "input_file_id")

        async def begin() -> web.Response:
            record = await anyio.to_thread.run_sync(self._store.create, wanted, request[CALLER].tenant)
            response = json_response(record.object)
            self._batches.start(record)
            return response

        return await self._batches.finish(begin)

    async def batches(self, request: web.Request) -> web.Response:
        found = owned(self._store.batches.values(), request[CALLER].tenant)
        records, more = page(found, request, lambda one: one.object.id)
        data = [self._batches.shown(one) for one in records]
        return json_response(BatchList(data=data, first_id=_id(data[:1]), last_id=_id(data[-1:]), has_more=more))

    async def batch(self, request: web.Request) -> web.Response:
        return json_response(self._batches.shown(self._batch(request)))

    async def cancel(self, request: web.Request) -> web.Response:
        record = self._batch(request)
        await self._batches.finish(partial(self._batches.cancel, record))
        return json_response(self._batches.shown(record))

    def _batch(self, request: web.Request) -> BatchRecord:
        return _owned_one(self._store.batches, request.match_info["batch_id"], request, "batch", "batch_id")


def _id(objects: Sequence[FileObject | BatchObject]) -> str | None:
    return objects[0].id if objects else None


def _checked(wanted: CreateBatch) -> CreateBatch:
    """Check the metadata. Raises InvalidRequest."""
    check_metadata(wanted.metadata)
    return wanted


def _owned_one(records: Mapping[str, Record], name: str, request: web.Request, what: str, param: str) -> Record:
    """Return the record of a name that the client sent. A tenant cannot tell others' names from unknown ones."""
    found = records.get(name)
    if found is None or found.tenant != request[CALLER].tenant:
        raise _missing(what, name, param)
    return found


def _missing(what: str, name: str, param: str) -> HTTPFailure:
    return HTTPFailure(404, f"there is no {what} {name[:64]!r} ({param})", "not_found")


async def _refuse(request: web.Request) -> NoReturn:
    raise HTTPFailure(404, "this server keeps no files and batches: start it with --batch-folder", "no_batch_folder")
