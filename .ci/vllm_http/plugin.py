"""Replaces vLLM's `tests/conftest.py`, which imports models and media (see `run.py`)."""

from types import SimpleNamespace

import pytest
import transformers
import vllm.model_executor.model_loader.weight_utils
import vllm.tokenizers
import vllm.transformers_utils.repo_utils
from tests.utils import Host
from vllm.config import ModelConfig

from llmserve.models import resolve

_get_tokenizer = vllm.tokenizers.get_tokenizer
# The tests ask for their model's tokenizer, but the server has the bundled one.
vllm.tokenizers.get_tokenizer = lambda *_, **__: _get_tokenizer(resolve("bundled"))
_from_pretrained = transformers.AutoTokenizer.from_pretrained
transformers.AutoTokenizer.from_pretrained = lambda *_, **arguments: _from_pretrained(resolve("bundled"), **arguments)
# The host provides the adapters.
vllm.transformers_utils.repo_utils.hf_api = lambda: SimpleNamespace(snapshot_download=lambda **_: "/nowhere")
# Use the bundled model, because other models would have to be downloaded.
vllm.model_executor.model_loader.weight_utils.download_weights_from_hf = lambda *_, **__: resolve("bundled")


class LocalAssetServer:
    """Serves images, which no test of text asks for."""


@pytest.fixture
def local_asset_server() -> LocalAssetServer:
    return LocalAssetServer()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the tests of functions and classes, which call no server."""
    items[:] = [item for item in items if _calls(item)]
    for module in {item.module for item in items}:
        if hasattr(module, "get_vocab_size"):
            # The function asks the model's own configuration.
            module.ModelConfig = lambda model, **arguments: ModelConfig(model=resolve("bundled"), **arguments)


def _calls(item: pytest.Item) -> bool:
    fixtures = getattr(item, "fixturenames", ())
    source = getattr(item, "function", None)
    names = source.__code__.co_names if hasattr(source, "__code__") else ()
    return any("server" in name or name.endswith("client") for name in fixtures) or "RemoteOpenAIServer" in names


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the engine here, where no test's time runs."""
    if session.items:
        Host.open("first")


def pytest_sessionfinish() -> None:
    Host.close()
