"""Loads and unloads adapters on every engine of a manager while it runs."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress

import anyio

from llmserve.engine import LoadsAdapters
from llmserve.errors import ConfigurationError, EngineDead
from llmserve.lifecycle.engine_pool import EnginePool, PooledEngine


class AdapterLoading(ABC):
    """A subclass has the engines."""

    _pool: EnginePool

    async def load_adapter(self, name: str, path: str) -> None:
        """Load a LoRA adapter; return when requests can name it, also after an engine's restart.

        The call waits for an engine that is up. If one engine cannot load the adapter, none keeps
        it. `path` is a folder in PEFT's format, or a hub name that vLLM looks up. Never take it from
        a client, who would choose which files the engine reads.

        Raises:
            ConfigurationError: The name is in use, the files cannot be loaded, or the engine has no
                room for adapters (docs/adapters.md).
            Unavailable, EngineDead: The manager does not serve.
        """
        if not all(isinstance(value, str) and value for value in (name, path)):
            raise ConfigurationError(f"an adapter has a name and a path, not {name!r} and {path!r}")
        self._refuse_unless_ready()
        first = await self._pool.wait()
        async with self._pool.changing_adapters:
            if name in self._known_adapters():
                raise ConfigurationError(f"there is an adapter {name!r}; unload it first")
            # A manager reads the names from its first engine, so that one gets it last. An engine
            # that is up tells whether the files are good.
            done: list[LoadsAdapters] = []
            try:
                for engine in _loading([first, *(member for member in reversed(self._pool.members) if member is not first)]):
                    await engine.load_adapter(name, path)
                    done.append(engine)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await _unload(done, name)
                raise

    async def unload_adapter(self, name: str) -> None:
        """Unload an adapter. Its open requests end as they would; new ones get ModelNotFound.

        An open request that has not started gets ModelNotFound too. The name is then free for other
        files. Raises ConfigurationError if there is no such adapter, and what `load_adapter` raises.
        """
        self._refuse_unless_ready()
        async with self._pool.changing_adapters:
            if name not in self._known_adapters():
                raise ConfigurationError(f"there is no adapter {name!r}")
            await _unload(_loading(self._pool.members), name)

    def _known_adapters(self) -> set[str]:
        """Return the names that any engine has: one may have given an adapter up at a restart."""
        known = set(self._pool.info.adapters)
        for member in self._pool.members:
            # An engine that was never up has none.
            with suppress(RuntimeError):
                known.update(member.engine.info.adapters)
        return known

    @abstractmethod
    def _refuse_unless_ready(self) -> None:
        """Raise Unavailable or EngineDead unless the manager serves."""


def _loading(members: Sequence[PooledEngine]) -> list[LoadsAdapters]:
    found: list[LoadsAdapters] = [member.engine for member in members if isinstance(member.engine, LoadsAdapters)]
    if len(found) < len(members):
        raise ConfigurationError("the engine has no adapters that can be loaded while it runs")
    return found


async def _unload(engines: Sequence[LoadsAdapters], name: str) -> None:
    for engine in engines:
        # An engine that is down has forgotten the adapter already.
        with suppress(EngineDead):
            await engine.unload_adapter(name)
