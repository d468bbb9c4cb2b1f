"""`llmserve batch IN.jsonl OUT.jsonl`: answers a file of requests with an engine in this process."""

import argparse
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import attrs

from frontends.access.caller import Caller
from frontends.answers.served_model import ServedModel
from frontends.batch.answers import Answers
from frontends.batch.journal import Journal
from frontends.batch.lines import Result
from frontends.batch.progress import Progress
from frontends.batch.room import Room
from frontends.batch.runner import EngineGone, Runner
from frontends.batch.source import Checked, check, remaining
from frontends.logs.operator_log import LogSettings, configure, say
from frontends.logs.standard_streams import terminal_columns
from frontends.options.command_line import add_options
from frontends.options.definitions import group, make, option
from frontends.options.sources import layers, merged
from frontends.options.suggestions import Parser
from frontends.program.console import loading
from frontends.program.lifecycle import BACKEND, leave
from frontends.program.preflight import check_start, prepare_environment, unpack
from frontends.program.progress import describe_engine
from frontends.program.settings import EngineSettings, ServerSettings
from llmserve import ConfigurationError, EngineError, EngineManager, ManagerConfig
from llmserve.runtime.lifespan import first_of

INTERRUPTED = 130


@attrs.frozen(kw_only=True)
class BatchSettings:
    """The settings of the command."""

    resume: bool = option(False, "continue OUT.jsonl: keep its lines, and answer the others")
    engine: EngineSettings = group(EngineSettings, "engine")
    log: LogSettings = group(LogSettings, "log on standard error")


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=prog,
        description="Answer a file of requests in OpenAI's batch format, without a server. A killed batch continues with --resume.",
    )
    parser.add_argument("input", type=Path, metavar="IN.jsonl", help="requests: lines with custom_id, method, url and body")
    parser.add_argument("output", type=Path, metavar="OUT.jsonl", help="answers: lines with id, custom_id, response and error")
    add_options(parser, BatchSettings)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "llmserve batch") -> None:
    """Answer the file, and exit: with 0 if every line has an answer, with 1 if one failed or the batch stopped early."""
    parser = build_parser(prog)
    given = vars(parser.parse_args(argv))
    paths = given.pop("input"), given.pop("output")
    try:
        settings = make(BatchSettings, merged(layers(BatchSettings, given, os.environ)))
        server = ServerSettings(engine=settings.engine)
        configure(settings.log, verbose=settings.engine.verbose, terminal=terminal_columns() is not None)
        prepare_environment(server)
        check_start(server)
        leave(anyio.run(_main, settings, server, *paths, backend_options=BACKEND))
    except ConfigurationError as error:
        leave(2, f"{prog}: error: {error}")
    except (EngineError, EngineGone, OSError) as error:
        leave(1, f"{prog}: error: {error}; to continue, repeat the command with --resume")
    except KeyboardInterrupt:
        leave(INTERRUPTED)


async def _main(settings: BatchSettings, server: ServerSettings, source: Path, target: Path) -> int:
    journal = await anyio.to_thread.run_sync(partial(Journal, target, resume=settings.resume))
    try:
        checked = await anyio.to_thread.run_sync(check, source, journal.done)
        say(f"batch     {checked.total} lines, of which {len(journal.done)} are done")
        if len(journal.done) < checked.total:
            return await _interruptible(partial(_answer, settings, server, checked, journal))
        return int(journal.done.failed > 0)
    finally:
        await anyio.to_thread.run_sync(journal.close)


async def _interruptible(work: Callable[[], Awaitable[int]]) -> int:
    """Return what the work returns; a signal ends the work."""
    code = INTERRUPTED
    try:
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
                    async for _ in received:
                        say("stopping  the answers so far are kept; to continue, repeat the command with --resume")
                        tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            code = await work()
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise first_of(group) from None
    return code


async def _answer(settings: BatchSettings, server: ServerSettings, checked: Checked, journal: Journal) -> int:
    engine, args = settings.engine, server.engine_args()
    await unpack(engine)
    # Nothing else uses the engine, so only its batch and its memory limit a batch.
    manager = EngineManager.open(engine.model, engine=engine.kind, engine_args=args, engines=engine.number(args), config=ManagerConfig())
    async with AsyncExitStack() as stack:
        with loading(f"{engine.kind} {engine.model}"):
            await stack.enter_async_context(manager)
        say(f"engine    {describe_engine(manager.info)}")
        answers, progress = Answers(ServedModel(manager, engine.name)), Progress(journal.done, checked.total)
        stack.enter_context(progress.shown())
        runner = await stack.enter_async_context(Runner(manager, Room(manager, alone=True), answers).running())

        async def put(result: Result) -> None:
            await journal.append(result)
            progress.step()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(progress.tell)
            await runner.run(remaining(checked, journal.done), answers.table, Caller(), put)
            tasks.cancel_scope.cancel()
    say(f"batch     {progress}")
    return int(journal.done.failed > 0)
