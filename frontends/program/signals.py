"""The reaction of a server program to signals."""

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc

from frontends.logs.operator_log import say
from frontends.logs.standard_streams import write_rest
from frontends.program.hangup import reload_or_end


def end_now(number: int) -> None:
    """Die of a signal.

    The process guard then ends the engine's processes and removes what they leave
    (`llmserve/engines/processes/guard.py`).
    """
    say("ended     by a further signal")
    write_rest(os.getpid())
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _first(error: BaseException) -> BaseException:
    """Return the exception that ended a task group, or several nested task groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@asynccontextmanager
async def signals(
    react: Callable[[], bool], reload: Callable[[], Awaitable[None]], restart: Callable[[], Coroutine[Any, Any, None]]
) -> AsyncIterator[None]:
    """Call `react` at each SIGTERM and SIGINT, while this context is entered.

    When `react` returns False, the program dies of the signal: an earlier signal has already asked
    it to end at once. A SIGHUP rereads the followed files and then awaits `reload`; where the
    program's terminal is gone, a SIGHUP acts as SIGTERM. A SIGUSR1 runs `restart` beside that.
    """

    async def watch(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1) as received:
            task_status.started()
            async for number in received:
                if number == signal.SIGUSR1:
                    tasks.start_soon(restart)
                elif number == signal.SIGHUP and not await reload_or_end():
                    await reload()
                elif not react():
                    end_now(number)

    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(watch)
            yield
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _first(group) from None


class Stopping:
    """The reaction of a server to signals.

    The first signal calls `give_up` while `served` is False, and else `stop(now=False)`. The second
    signal calls `stop(now=True)`. A third signal, or a second one after `give_up`, ends the
    program.
    """

    def __init__(self, served: Callable[[], bool], give_up: Callable[[], None], stop: Callable[[bool], None]) -> None:
        self._served = served
        self._give_up = give_up
        self._stop = stop
        self._begun = self._ended = False

    def react(self) -> bool:
        """React to a signal; return False if the program must die of it."""
        if self._ended:
            return False
        if self._begun or self._served():
            self._stop(self._begun)
            self._ended = self._begun
        else:
            say("stopping  startup is cancelled")
            self._give_up()
            self._ended = True
        self._begun = True
        return True
