"""The folder for the sockets of vLLM's processes, so that they can be removed.

vLLM's processes do not remove their sockets, and each engine leaves seven (vLLM 0.32.0).
"""

import os
import shutil
import tempfile
import threading

VARIABLE = "VLLM_RPC_BASE_PATH"
PREFIX = "llmserve-"
# A socket's path has at most 107 bytes (sockaddr_un). vLLM's own part is a slash and 36 characters.
LONGEST = 107 - 37


class Folder:
    """One folder for all engines of this process, because vLLM reads its path from the environment.

    It is removed after the last engine.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._path = ""
        self._before: str | None = None

    def enter(self) -> str:
        """Return the path. The folder exists until `leave()` has been called as often as this."""
        with self._lock:
            if self._users == 0:
                self._before = os.environ.get(VARIABLE)
                os.environ[VARIABLE] = self._path = _make(self._before)
            self._users += 1
            return self._path

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
            os.environ.pop(VARIABLE)
            if self._before is not None:
                os.environ[VARIABLE] = self._before
            shutil.rmtree(self._path, ignore_errors=True)


def _make(parent: str | None) -> str:
    path = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
    if len(os.fsencode(path)) > LONGEST:
        os.rmdir(path)
        path = tempfile.mkdtemp(prefix=PREFIX, dir="/tmp")
    return path


FOLDER = Folder()
