"""Reports why an engine's process failed in its start, through a file that the host reads.

vLLM logs the cause in that process; its error in the host only says that a start failed. The first
of several processes to fail has the cause: a worker's error makes its core fail. Written against
vLLM 0.25.1, 0.32.0 and 0.33.0.
"""

import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from llmserve.engines.processes.shared_memory import keep_progress_bars_private
from llmserve.engines.processes.socket_files import PREFIX, VARIABLE
from llmserve.engines.vllm.scheduling import limited_scheduler
from llmserve.errors import ConfigurationError, EngineDead, LLMServeError

# Maximum number of characters of an error's text.
MAX_CHARACTERS = 1000
# vLLM's functions that this module replaces.
CORE, WORKER = "EngineCoreProc.run_engine_core", "WorkerProc.worker_main"
# A core's message about the error of a worker that was already up.
OF_WORKER = re.compile(r"Worker failed with error '(.*)', please check", re.DOTALL)

# What operators can do, by the text of vLLM's error. The names are those of `engine_args`
# (`--engine-arg NAME=VALUE`).
HINTS = (
    (r"larger than the available KV cache memory", "raise kv_cache_memory_bytes or gpu_memory_utilization, or lower max_model_len"),
    (r"[Nn]o available memory for the cache blocks", "raise kv_cache_memory_bytes or gpu_memory_utilization"),
    (r"less than desired GPU memory utilization", "lower gpu_memory_utilization or end the other processes on the GPU"),
    (
        r"out of memory|[Cc]annot allocate memory|can't allocate memory",
        "lower gpu_memory_utilization, kv_cache_memory_bytes or max_num_seqs",
    ),
    (r"deserializing header|file not fully covered", "copy or download the weights again"),
)
# vLLM's message in the host when a core has ended in its start. The rest of the message names the
# processes, or is empty.
CORE_ENDED = "Engine core initialization failed"


@attrs.frozen
class Failure:
    """An error, possibly of another process, whose class may not exist here.

    `wrong` means that an argument or a file is the cause.
    """

    type: str
    text: str
    wrong: bool

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        # pydantic's ValidationError is a ValueError, but huggingface_hub's is not. A model that
        # cannot be found is an OSError.
        name = type(error).__name__
        wrong = isinstance(error, (ConfigurationError, ValueError, OSError)) or name.endswith(("ValidationError", "SafetensorError"))
        return cls(name, one_line(error)[:MAX_CHARACTERS], wrong)

    def as_error(self, model: str) -> LLMServeError:
        """Return a ConfigurationError if an argument or a file is the cause, else EngineDead."""
        if self.type == ConfigurationError.__name__:
            return ConfigurationError(self.text)
        if self.text.startswith(CORE_ENDED):
            return EngineDead(
                "vLLM could not start: its process ended and reported no error, as when the system kills it for lack of memory or shared "
                "memory (/dev/shm), or when the program's main module cannot be imported; the log above may say more"
            )
        hint = next((hint for words, hint in HINTS if re.search(words, self.text)), None)
        if hint is not None:
            # The hint replaces vLLM's own advice, which names its command line and its
            # documentation.
            found = re.split(r"Try |See |You can ", self.text)[0].strip().removesuffix(".")
            return ConfigurationError(f"vLLM cannot start with model {model!r}: {found}: {hint}")
        if self.wrong:
            return ConfigurationError(f"vLLM cannot start with model {model!r}: {self.text}")
        return EngineDead(f"vLLM could not start: {self.type}: {self.text}")


def one_line(error: BaseException) -> str:
    """Return an error's text on one line.

    pydantic's text has all values and links to its website. Only its argument names and messages
    are kept.
    """
    text, details = str(error), getattr(error, "errors", None)
    if type(error).__name__ == "ValidationError" and callable(details):
        # The first part of a location is the argument. Errors about several arguments have no
        # location.
        text = "; ".join(": ".join([*map(str, one["loc"][:1]), one["msg"].removeprefix("Value error, ")]) for one in details())
    elif quoted := OF_WORKER.search(text):
        text = quoted[1]
    return " ".join(text.split())


def report(error: BaseException, process: int | None = None) -> None:
    """Write why this process fails, for the host of the core `process`, by default this process.

    The first report counts.
    """
    folder = Path(os.environ.get(VARIABLE, ""))
    if folder.name.startswith(PREFIX):
        with suppress(OSError), open(_file(folder, process or os.getpid()), "x") as file:
            json.dump(attrs.astuple(Failure.of(error)), file)


def first_report(folder: Path, processes: Iterable[int]) -> Failure | None:
    """Return the first report of the cores with these ids or of their workers, or None."""
    reports = []
    for process in processes:
        with suppress(OSError, ValueError, TypeError):
            path = _file(folder, process)
            reports.append((path.stat().st_mtime_ns, Failure(*json.loads(path.read_text()))))
    return min(reports, key=lambda found: found[0])[1] if reports else None


def _file(folder: Path, process: int) -> Path:
    return folder / f"failed-{process}"


@contextmanager
def _reporting(core: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        report(error, core)
        raise


# vLLM's original functions. A forked process has those of its parent.
_originals: dict[str, Callable[..., None]] = {}
# Engines may start at the same time, in threads.
_installing = threading.Lock()


def install() -> None:
    """Make the cores that this process starts report why they fail. Idempotent."""
    from vllm.v1.engine.core import EngineCoreProc

    # vLLM takes the function from the class when it starts a process, and has no argument to
    # replace it.
    with _installing:
        if EngineCoreProc.run_engine_core is not run_core:
            _originals[CORE] = EngineCoreProc.run_engine_core
            EngineCoreProc.run_engine_core = staticmethod(run_core)


def run_core(*args: Any, **kwargs: Any) -> None:
    """Run vLLM's own `run_engine_core` in a core's process, and report its error."""
    from vllm.v1.engine.core import EngineCoreProc
    from vllm.v1.executor.multiproc_executor import WorkerProc

    _originals[WORKER] = WorkerProc.worker_main
    WorkerProc.worker_main = staticmethod(run_worker)
    limited_scheduler.install()
    keep_progress_bars_private()
    with _reporting(os.getpid()):
        _originals.get(CORE, EngineCoreProc.run_engine_core)(*args, **kwargs)


def run_worker(*args: Any, **kwargs: Any) -> None:
    """Run vLLM's `worker_main` in a worker's process, and report an error of the constructor.

    vLLM only logs that error.
    """
    from vllm.v1.executor.multiproc_executor import WorkerProc

    make = WorkerProc.__init__

    def make_or_report(self: Any, *args: Any, **kwargs: Any) -> None:
        with _reporting(os.getppid()):
            make(self, *args, **kwargs)

    keep_progress_bars_private()
    WorkerProc.__init__ = make_or_report
    _originals.get(WORKER, WorkerProc.worker_main)(*args, **kwargs)
