"""The output of a batch, which is also its journal.

Each line is appended whole, by one thread at a time. A process that is killed leaves at most one
torn line at the end, which the next start cuts off; the lines before it are not computed again. The
kernel has a written line even if the process is killed. The file is synchronised with the disk at
most once a second and at the end, so a loss of power costs the answers of about a second, which are
then computed again.

Memory: some 120 bytes for each line that is done.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from frontends.batch.lines import PREFIX, Result, read_result, write_result
from llmserve import ConfigurationError

SYNC_SECONDS = 1.0
# What opening a file raises if the process or the machine has no descriptor left; it is no fault of the file.
NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
# How each line of an output begins.
BEGIN = b'{"id":"' + PREFIX.encode()
CHUNK = 2**20


def digest(custom_id: str | None) -> int:
    """Return a number for a line's name, which is not 0."""
    return int.from_bytes(blake2b((custom_id or "").encode("utf-8", "surrogatepass"), digest_size=8).digest()) | 1


class Done:
    """The numbers of the lines that are done, with digests of their names."""

    def __init__(self) -> None:
        self._digests: dict[int, int] = {}
        self.completed = self.failed = 0

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, number: int) -> bool:
        return number in self._digests

    def add(self, result: Result) -> None:
        self._digests[result.number] = digest(result.custom_id)
        if result.succeeded:
            self.completed += 1
        else:
            self.failed += 1

    def is_other(self, number: int, custom_id: str | None) -> bool:
        """Return whether a line that is done had another name."""
        return self._digests.get(number, digest(custom_id)) != digest(custom_id)


class Journal:
    """An open output file, which no other process can write in the meantime.

    Opening it reads and locks it, and cuts off a torn line; call `open` in a thread. Raises
    ConfigurationError, which names the file, and OSError if there is no descriptor left.

    Args:
        path: the file.
        resume: whether the file may exist; without it an existing file is refused.
        clock: returns monotonic seconds.
        grow: called with the bytes of each line before it is appended; the line is not if it raises.
    """

    def __init__(
        self, path: Path, *, resume: bool, clock: Callable[[], float] = time.monotonic, grow: Callable[[int], None] = lambda _: None
    ) -> None:
        self.path = path
        self._grow = grow
        self.done = Done()
        self._clock = clock
        self._waiting: list[tuple[Result, bytes]] = []
        self._turn = anyio.Lock()
        self._failure: OSError | None = None
        # A file without lines is removed at the end only if this object made it.
        self._is_new = not (resume and path.exists())
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | (os.O_CREAT | os.O_EXCL if self._is_new else 0), 0o600)
        except FileExistsError:
            raise ConfigurationError(f"{path} exists: continue it with --resume, or name another file") from None
        except OSError as error:
            if error.errno in NO_DESCRIPTOR:
                raise
            raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
        try:
            self._lock()
            self._read()
        except BaseException:
            os.close(self._file)
            raise
        self._synced = clock()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigurationError(f"{self.path} is being written by another process") from None

    def _read(self) -> None:
        """Read the lines that are done, and cut off a torn one at the end. Raises ConfigurationError for another file."""
        whole = 0
        with open(os.dup(self._file), "rb", buffering=CHUNK) as file:
            file.seek(0)
            for number, text in enumerate(file, 1):
                is_torn = not text.endswith(b"\n") and (text.startswith(BEGIN) or BEGIN.startswith(text))
                if is_torn:
                    break
                if not text.endswith(b"\n") or not self._take(text):
                    raise ConfigurationError(
                        f"{self.path}, line {number}, is not a line of a batch's output: name the output of this batch"
                    )
                whole += len(text)
        os.ftruncate(self._file, whole)
        self._size = whole

    def _take(self, text: bytes) -> bool:
        """Note a line that is done; return False if it is no line of an output."""
        try:
            result = read_result(text)
            if result.number < 1 or result.number in self.done:
                return False
        except (msgspec.DecodeError, ValueError, RecursionError):
            return False
        self.done.add(result)
        return True

    async def append(self, result: Result) -> None:
        """Append a line; return when the kernel has it. Raises OSError if the disk is full, and what `grow` raises.

        A caller that is cancelled has appended the line too.
        """
        text = write_result(result)
        self._grow(len(text))
        with anyio.CancelScope(shield=True):
            self._waiting.append((result, text))
            async with self._turn:
                if self._waiting and self._failure is None:
                    lines, self._waiting = self._waiting, []
                    await anyio.to_thread.run_sync(self._write, b"".join(text for _, text in lines))
                    if self._failure is None:
                        for one, _ in lines:
                            self.done.add(one)
            # Another caller may have written the line, before a later write failed.
            if self._failure is not None and result.number not in self.done:
                raise self._failure

    def _write(self, data: bytes) -> None:
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(self._file, left) :]
            if self._clock() - self._synced >= SYNC_SECONDS:
                os.fsync(self._file)
                self._synced = self._clock()
        except OSError as error:
            self._failure = error
            os.ftruncate(self._file, self._size)
            return
        self._size += len(data)

    def close(self) -> None:
        """Synchronise the file with the disk, and close it; remove it if it has no line. Call it in a thread."""
        try:
            if self._is_new and not self._size:
                self.path.unlink(missing_ok=True)
            os.fsync(self._file)
        finally:
            os.close(self._file)
