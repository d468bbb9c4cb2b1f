"""The model behind the routes: its manager, its name, its adapters, and how bodies are read."""

from collections.abc import Callable
from typing import TypeVar

import msgspec

from frontends.net.turns import WorkQueue
from frontends.openai.decoding import BodyReader
from frontends.openai.requests import adapter_of
from llmserve import EngineManager

Body = TypeVar("Body", bound=msgspec.Struct)
Made = TypeVar("Made")


class ServedModel:
    """A manager's model under the name that clients use.

    `turns` alternates the work on large bodies with the event loop.
    """

    def __init__(self, manager: EngineManager, name: str) -> None:
        self.manager = manager
        self.name = name
        self.turns = WorkQueue()

    def reader(self, kind: type[Body]) -> BodyReader[Body]:
        return BodyReader(kind, self.turns)

    async def decode(self, body: bytes | msgspec.Raw, reader: BodyReader[Body], make: Callable[[Body], Made]) -> Made:
        """Return what `make` builds from a body; nothing keeps the body. Raises InvalidRequest."""
        context = self.manager.info.max_model_len if self.manager.engine_is_up else None
        return await reader.read(body, make, context)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The engine's adapters; empty before the engine has started and reported them."""
        return self.manager.info.adapters if self.manager.engine_is_up else ()

    def adapter(self, model: str | None) -> str | None:
        """Return the adapter that a request names; None for the model itself. Raises ModelNotFound.

        While the engine is not up, its adapters are unknown: then any other name raises
        Unavailable.
        """
        if model not in (None, self.name) and not self.manager.engine_is_up:
            self.manager.check_health()
        return adapter_of(model, self.name, self.adapters)
