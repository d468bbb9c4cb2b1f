"""Checks for failures of a start before vLLM is imported, which takes ten seconds.

vLLM's own errors for these failures come from other processes, after up to a minute, and name
neither the program nor the file. This module imports nothing of vLLM.
"""

import multiprocessing
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from multiprocessing import spawn
from pathlib import Path
from typing import Any

from llmserve.engines.vllm.model_files import check_folder, check_hub
from llmserve.engines.vllm.start_errors import report
from llmserve.errors import ConfigurationError
from llmserve.models import BUNDLED, check_bundled, resolve

# vLLM's variable for the way in which it starts its processes. llmserve sets "spawn" unless the
# host has set it.
START_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
# Values of `load_format` with which vLLM reads complete weights from the model's folder.
FROM_FOLDER = (None, "auto", "hf", "safetensors", "pt")
# vLLM's own executors. Another executor, like another worker class, may load anything.
EXECUTORS = (None, "mp", "uni", "ray", "external_launcher")
# Arguments that set another source of the weights or the config, or another worker.
OTHER_SOURCES = {"model_weights", "hf_config_path", "worker_cls"}


def check_host() -> None:
    """Raise ConfigurationError if this process cannot start vLLM's processes.

    Those import its main module.
    """
    process = multiprocessing.current_process()
    if process.daemon:
        raise ConfigurationError(
            f"the engine vllm cannot start in {process.name}, a daemonic process of multiprocessing, which may have no children: "
            "start that process with daemon=False, or use concurrent.futures in place of multiprocessing.Pool"
        )
    for number, name in ((1, "output"), (2, "error")):
        if not _is_inherited(number):
            words = f"standard {name} is closed, and vLLM's processes write to it: open it, for example on {os.devnull}"
            raise ConfigurationError(f"the engine vllm cannot start: {words}")
    if os.environ.get(START_METHOD, "spawn") != "spawn":
        return
    # multiprocessing sets this in a process that imports its parent's main module, only during the
    # import.
    if getattr(process, "_inheriting", False):
        error = ConfigurationError(
            "the program starts the engine vllm again when an engine's process imports the program's main module: "
            'put the start under `if __name__ == "__main__":`'
        )
        # The process that started this one reports the error to the caller.
        report(error)
        raise error
    path = spawn.get_preparation_data("").get("init_main_from_path")
    # In a frozen program, the processes need no main module.
    if path is not None and not getattr(sys, "frozen", False) and not os.path.isfile(path):
        raise ConfigurationError(
            f"the engine vllm cannot start: its processes import the program's main module, and {Path(path).name} is not a file. "
            "Run the program from a file (`python program.py`), or as `python -m` or `python -c`"
        )


def _is_inherited(descriptor: int) -> bool:
    """Whether other processes inherit the descriptor.

    If it was closed, a file or socket of this process may have its number; those are not inherited.
    """
    try:
        return os.get_inheritable(descriptor)
    except OSError:
        return False


def check_model(model: str, engine_args: Mapping[str, Any]) -> None:
    """Raise ConfigurationError if the model is missing or incomplete, or vLLM is not installed.

    Asks a hub for a model that is neither a folder nor in the hub's cache.
    """
    if model == BUNDLED:
        _require_vllm()
        check_bundled()
        return
    folder, plain = Path(resolve(model)), _loads_as_usual(engine_args)
    if folder.is_dir():
        check_folder(folder, weights=plain)
    elif plain:
        check_hub(model, engine_args.get("revision"), token=engine_args.get("hf_token"))
    _require_vllm()


def _loads_as_usual(engine_args: Mapping[str, Any]) -> bool:
    known = engine_args.get("load_format") in FROM_FOLDER and engine_args.get("distributed_executor_backend") in EXECUTORS
    return known and not OTHER_SOURCES & engine_args.keys()


def _require_vllm() -> None:
    if find_spec("vllm") is None:
        raise ConfigurationError("the engine vllm is not installed; install llmserve[cuda] or llmserve[cpu]")
