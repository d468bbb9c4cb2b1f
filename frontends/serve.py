"""Runs the HTTP server as a program: listens at once, loads the engine, serves, drains on SIGTERM."""

import argparse
import os
import signal
import sys
import warnings
from contextlib import AsyncExitStack
from importlib.util import find_spec

import anyio
import anyio.to_thread
from aiohttp import web

from frontends.aiohttp_app import build_app
from frontends.options import add_options, manager_config
from frontends.startup import loading, say
from llmserve import ConfigurationError, EngineError, EngineManager, State
from llmserve.engines.vllm_args import parse_engine_args
from llmserve.models import BUNDLED, is_local, resolve

# aiohttp's own defaults are 128 (ten thousand connections then take 54 s instead of 1.4 s) and 3630 s for AppRunner.
BACKLOG = 4096
KEEPALIVE_SECONDS = 75.0
# After draining there is nothing left to wait for but sockets to close.
CLOSE_SECONDS = 2.0
WATCH_SECONDS = 0.2


def main(argv: list[str] | None = None) -> None:
    """`python -m frontends.aiohttp_app`: exit code 0 after a drain, 1 if the engine died, 2 for a wrong argument."""
    parser = argparse.ArgumentParser(prog="python -m frontends.aiohttp_app", description="Serve a model over HTTP, as OpenAI does.")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=_port, default=8000, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="show the engine's own log")
    add_options(parser)
    options = parser.parse_args(argv)
    _prepare_environment(options)
    try:
        quiet = {"use_tqdm_on_load": False} if options.engine == "vllm" and not options.verbose else {}
        args = quiet | parse_engine_args(options.engine_arg)
        manager = EngineManager.open(options.model, engine=options.engine, engine_args=args, config=manager_config(options))
        # vLLM brings uvloop along; without it the server is slower and otherwise the same.
        sys.exit(anyio.run(serve, manager, options, backend_options={"use_uvloop": find_spec("uvloop") is not None}))
    except ConfigurationError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except EngineError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    except OSError as error:
        parser.exit(2, f"{parser.prog}: error: cannot listen on {options.host}:{options.port}: {error.strerror or error}\n")


async def serve(manager: EngineManager, options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT, or the engine's death; returns the exit code."""
    name = options.served_model_name or options.model
    app = build_app(manager, name)
    runner = web.AppRunner(
        app, handler_cancellation=True, access_log=None, keepalive_timeout=KEEPALIVE_SECONDS, shutdown_timeout=CLOSE_SECONDS
    )
    await runner.setup()
    code = 0
    try:
        await web.TCPSite(runner, options.host, options.port, backlog=BACKLOG).start()
        say(f"listening http://{options.host}:{runner.addresses[0][1]}  (/health/ready says 503 until the model is loaded)")
        say(f"model     {options.model}, served as {name!r}")
        async with anyio.create_task_group() as tasks:
            stop = anyio.Event()
            tasks.start_soon(_watch_signals, manager, stop, tasks.cancel_scope)
            code = await _load_and_wait(manager, options, stop)
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    finally:
        with anyio.CancelScope(shield=True):
            await runner.cleanup()
    say("stopped")
    return code


async def _load_and_wait(manager: EngineManager, options: argparse.Namespace, stop: anyio.Event) -> int:
    if options.engine == "vllm" and options.model == BUNDLED:
        say("model     unpacking the bundled weights if this is the first time, which takes half a minute")
        await anyio.to_thread.run_sync(resolve, options.model)
    async with AsyncExitStack() as stack:
        with loading(f"{options.engine} {options.model}"):
            await stack.enter_async_context(manager)
        _describe(manager)
        while not stop.is_set():
            if manager.state is State.FAILED:
                say("failed    the engine died")
                return 1
            with anyio.move_on_after(WATCH_SECONDS):
                await stop.wait()
        # Leaving the manager drains it, while the listener still answers: 503 and Retry-After.
        say(f"draining  {manager.statistics().open} open requests, at most {options.drain_timeout:g} s; a second signal ends them now")
    return 0


async def _watch_signals(manager: EngineManager, stop: anyio.Event, everything: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            if manager.state is State.STARTING:
                say("stopping  as soon as the engine's start can be undone")
                everything.cancel()
            elif stop.is_set():
                manager.cancel_all("the server is stopping")
            stop.set()


def _describe(manager: EngineManager) -> None:
    info, admission = manager.info, manager.admission
    cache = f", KV cache for {info.kv_cache_tokens:,} tokens" if info.kv_cache_tokens else ""
    say(f"engine    {info.name} {info.version} on {info.device}: context {info.max_model_len:,}, batch {info.max_num_seqs}{cache}")
    limit = "any number" if admission.policy.limit is None else admission.policy.limit
    say(f"admission {limit} running, {admission.max_waiting} waiting")
    say("ready     Ctrl-C or SIGTERM drains and stops")


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65_535:
        raise argparse.ArgumentTypeError(f"{number} is no port: choose 0 to 65535")
    return number


def _prepare_environment(options: argparse.Namespace) -> None:
    """Settings that vLLM's processes read; a program of its own may choose them, a library may not."""
    if is_local(options.model):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not options.verbose:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        os.environ.setdefault("TORCH_LOGS", "-all")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
        warnings.simplefilter("ignore", FutureWarning)
