"""Runs the batches of a store, from their validation to their files, also after a kill."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from hashlib import blake2b
from typing import Any, TypeVar

import anyio
import anyio.abc
import anyio.to_thread
import msgspec

from frontends.access.caller import Caller
from frontends.answers.served_model import ServedModel
from frontends.batch.answers import Answers
from frontends.batch.journal import NO_DESCRIPTOR, Journal
from frontends.batch.lines import name_of, read_result, unanswered
from frontends.batch.objects import ENDED, BatchError, BatchErrors, BatchObject, BatchRecord, RequestCounts, Status
from frontends.batch.places import Places
from frontends.batch.room import Room
from frontends.batch.runner import EngineGone, Runner
from frontends.batch.source import Checked, check, remaining
from frontends.batch.store import MAX_LINES, Store
from frontends.logs.operator_log import say
from frontends.openai.errors import HTTPFailure
from llmserve import ConfigurationError, EngineManager
from llmserve.runtime.lifespan import first_of

logger = logging.getLogger(__name__)
Made = TypeVar("Made")

# Batches that are in progress at once, and how many if each further one is the only one
# of its tenant. Each has two open files, and in memory some 120 bytes for each line that is done.
AT_ONCE, MOST_AT_ONCE = 16, 64
# Batches that end at once.
ENDINGS = 16
# Seconds until a batch tries again to open its files, after the process had no descriptor left.
RETRY_SECONDS = 1.0
WORDS = {"expired": "the batch was not complete within its completion_window", "cancelled": "the batch was cancelled"}


class BatchService:
    """The batches of a server.

    Args:
        manager: the manager, which answers the lines.
        model: the name that the model is served under.
        store: the folder, which `running` opens.
        now: returns seconds since 1970.
    """

    def __init__(self, manager: EngineManager, model: str, store: Store, now: Callable[[], float] = time.time) -> None:
        self.store = store
        self.answers = Answers(ServedModel(manager, model))
        self._now = now
        self._runner = Runner(manager, Room(manager), self.answers)
        self._tasks: anyio.abc.TaskGroup
        self._places, self._endings = Places(AT_ONCE, MOST_AT_ONCE), Places(ENDINGS, ENDINGS)
        self._saving = anyio.Lock()
        # The scopes of batches that wait for a place or are in progress, and the open journals.
        self._scopes: dict[str, anyio.CancelScope] = {}
        self._journals: dict[str, tuple[int, Journal]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator["BatchService"]:
        """Open the store and run its batches. Raises ConfigurationError."""
        await anyio.to_thread.run_sync(self.store.open)
        try:
            async with self._runner.running(), anyio.create_task_group() as self._tasks:
                for record in self.store.batches.values():
                    if record.object.status not in ENDED:
                        self._tasks.start_soon(self._run, record)
                yield self
                self._tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise first_of(group) from None
        finally:
            self.store.close()

    def start(self, record: BatchRecord) -> None:
        """Run a batch that was created."""
        self._tasks.start_soon(self._run, record)

    def shown(self, record: BatchRecord) -> BatchObject:
        """Return a batch with its present counts."""
        if record.object.id in self._journals:
            self._count(record, *self._journals[record.object.id])
        return record.object

    def _count(self, record: BatchRecord, total: int, journal: Journal) -> None:
        done = journal.done
        record.object.request_counts = RequestCounts(total=total, completed=done.completed, failed=done.failed)

    async def cancel(self, record: BatchRecord) -> None:
        """Let a batch end; its answers so far remain. It is no error if it has ended."""
        if record.object.status in ENDED or record.object.status in ("cancelling", "finalizing"):
            return
        scope = self._scopes.get(record.object.id)
        if scope is not None:
            # First, so that the batch ends even if its state cannot be stored.
            scope.cancel()
        await self._enter(record, "cancelling")

    async def finish(self, work: Callable[[], Awaitable[Made]]) -> Made:
        """Let work come to its end, even if the client that waits for it leaves. Raises what the work raises."""
        result: asyncio.Future[Made] = asyncio.get_running_loop().create_future()

        async def finished() -> None:
            try:
                with anyio.CancelScope(shield=True):
                    made = await work()
            except Exception as error:
                if result.cancelled():
                    logger.warning("the work for a client that left failed: %r", error)
                else:
                    result.set_exception(error)
            else:
                if not result.cancelled():
                    result.set_result(made)

        self._tasks.start_soon(finished)
        return await result

    async def _enter(self, record: BatchRecord, status: Status) -> None:
        changes: dict[str, Any] = {"status": status, f"{status}_at": int(self._now())}
        if status in ENDED:
            # Clients see the end when the disk has it, so that a kill does not take it back.
            await self._save(BatchRecord(tenant=record.tenant, object=msgspec.structs.replace(record.object, **changes)))
        for name, value in changes.items():
            setattr(record.object, name, value)
        if status not in ENDED:
            await self._save(record)

    async def _save(self, record: BatchRecord) -> None:
        # One at a time, so that no older state of a batch replaces a newer one.
        async with self._saving:
            await anyio.to_thread.run_sync(self.store.save, record)

    # One batch

    async def _run(self, record: BatchRecord) -> None:
        batch = record.object
        try:
            places = await self._place(record)
            try:
                await self._until_ended(record)
            finally:
                places.release(record.tenant)
        except EngineGone:
            # The server ends, and the next one continues the batch.
            return
        except (ConfigurationError, HTTPFailure, OSError) as error:
            await self._fail(record, error)
        except Exception as error:
            # One batch must not end the server.
            logger.exception("the batch %s failed", batch.id)
            await self._fail(record, error)
        say(f"batch     {batch.id} {batch.status}: {batch.request_counts.completed} of {batch.request_counts.total} lines answered")

    async def _place(self, record: BatchRecord) -> Places:
        """Take a place; a batch that is cancelled or expires takes one of those that only end batches."""
        if record.object.cancelling_at is None:
            with self._open(record):
                await self._places.acquire(record.tenant)
                return self._places
        await self._endings.acquire(record.tenant)
        return self._endings

    @contextmanager
    def _open(self, record: BatchRecord) -> Iterator[None]:
        """Do this until the batch expires or is cancelled."""
        batch = record.object
        with anyio.move_on_after(batch.expires_at - self._now()) as scope:
            self._scopes[batch.id] = scope
            try:
                yield
            finally:
                del self._scopes[batch.id]

    async def _fail(self, record: BatchRecord, error: Exception) -> None:
        code, words = "internal_error", "the batch failed: see the server's log"
        if isinstance(error, ConfigurationError):
            # The client knows the files by their ids, and not by their paths here.
            batch, store = record.object, self.store
            code, words = "invalid_input", str(error).replace(str(store.content(batch.input_file_id)), f"the file {batch.input_file_id}")
            words = words.replace(str(store.journal(batch.id)), f"the journal of {batch.id}")
        elif isinstance(error, HTTPFailure):
            code, words = error.code, str(error)
        elif isinstance(error, OSError):
            code, words = "storage_error", f"the server could not store the answers: {error.strerror}"
        record.object.errors = BatchErrors(data=[BatchError(code=code, message=words)])
        try:
            if self.store.journal(record.object.id).exists():
                # The answers so far remain.
                await self._divided(record)
            await self._enter(record, "failed")
            await anyio.to_thread.run_sync(self.store.forget, record)
        except Exception:
            record.object.status = "failed"
            # The journal stays, and the next start tries the batch again.
            logger.exception("the end of %s could not be stored", record.object.id)

    async def _until_ended(self, record: BatchRecord) -> None:
        """Bring a batch to its end. While there is no descriptor for a file, it waits and continues, as after a kill."""
        waits = False
        while True:
            try:
                return await self._journalled(record)
            except OSError as error:
                if error.errno not in NO_DESCRIPTOR:
                    raise
                if not waits:
                    logger.warning("the batch %s waits until it can open its files: %s (see ulimit -n)", record.object.id, error.strerror)
                waits = True
            await anyio.sleep(RETRY_SECONDS)

    async def _journalled(self, record: BatchRecord) -> None:
        batch, store = record.object, self.store
        opened = partial(Journal, store.journal(batch.id), resume=True, grow=partial(store.grow, record))
        journal = await anyio.to_thread.run_sync(opened)
        try:
            checked = await anyio.to_thread.run_sync(check, store.content(batch.input_file_id), journal.done, MAX_LINES)
            self._journals[batch.id] = checked.total, journal
            end = await self._answer(record, checked, journal)
            if end != "completed":
                await self._answer_rest(checked, journal, end)
        finally:
            self.shown(record)
            self._journals.pop(batch.id, None)
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(journal.close)
        await self._enter(record, "finalizing")
        await self._divided(record)
        await self._enter(record, end)
        await anyio.to_thread.run_sync(store.forget, record)

    async def _answer(self, record: BatchRecord, checked: Checked, journal: Journal) -> Status:
        """Answer the lines; return the status that the batch ends with."""
        batch = record.object
        if batch.status == "validating":
            await self._enter(record, "in_progress")
        if batch.status == "in_progress":
            with self._open(record):
                lines = remaining(checked, journal.done)
                await self._runner.run(lines, [batch.endpoint], Caller(tenant=record.tenant), journal.append)
        if batch.cancelling_at is not None:
            return "cancelled"
        if len(journal.done) < checked.total and batch.expired_at is None:
            batch.expired_at = int(self._now())
            await self._save(record)
        return "completed" if batch.expired_at is None else "expired"

    async def _answer_rest(self, checked: Checked, journal: Journal, end: Status) -> None:
        """Let each line that is not done have an error."""
        async for number, text in remaining(checked, journal.done):
            await journal.append(unanswered(number, name_of(text), f"batch_{end}", WORDS[end]))

    async def _divided(self, record: BatchRecord) -> None:
        """Divide the journal into the files of answers and of errors."""
        written = await anyio.to_thread.run_sync(self._divide, record)
        record.object.output_file_id, record.object.error_file_id = written

    def _divide(self, record: BatchRecord) -> tuple[str | None, str | None]:
        store, batch = self.store, record.object
        # The same ids after a kill, so that the files replace what it has left.
        ids = [f"file-{blake2b(f'{batch.id} {kind}'.encode(), digest_size=16).hexdigest()}" for kind in ("output", "error")]
        sizes = [0, 0]
        parts = [store.content(one).with_suffix(".part").open("wb") for one in ids]
        with parts[0], parts[1], store.journal(batch.id).open("rb") as journal:
            for text in journal:
                try:
                    which = 0 if read_result(text).succeeded else 1
                except (msgspec.DecodeError, RecursionError):
                    # A disk that is full may have torn the last line.
                    continue
                sizes[which] += parts[which].write(text)
            for part in parts:
                part.flush()
                os.fsync(part.fileno())
        found: list[Any] = []
        for one, size, kind in zip(ids, sizes, ("output", "error"), strict=True):
            store.delete(one)
            if size:
                # The journal has counted these bytes, and goes away.
                store.release(-size, record.tenant)
                store.keep(one, size, f"{batch.id}_{kind}.jsonl", "batch_output", record.tenant)
            else:
                store.drop(one, 0, record.tenant)
            found.append(one if size else None)
        return found[0], found[1]
