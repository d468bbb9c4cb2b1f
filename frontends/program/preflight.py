"""The checks before a server listens: its model, and the folders that it writes to.

The module imports neither vLLM nor torch, so the checks take a second, and up to 20 s where a model
hub does not answer.
"""

import argparse
import os
import tempfile
from collections.abc import MutableMapping

from frontends.program.options import engine_args
from llmserve import ConfigurationError
from llmserve.engines import ENGINES
from llmserve.observability.prometheus import MULTIPROCESS

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


def check_start(options: argparse.Namespace) -> None:
    """Run the checks. Raises ConfigurationError, which names the option or the variable."""
    for name in (MULTIPROCESS, OLD_MULTIPROCESS):
        if folder := os.environ.get(name):
            _check_folder(f"{name}={folder}", folder, "; correct it or unset it")
    spec = ENGINES[options.engine]
    if spec.has_files:
        # For sockets and, with several workers, the files of prometheus_client.
        _check_folder("the folder for temporary files", None, "; set TMPDIR to a writable folder")
    spec.check_start(options.model, engine_args(options))


def _check_folder(what: str, folder: str | None, remedy: str) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(METRICS_BYTES))
    except OSError as error:
        raise ConfigurationError(f"{what} cannot be written: {error.strerror}{remedy}") from None
