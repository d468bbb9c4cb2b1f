"""Restarts several engines one after another, so that the others serve meanwhile."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import anyio

from llmserve.lifecycle.supervisor import Supervisor

# Seconds between two looks for the end of an engine's requests, or for another engine.
LOOK_SECONDS = 0.05


class Restartable(Protocol):
    """One of several engines: whether it accepts requests, and what restarts it, if this process does."""

    @property
    def up(self) -> bool: ...

    @property
    def supervisor(self) -> Supervisor | None: ...


Engine = TypeVar("Engine", bound=Restartable)


async def restart_in_turn(
    engines: Sequence[Engine], leave: Callable[[Engine], None], busy: Callable[[Engine], int], patience: float
) -> None:
    """Restart one engine after another; each first gets `patience` seconds to end its requests.

    An engine goes on while it is the only one that is up and another one is being restarted.

    Args:
        engines: All engines. Those without a supervisor are left alone.
        leave: Called with an engine that must get no more requests.
        busy: Returns the number of an engine's requests.
        patience: Seconds.
    """
    for engine in engines:
        supervisor = engine.supervisor
        if supervisor is None:
            continue
        while engine.up and _is_alone(engine, engines):  # noqa: ASYNC110 - a wait of seconds, as below
            await anyio.sleep(LOOK_SECONDS)
        if not engine.up:
            continue
        leave(engine)
        restarts = supervisor.restarts
        with anyio.move_on_after(patience):
            while busy(engine) and supervisor.restarts == restarts:  # noqa: ASYNC110 - no event tells when a request leaves its engine
                await anyio.sleep(LOOK_SECONDS)
        # It may have died in that time, and be new already.
        if supervisor.restarts == restarts:
            await supervisor.restart()


def _is_alone(engine: Restartable, engines: Sequence[Restartable]) -> bool:
    """Whether no other engine is up, and one will be."""
    others = [other for other in engines if other is not engine and other.supervisor is not None and not other.supervisor.over]
    return bool(others) and not any(other.up for other in others)
