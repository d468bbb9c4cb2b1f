"""Asks once whether a hub has a model, before vLLM is imported.

vLLM asks several times, which takes a minute if no hub can be reached.
"""

import os
import time
from pathlib import Path

from llmserve.errors import ConfigurationError

# Timeout of one request, and pause between requests: a network that comes up with the server may
# take a moment.
TIMEOUT_SECONDS = 5.0
ATTEMPTS = 3
PAUSE_SECONDS = 1.0


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
