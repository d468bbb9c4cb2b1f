"""Checks a model's files, in a folder or on a hub, before vLLM is imported.

The check of a folder takes milliseconds: it finds files that are missing, truncated or not JSON,
reads no weights and imports nothing heavy. An engine would report such a file after half a minute,
from another process, and mostly without its name.

A hub is asked once. vLLM asks several times, which takes a minute if no hub can be reached.
"""

import json
import os
import struct
import time
from pathlib import Path
from typing import Any

from llmserve.errors import ConfigurationError

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
# Files that an engine parses at its start if they exist.
PARSED = (CONFIG, INDEX, "generation_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
# Maximum size of a header in bytes, as in safetensors' `MAX_HEADER_SIZE`.
MAX_HEADER = 100_000_000
# The beginning of the file that git leaves in place of a large file that it has not fetched.
LFS_POINTER = b"version https://git-lfs"
# Timeout of one request, and pause between requests: a network that comes up with the server may
# take a moment.
TIMEOUT_SECONDS = 5.0
ATTEMPTS = 3
PAUSE_SECONDS = 1.0


def check_folder(folder: Path, *, weights: bool = True) -> None:
    """Raise ConfigurationError, which names the file and what to do.

    `weights` says whether the engine reads weights from this folder.
    """
    if not (folder / CONFIG).is_file():
        raise ConfigurationError(f"the model folder {folder} has no {CONFIG}")
    found = {name: _parsed(folder / name) for name in PARSED if (folder / name).exists()}
    if not weights:
        return
    if INDEX in found:
        files = _indexed(folder / INDEX, found[INDEX])
    else:
        files = sorted(folder.glob("*.safetensors"))
        if not any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
            raise ConfigurationError(f"the model folder {folder} has no weights ({', '.join(WEIGHTS)}): copy or download them into it")
    for file in files:
        _check_safetensors(file)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"the model's file {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"the model's file {path} is not JSON ({error}): copy or download it again") from None
    if not isinstance(found, dict):
        raise ConfigurationError(f"the model's file {path} must hold a JSON object")
    return found


def _indexed(path: Path, index: dict[str, Any]) -> list[Path]:
    """Return the files that hold the weights, if there are several."""
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ConfigurationError(f"the model's file {path} has no weight_map: copy or download it again")
    # A name may be a path below the folder.
    names = sorted(set(shards.values()))
    files = [path.parent / name for name in names]
    missing = [name for name, file in zip(names, files, strict=True) if not file.is_file()]
    if missing:
        named = f"{missing[0]} and {len(missing) - 1} more" if len(missing) > 1 else missing[0]
        raise ConfigurationError(f"the model folder {path.parent} lacks {named} of the {len(files)} files that {path.name} lists")
    return files


def _check_safetensors(path: Path) -> None:
    """Check that the file ends where its last tensor ends.

    Its first eight bytes give the length of a JSON header, which contains the end of each tensor.
    """
    damaged = f"the weights {path} are damaged"
    try:
        with path.open("rb") as file:
            begin = file.read(len(LFS_POINTER))
            if begin == LFS_POINTER:
                raise ConfigurationError(f"the weights {path} are a pointer of Git LFS: run `git lfs pull` in that folder")
            size = path.stat().st_size
            length = struct.unpack_from("<Q", begin)[0] if len(begin) >= struct.calcsize("<Q") else size
            if length > min(size, MAX_HEADER):
                longer = f"the file, which has {size:,} bytes" if length > size else f"the {MAX_HEADER:,} bytes that the format allows"
                raise ConfigurationError(f"{damaged}: their header is longer than {longer}; copy or download it again")
            file.seek(struct.calcsize("<Q"))
            header = json.loads(file.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        wanted = struct.calcsize("<Q") + length + max(ends, default=0)
    except OSError as error:
        raise ConfigurationError(f"the weights {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, AttributeError, LookupError, TypeError):
        raise ConfigurationError(f"{damaged}: their header is not that of a safetensors file; copy or download it again") from None
    if size != wanted:
        raise ConfigurationError(f"{damaged}: the file has {size:,} bytes and should have {wanted:,}; copy or download it again")


def check_hub(name: str, revision: str | None = None, *, token: str | bool | None = None) -> None:
    """Raise ConfigurationError if the model is neither in the hub's cache nor on the hub."""
    try:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError
    except ImportError:
        return
    # vLLM handles addresses of other stores, files of a repository, and another hub.
    if ":" in name or os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in ("1", "true"):
        return
    if any(Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots").glob("*")):
        return
    for left in reversed(range(ATTEMPTS)):
        try:
            HfApi().model_info(name, revision=revision, token=token, timeout=TIMEOUT_SECONDS)
        except RepositoryNotFoundError:
            # The hub gives the same answer for a private model of others.
            found = f"{constants.ENDPOINT} has no such model, or it is private and HF_TOKEN gives no access to it"
            raise ConfigurationError(f"{name} is not a model folder, and {found}") from None
        except RevisionNotFoundError:
            raise ConfigurationError(f"the model {name} has no revision {revision!r} on {constants.ENDPOINT}") from None
        except HfHubHTTPError:
            # A mirror may lack this route. vLLM only asks for files.
            return
        except Exception as error:
            if left and not isinstance(error, (OfflineModeIsEnabled, ValueError)):
                time.sleep(PAUSE_SECONDS)
                continue
            words = f"{name} is not a model folder, is not in {constants.HF_HUB_CACHE}, and cannot be looked up on {constants.ENDPOINT}"
            raise ConfigurationError(f"{words}: {' '.join(str(error).split())}") from error
        return
