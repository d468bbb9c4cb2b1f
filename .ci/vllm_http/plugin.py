"""Replaces vLLM's `tests/conftest.py`, which imports models and media (see `run.py`)."""

import os
import pathlib
import sys
import tempfile
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import pytest
import torch
import transformers
import vllm.model_executor.model_loader.weight_utils
import vllm.tokenizers
import vllm.transformers_utils.repo_utils
from tests.utils import VECTORS, Host
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


class HfRunner:
    """The library's vectors and scores of the models that the host serves in place of a test's."""

    def __init__(self, _: str, *, is_cross_encoder: bool = False, **__: Any) -> None:
        folder = resolve("bundled-embedding")
        # The function above would return the bundled chat model's.
        self._tokenizer = _from_pretrained(folder)
        if is_cross_encoder:
            sys.path.append(str(pathlib.Path(os.environ["LLMSERVE_TESTS_HOST"]).parents[2] / "tests"))
            from vllm_classifier_files import write_classifier

            folder = str(write_classifier(pathlib.Path(tempfile.mkdtemp()), ("LABEL_0",)))
        kind = transformers.AutoModelForSequenceClassification if is_cross_encoder else transformers.AutoModel
        self._model = kind.from_pretrained(folder).eval()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    @torch.inference_mode()
    def encode(self, texts: list[str]) -> Any:
        found = [self._model(**self._tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0) for text in texts]
        return torch.nn.functional.normalize(torch.stack(found), dim=-1)

    @torch.inference_mode()
    def predict(self, pairs: list[list[str]]) -> Any:
        return torch.stack([self._model(**self._tokenizer(*pair, return_tensors="pt")).logits[0, 0].sigmoid() for pair in pairs])


@pytest.fixture(scope="session")
def hf_runner() -> type[HfRunner]:
    return HfRunner


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
        Host.open("first", kind=VECTORS.get(getattr(session.items[0].module, "MODEL_NAME", ""), "chat"))


def pytest_sessionfinish() -> None:
    Host.close()
