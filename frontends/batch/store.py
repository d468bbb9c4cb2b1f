"""A folder with files and batches: a record of each, the files' contents and the batches' journals.

One process owns the folder, by a lock that ends with the process. It has all records in memory, some
500 bytes each; the contents stay on the disk. Records are replaced atomically. Ids are generated
here, and only ids that are in memory become names of files.
"""

import fcntl
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from frontends.batch.objects import ENDED, BatchObject, BatchRecord, CreateBatch, FileObject, FileRecord
from frontends.batch.shares import LITTLE, excess
from frontends.openai.errors import HTTPFailure
from llmserve import ConfigurationError

# OpenAI's limit of a file, and of a batch's lines.
MAX_FILE = 200 * 2**20
MAX_LINES = 50_000
# All contents together, and the numbers of records. No batch is created beside MAX_ANSWERS files of answers.
MAX_BYTES = 20 * 2**30
MAX_FILES = 1000
MAX_BATCHES = 1000
MAX_ANSWERS = 2 * MAX_BATCHES
MAX_NAME = 255
WINDOW_SECONDS = 24 * 3600

Record = TypeVar("Record", FileRecord, BatchRecord)


class Store:
    """The files and batches in a folder. Call its methods that use the disk in a thread.

    Args:
        folder: the folder, which is created.
        now: returns seconds since 1970.
    """

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._now = now
        # In the order of their creation.
        self.files: dict[str, FileRecord] = {}
        self.batches: dict[str, BatchRecord] = {}
        # Bytes of contents, including those that are arriving. Threads count them too.
        self.bytes = 0
        self._held: Counter[str | None] = Counter()
        self._guard = threading.Lock()
        # The part of them that is in the journals of batches.
        self._journals: dict[str, int] = {}
        # Held while a batch is created or a file is deleted, so that no batch begins without its file.
        self._changing = threading.Lock()

    def open(self) -> None:
        """Lock and read the folder. Raises ConfigurationError, which names it."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigurationError(f"--batch-folder {self._folder} is used by another process") from None
            self.files = {one.object.id: one for one in self._read("file-*.json", FileRecord)}
            self.batches = {one.object.id: one for one in self._read("batch_*.json", BatchRecord)}
        except OSError as error:
            raise ConfigurationError(f"--batch-folder {self._folder} cannot be used: {error.strerror}") from None
        self._clean()
        self._journals = {path.stem: path.stat().st_size for path in self._folder.glob("batch_*.jsonl")}
        self.bytes, self._held = 0, Counter()
        for file in self.files.values():
            self.release(-file.object.bytes, file.tenant)
        for batch_id, count in self._journals.items():
            self.release(-count, self.batches[batch_id].tenant)

    def close(self) -> None:
        os.close(self._lock)

    def _clean(self) -> None:
        """Remove what a kill has left: parts, and contents and journals that no record needs."""
        needed = {*self.files, *(one.object.id for one in self.batches.values() if one.object.status not in ENDED)}
        for path in [*self._folder.glob("*.part"), *self._folder.glob("*.jsonl")]:
            if path.suffix == ".part" or path.stem not in needed:
                path.unlink()

    def _read(self, pattern: str, kind: type[Record]) -> list[Record]:
        found = []
        for path in self._folder.glob(pattern):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=kind))
            except msgspec.DecodeError as error:
                raise ConfigurationError(f"--batch-folder: {path} is damaged: {error}") from None
        return sorted(found, key=lambda one: (one.object.created_at, one.object.id))

    def save(self, record: FileRecord | BatchRecord) -> None:
        """Write a record to the disk."""
        path = self._folder / f"{record.object.id}.json"
        part = path.with_suffix(f".{secrets.token_hex(4)}.part")
        try:
            with part.open("wb") as file:
                file.write(msgspec.json.encode(record))
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    # Files

    def content(self, file_id: str) -> Path:
        """Return the path of a file's content."""
        return self._folder / f"{file_id}.jsonl"

    def begin(self, tenant: str | None) -> tuple[str, BinaryIO]:
        """Begin a new file; return its id and where to write its content. Raises HTTPFailure."""
        self._check_files(MAX_FILES, list(self.files.values()), 1, tenant, "files")
        file_id = f"file-{secrets.token_hex(16)}"
        return file_id, self.content(file_id).with_suffix(".part").open("xb")

    def _check_files(self, most: int, files: list[FileRecord], more: int, tenant: str | None, what: str) -> None:
        """Raise HTTPFailure if there is no room for `more` files of a tenant beside these."""
        mine = sum(one.tenant == tenant for one in files)
        if words := excess(most, len(files) + more, mine + more, tenant, what):
            raise HTTPFailure(400, f"this server keeps {words}: delete some", "too_many_files")

    def reserve(self, count: int, tenant: str | None) -> None:
        """Count bytes of a tenant's content that is arriving. Raises HTTPFailure if there is no room for them."""
        with self._guard:
            if words := excess(MAX_BYTES, self.bytes + count, self._held[tenant] + count, tenant, "bytes of files"):
                raise HTTPFailure(400, f"this server keeps {words}: delete some", "too_many_files")
            self._add(count, tenant)

    def release(self, count: int, tenant: str | None) -> None:
        """Count bytes of a tenant that are no longer kept."""
        with self._guard:
            self._add(-count, tenant)

    def _add(self, count: int, tenant: str | None) -> None:
        self.bytes += count
        self._held[tenant] += count
        if not self._held[tenant]:
            del self._held[tenant]

    def drop(self, file_id: str, count: int, tenant: str | None) -> None:
        """Remove a content of which `count` bytes of a tenant have arrived."""
        self.release(count, tenant)
        self.content(file_id).with_suffix(".part").unlink(missing_ok=True)

    def keep(self, file_id: str, size: int, name: str, purpose: Any, tenant: str | None) -> FileObject:
        """Keep a content that is complete; its bytes are counted already. After an exception nothing of it stays."""
        # A name in a form may have bytes that are not UTF-8, which aiohttp decodes as surrogates.
        name = name[:MAX_NAME].encode(errors="replace").decode()
        made = FileObject(id=file_id, bytes=size, created_at=int(self._now()), filename=name, purpose=purpose)
        record = FileRecord(tenant=tenant, object=made)
        try:
            self.content(file_id).with_suffix(".part").replace(self.content(file_id))
            self.save(record)
        except BaseException:
            self.content(file_id).unlink(missing_ok=True)
            self.drop(file_id, size, tenant)
            raise
        self.files[file_id] = record
        return made

    def delete(self, file_id: str) -> bool:
        """Remove a file; return False if there is none. Raises HTTPFailure if a batch that has not ended needs it."""
        with self._changing:
            for one in self.batches.values():
                if one.object.input_file_id == file_id and one.object.status not in ENDED:
                    raise HTTPFailure(409, f"the batch {one.object.id} needs the file until it ends: cancel it first", "file_in_use")
            record = self.files.pop(file_id, None)
        if record is None:
            return False
        self.release(record.object.bytes, record.tenant)
        (self._folder / f"{file_id}.json").unlink(missing_ok=True)
        self.content(file_id).unlink(missing_ok=True)
        return True

    # Batches

    def journal(self, batch_id: str) -> Path:
        """Return the path of a batch's journal."""
        return self._folder / f"{batch_id}.jsonl"

    def grow(self, batch: BatchRecord, count: int) -> None:
        """Count bytes that a batch's journal grows by. Raises HTTPFailure if there is no room for them."""
        self.reserve(count, batch.tenant)
        self._journals[batch.object.id] = self._journals.get(batch.object.id, 0) + count

    def forget(self, batch: BatchRecord) -> None:
        """Remove the journal of a batch that has ended."""
        self.journal(batch.object.id).unlink(missing_ok=True)
        self.release(self._journals.pop(batch.object.id, 0), batch.tenant)

    def create(self, wanted: CreateBatch, tenant: str | None) -> BatchRecord:
        """Create a batch; the oldest ended one, if possible of its tenant, makes room for it. Raises HTTPFailure."""
        with self._changing:
            if wanted.input_file_id not in self.files:
                raise HTTPFailure(404, f"there is no file {wanted.input_file_id!r} (input_file_id)", "not_found")
            # A batch needs no room among the files until it ends, so without this check they would have no bound.
            answers = [one for one in list(self.files.values()) if one.object.purpose == "batch_output"]
            self._check_files(MAX_ANSWERS, answers, 1, tenant, "files of answers")
            self._make_room(tenant)
            record = self._new(wanted, tenant)
            self.save(record)
            self.batches[record.object.id] = record
        return record

    def _make_room(self, tenant: str | None) -> None:
        working = [one.tenant for one in self.batches.values() if one.object.status not in ENDED]
        if words := excess(MAX_BATCHES, len(working) + 1, working.count(tenant) + 1, tenant, "batches"):
            raise HTTPFailure(400, f"this server works on {words}: wait for one", "too_many_batches")
        if len(self.batches) < MAX_BATCHES:
            return
        ended = [one for one in self.batches.values() if one.object.status in ENDED]
        held = Counter(one.tenant for one in self.batches.values())
        # The tenant's own is first, so that one tenant does not remove what others have still to read; what tenants
        # with few have is last.
        oldest = min(ended, key=lambda one: (one.tenant != tenant, held[one.tenant] <= MAX_BATCHES // LITTLE)).object.id
        del self.batches[oldest]
        (self._folder / f"{oldest}.json").unlink(missing_ok=True)

    def _new(self, wanted: CreateBatch, tenant: str | None) -> BatchRecord:
        created = int(self._now())
        batch = BatchObject(
            id=f"batch_{secrets.token_hex(16)}",
            endpoint=wanted.endpoint,
            input_file_id=wanted.input_file_id,
            completion_window=wanted.completion_window,
            created_at=created,
            expires_at=created + WINDOW_SECONDS,
            metadata=wanted.metadata,
        )
        return BatchRecord(tenant=tenant, object=batch)


def owned(records: Iterable[Record], tenant: str | None) -> list[Record]:
    """Return a tenant's records, the newest first."""
    # A copy, because threads add records.
    return [one for one in list(records) if one.tenant == tenant][::-1]
