"""The life of a server program: listen, load the engine, serve, drain on SIGTERM.

It is independent of the wire protocol.
"""

import argparse
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from importlib.util import find_spec
from typing import Any, NoReturn, TypeVar

import anyio

from frontends.access.control import Access
from frontends.logs.operator_log import configure, is_json, say
from frontends.logs.standard_streams import relay_standard_streams, terminal_columns, write_rest
from frontends.net.connection_limits import raise_descriptor_limit
from frontends.net.listeners import CannotListen
from frontends.options.command_line import read
from frontends.options.definitions import make
from frontends.options.sources import layers, merged
from frontends.program import spare_gpu
from frontends.program.console import loading
from frontends.program.hangup import expect_hangups
from frontends.program.preflight import check_start, prepare_environment, unpack
from frontends.program.progress import announce, describe_engine, say_changes, say_leaving, say_ready
from frontends.program.reload import LiveSettings
from frontends.program.service import Service, open_service, reconfigure
from frontends.program.settings import ProgramSettings
from frontends.program.signals import Stopping, signals
from llmserve import ConfigurationError, EngineError, EngineManager, State
from llmserve.observability.nvml import utilizations
from llmserve.runtime.heap import set_heap_aside
from llmserve.runtime.starting import left_alone

WATCH_SECONDS = 0.2
# vLLM installs uvloop. Without uvloop a server is only slower.
BACKEND = {"use_uvloop": find_spec("uvloop") is not None}
# A context in which a server listens for a service; yields the addresses to log.
Listen = Callable[[Service], AbstractAsyncContextManager[list[str]]]
Settings = TypeVar("Settings", bound=ProgramSettings)


def run(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    kind: type[Settings],
    serve: Callable[[LiveSettings[Settings]], Coroutine[Any, Any, int]],
) -> NoReturn:
    """Parse the command line, serve until a signal, and exit.

    The exit code is 0 after a signal, 1 if the engine died, and 2 for an invalid argument.

    Args:
        parser: a parser, to which this adds the options.
        argv: the arguments; None for those of this program.
        kind: the class of the settings.
        serve: serves with the settings, and returns the exit code.
    """
    live = read_settings(parser, argv, kind)
    settings = live.current
    relay_standard_streams(say)
    configure(settings.log, verbose=settings.engine.verbose, terminal=terminal_columns() is not None)
    expect_hangups()
    raise_descriptor_limit()
    prepare_environment(settings)
    set_heap_aside()
    try:
        check_start(settings)
        leave(anyio.run(serve, live, backend_options=BACKEND))
    except ConfigurationError as error:
        leave(2, f"{parser.prog}: error: {error}")
    except EngineError as error:
        leave(1, f"{parser.prog}: error: {error}")
    except CannotListen as error:
        leave(2, f"{parser.prog}: error: cannot listen on {error}")
    except KeyboardInterrupt:
        # Ctrl-C during the checks, which may wait for a model hub. Later the server handles
        # signals.
        leave(0)


def read_settings(parser: argparse.ArgumentParser, argv: Sequence[str] | None, kind: type[Settings]) -> LiveSettings[Settings]:
    """Return the settings of a file, the environment and the command line; exit with 2 if one is invalid."""
    # A copy of the environment, to which the program adds variables.
    arguments, environ = read(parser, kind, argv), dict(os.environ)

    def read_again() -> Settings:
        return make(kind, merged(layers(kind, arguments, environ)))

    try:
        return LiveSettings(read_again(), read_again)
    except ConfigurationError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


def leave(code: int, words: str = "") -> NoReturn:
    """Exit, even while the thread of an abandoned start still imports vLLM.

    The interpreter's normal shutdown would wait for that thread or crash in it.
    """
    if words:
        if is_json():
            say(f"error {words}")
        else:
            sys.stderr.write(f"{words}\n")
    if left_alone():
        write_rest(os.getpid())
        os._exit(code)
    sys.exit(code)


async def serve(live: LiveSettings[Settings], access: Access, listen: Listen, leaving: Callable[[], None] = lambda: None) -> int:
    """Serve from this process until SIGTERM, SIGINT or the engine's death; return the exit code.

    `access` follows its files until then. `leaving` is called at the signal, before
    `--drain-delay`.
    """
    code, settings = 0, live.current
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(open_service(settings, access))
        manager = service.manager
        begun, hurry, everything = anyio.Event(), anyio.Event(), anyio.CancelScope()

        def stop(now: bool) -> None:  # noqa: FBT001 - as `Stopping` calls it
            if now:
                manager.cancel_all("the server is stopping")
                hurry.set()
            leaving()
            begun.set()

        stopping = Stopping(lambda: manager.state not in (State.NEW, State.STARTING), everything.cancel, stop)
        await stack.enter_async_context(
            signals(stopping.react, partial(live.reload, access, partial(reconfigure, service)), manager.restart_engines)
        )
        addresses = await stack.enter_async_context(listen(service))
        announce(addresses, settings.engine)
        with everything:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(access.follow, manager.set_tenants)
                if utilizations():
                    tasks.start_soon(spare_gpu.watch, len(manager.engines), lambda: manager.statistics().running)
                code = await _load_and_wait(manager, live, begun, hurry)
                tasks.cancel_scope.cancel()
    say("stopped")
    return code


async def _load_and_wait(manager: EngineManager, live: LiveSettings[Settings], stop: anyio.Event, hurry: anyio.Event) -> int:
    engine = live.current.engine
    await unpack(engine)
    async with AsyncExitStack() as stack:
        with loading(f"{engine.kind} {engine.model}"):
            await stack.enter_async_context(manager)
        say(f"engine    {describe_engine(manager.info)}")
        admission = manager.statistics().admission
        assert admission is not None
        say_ready(admission)
        before = manager.statistics()
        while not stop.is_set():
            now = manager.statistics()
            say_changes(before, now)
            before, state = now, now.state
            if state is State.FAILED:
                return 1
            with anyio.move_on_after(WATCH_SECONDS):
                await stop.wait()
        limits = live.current.limits
        if limits.drain_delay:
            say_leaving(limits.drain_delay)
            with anyio.move_on_after(limits.drain_delay):
                await hurry.wait()
        # Leaving the manager drains it, while the listener still answers with 503 and Retry-After.
        say(f"draining  {manager.statistics().open} open requests, at most {limits.drain_timeout:g} s; a second signal cancels them")
    return 0
