"""What a server checks before it listens: its model, and the folders that it writes to. Imports neither vLLM nor torch, so the checks take
a second, and up to 20 where a hub does not answer."""

import argparse
import os
import tempfile
from collections.abc import MutableMapping

from frontends.program.options import engine_args
from llmserve import ConfigurationError
from llmserve.engines import ENGINES
from llmserve.observability.prometheus import MULTIPROCESS

# prometheus_client's older name of it, which it still reads.
OLD_MULTIPROCESS = MULTIPROCESS.lower()
# The files of prometheus_client are mapped into memory: a process is killed by SIGBUS when the disk has no room for what it counts. Each
# process has up to six, which begin with 64 KiB and double.
METRICS_BYTES = 4 * 2**20


def drop_empty_variables(environ: MutableMapping[str, str]) -> None:
    """Take an empty name of a folder for none: prometheus_client would take it for the working directory, and fail at each scrape. To be
    called before prometheus_client is imported."""
    for name in (MULTIPROCESS, OLD_MULTIPROCESS):
        if environ.get(name) == "":
            del environ[name]


def check_start(options: argparse.Namespace) -> None:
    """Raises ConfigurationError, which names the option or the variable."""
    for name in (MULTIPROCESS, OLD_MULTIPROCESS):
        if folder := os.environ.get(name):
            _check_folder(f"{name}={folder}", folder, "; correct it or unset it")
    spec = ENGINES[options.engine]
    if spec.has_files:
        # Sockets, and with several workers what prometheus_client counts.
        _check_folder("the folder for temporary files", None, "; set TMPDIR to a folder that can be written")
    spec.check_start(options.model, engine_args(options))


def _check_folder(what: str, folder: str | None, remedy: str) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(METRICS_BYTES))
    except OSError as error:
        raise ConfigurationError(f"{what} cannot be written: {error.strerror}{remedy}") from None
