"""A manager's start and end from any task of its loop, its exceptions, and its misuse."""

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked
from engines import ScriptedEngine
from quiescence import check_quiescent

from benchmarks.stand_ins.virtual_clock import VirtualLoop
from llmserve import Delta, EngineDead, EngineManager, GenerationRequest, ManagerConfig, State, Unavailable

pytestmark = pytest.mark.anyio

CONFIG = ManagerConfig(drain_timeout=10)


class SlowEngine(ScriptedEngine):
    """Takes ten seconds to start, and one to stop."""

    begun = ended = 0

    async def run(self, *, task_status=anyio.TASK_STATUS_IGNORED):
        self.begun += 1
        try:
            await anyio.sleep(10)
            await super().run(task_status=task_status)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            self.ended += 1


@pytest.fixture
def manager():
    return EngineManager(SlowEngine(), CONFIG)


def request(name="r"):
    return GenerationRequest("hello", request_id=name)


async def in_a_task(work):
    """Run a coroutine in a task that ends with it."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)


async def hold_a_stream(manager, caught, *, task_status):
    with pytest.raises(Unavailable) as error:
        async with manager.stream(request()) as stream:
            task_status.started()
            await stream.collect()
    caught.append(error.value.reason)


# Tasks


async def test_one_task_starts_it_others_use_it_and_another_one_closes_it(manager):
    await in_a_task(manager.start)

    async def use():
        async with manager.stream(request()) as stream:
            manager.engine.finish("r")
            assert [delta.text async for delta in stream] == ["x"]

    await in_a_task(use)
    await in_a_task(use)
    await in_a_task(manager.close)
    assert manager.state is State.STOPPED
    assert manager.engine.ended == 1
    check_quiescent(manager)


async def test_an_exit_stack_is_entered_in_one_task_and_left_in_another(manager):
    stack = AsyncExitStack()

    async def enter():
        await stack.enter_async_context(manager)

    await in_a_task(enter)
    assert manager.state is State.READY
    await in_a_task(stack.aclose)
    assert manager.state is State.STOPPED


# Exceptions of the body

PROGRAM = """
import signal, sys
import anyio
from llmserve import EngineManager

# A shell starts what runs in the background with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

async def main():
    async with EngineManager.open(engine="simulated", engine_args={{"time_scale": 0.01}}) as manager:
        await manager.generate("Hello")
        {body}
        await anyio.sleep(60)

try:
    anyio.run(main, backend="{backend}")
except BaseException as error:
    print(repr(error))
    raise
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    ("body", "error", "codes"),
    [("sys.exit(3)", "SystemExit(3)", [3]), ("signal.raise_signal(signal.SIGINT)", "KeyboardInterrupt()", [130, -2])],
)
def test_the_program_s_last_error_is_not_a_group(backend, body, error, codes):
    program = PROGRAM.format(backend=backend, body=body)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert ended.stdout.split() == [error]
    assert "Group" not in ended.stderr
    assert ended.returncode in codes


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_every_exception_of_the_body_propagates_unchanged(kind):
    engine, raised = SlowEngine(), kind("mine")
    manager = EngineManager(engine, CONFIG)

    async def main():
        async with manager:
            raise raised

    with asyncio.Runner(loop_factory=VirtualLoop) as runner, pytest.raises(kind) as caught:
        runner.run(main())
    assert kind is asyncio.CancelledError or caught.value is raised
    assert (manager.state, engine.ended) == (State.STOPPED, 1)


# Starts and ends


async def test_a_start_that_is_cancelled_leaves_no_engine(manager):
    with anyio.move_on_after(5) as scope:
        await manager.start()
    assert scope.cancelled_caught
    assert (manager.state, manager.engine.ended) == (State.STOPPED, 1)
    await manager.close()


async def test_a_close_during_the_start_ends_the_start(manager):
    async with anyio.create_task_group() as tasks:

        async def start():
            with pytest.raises(RuntimeError, match="closed while it was starting"):
                await manager.start()

        tasks.start_soon(start)
        await anyio.sleep(5)
        await manager.close()
        assert anyio.current_time() % 10 != 0
    assert (manager.state, manager.engine.ended, manager.engine.starts) == (State.STOPPED, 1, 0)


async def test_closing_again_or_before_the_start_does_nothing(manager):
    await manager.start()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.close)
        tasks.start_soon(manager.close)
    await manager.close()
    assert manager.engine.ended == 1
    unused = EngineManager(SlowEngine())
    await unused.close()
    for closed in (manager, unused):
        with pytest.raises(RuntimeError, match="starts once, and this one is stopped; make another"):
            await closed.start()


async def test_a_start_that_failed_is_closed_already():
    class Broken(ScriptedEngine):
        async def run(self, *, task_status=anyio.TASK_STATUS_IGNORED):
            raise OSError("no such model")

    manager = EngineManager(Broken())
    with pytest.raises(OSError, match="no such model"):
        await manager.start()
    await manager.close()
    assert manager.state is State.STOPPED


async def test_a_close_drains_and_a_cancelled_one_does_not_drain_to_the_end(manager):
    caught = []
    await manager.start()
    async with anyio.create_task_group() as tasks:
        await tasks.start(hold_a_stream, manager, caught)
        began = anyio.current_time()
        with anyio.move_on_after(3) as scope:
            await manager.close()
        # Three seconds for the drain, and one for the engine's end.
        assert anyio.current_time() - began == pytest.approx(4)
    assert scope.cancelled_caught
    assert caught == ["stopped"]
    assert (manager.state, manager.engine.ended) == (State.STOPPED, 1)


async def test_an_error_of_the_body_hurries_a_close_that_drains(manager):
    caught = []
    async with anyio.create_task_group() as tasks:
        with pytest.raises(ValueError, match="mine"):
            async with manager:
                await tasks.start(hold_a_stream, manager, caught)
                tasks.start_soon(manager.close)
                await anyio.sleep(3)
                began = anyio.current_time()
                raise ValueError("mine")
        assert anyio.current_time() - began == pytest.approx(1)
    assert caught == ["stopped"]


def test_asyncio_s_own_cancellation_twice_interrupts_the_wait_and_not_the_end():
    """A shielded scope does not stop `task.cancel()`; the manager's end goes on in its own task."""
    engine = SlowEngine()
    manager = EngineManager(engine, CONFIG)

    async def main():
        await manager.start()
        closing = asyncio.create_task(manager.close())
        for _ in range(2):
            await wait_all_tasks_blocked()
            closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert engine.ended == 0
        await manager.close()
        assert (manager.state, engine.ended) == (State.STOPPED, 1)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


@pytest.mark.parametrize("seconds", [0, 5, 20])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_end_of_the_loop_ends_a_manager_that_was_not_closed(backend, seconds, anyio_backend_options):
    """The loop ends before the first step of the manager's task, during the start, and after it."""
    engine, starts = SlowEngine(), []
    manager = EngineManager(engine, CONFIG)

    async def main():
        with anyio.move_on_after(seconds):
            if backend == "asyncio":
                starts.append(asyncio.create_task(manager.start()))
                if seconds:
                    await anyio.sleep_forever()
            else:
                await manager.start()

    anyio.run(main, backend=backend, backend_options=anyio_backend_options[backend])
    assert manager.state is not State.READY
    assert engine.death is None
    assert engine.ended == engine.begun


@pytest.fixture
def anyio_backend_options():
    import trio.testing

    return {"asyncio": {"loop_factory": VirtualLoop}, "trio": {"clock": trio.testing.MockClock(autojump_threshold=0)}}


async def test_a_failure_of_the_manager_s_own_is_what_requests_and_close_raise(manager):
    await manager.start()

    async def fail():
        raise ValueError("a fault of our own")

    manager._loop.spawn(fail)
    await anyio.sleep(5)
    assert (manager.state, manager.engine.ended) == (State.FAILED, 1)
    with pytest.raises(EngineDead, match="a fault of our own"):
        await manager.generate("hello")
    with pytest.raises(ValueError, match="a fault of our own"):
        await manager.close()
    await manager.close()
    assert manager.state is State.STOPPED


# Use in wrong places


def uses(manager):
    return {
        "generate": lambda: manager.generate("hello"),
        "stream": lambda: manager.stream(request()).__aenter__(),
        "tokenize": lambda: manager.tokenize(request()),
        "detokenize": lambda: manager.detokenize([1]),
    }


@pytest.mark.parametrize("use", ["generate", "stream", "tokenize", "detokenize"])
async def test_before_the_start_and_after_the_end_the_error_says_what_to_do(manager, use):
    with pytest.raises(RuntimeError, match="has not been started: use it inside `async with manager:`"):
        await uses(manager)[use]()
    async with manager:
        pass
    with pytest.raises(RuntimeError, match=r"has been closed: .* make another EngineManager"):
        await uses(manager)[use]()


def in_another_loop(work):
    """Run in the loop of another thread. The virtual clock stands still in that time."""

    async def run():
        async with asyncio.timeout(60):
            await work()

    with ThreadPoolExecutor() as pool:
        pool.submit(asyncio.run, run()).result()


@pytest.mark.parametrize("use", ["generate", "stream", "tokenize", "detokenize", "drain", "close"])
async def test_another_loop_in_another_thread_gets_an_error_and_no_hang(manager, use):
    works = uses(manager) | {"drain": manager.drain, "close": manager.close}
    async with manager:
        with pytest.raises(RuntimeError, match="this manager belongs to another event loop: use it in the loop that started"):
            in_another_loop(works[use])
        assert manager.state is State.READY
        manager.check_health()


async def test_a_thread_without_a_loop_gets_the_same_error(manager):
    async with manager:
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            await anyio.to_thread.run_sync(manager.cancel_all, "no")
        # The error message suggests this call: it runs `cancel_all` in the event loop.
        await anyio.to_thread.run_sync(anyio.from_thread.run_sync, manager.cancel_all, "yes")


def test_another_loop_of_the_same_thread_gets_the_same_error():
    manager = EngineManager(ScriptedEngine(), CONFIG)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(manager.start())
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            second.run(manager.generate("hello"))
        first.run(manager.close())


async def test_a_stream_is_not_read_in_another_loop(manager):
    async with manager, manager.stream(request()) as stream:

        async def read():
            return [delta async for delta in stream]

        for work in (stream.collect, stream.__anext__, read):
            with pytest.raises(RuntimeError, match="this stream belongs to another event loop"):
                in_another_loop(work)
        manager.engine.finish("r")
        assert (await stream.collect()).text == "x"


# Several readers of one stream


async def iterate(stream):
    return "".join([delta.text async for delta in stream])


async def collect(stream):
    return (await stream.collect()).text


@pytest.mark.parametrize("second", [iterate, collect, lambda stream: stream.__anext__()], ids=["iterates", "collects", "anext"])
@pytest.mark.parametrize("first", [iterate, collect])
async def test_a_second_reader_gets_an_error_and_the_first_one_the_answer(manager, first, second):
    got = []
    async with manager, manager.stream(request()) as stream, anyio.create_task_group() as tasks:

        async def read():
            got.append(await first(stream))

        tasks.start_soon(read)
        await wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="another task reads this stream: a stream has one reader"):
            await second(stream)
        manager.engine.sinks["r"].put(Delta("a", (1,)))
        await wait_all_tasks_blocked()
        manager.engine.finish("r", "b")
    assert got == ["ab"]


async def test_after_a_reader_was_cancelled_the_next_one_reads(manager):
    async with manager, manager.stream(request()) as stream:
        with anyio.move_on_after(1):
            await anext(stream)
        manager.engine.finish("r")
        assert await iterate(stream) == "x"


async def test_a_stream_that_notifies_is_not_iterated_and_the_other_way_round(manager):
    async with manager, manager.stream(request()) as stream, anyio.create_task_group() as tasks:
        tasks.start_soon(iterate, stream)
        await wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="another task reads this stream"):
            stream.notify(lambda: None)
        manager.engine.finish("r")
    async with EngineManager(ScriptedEngine(), CONFIG) as manager, manager.stream(request()) as stream:
        stream.notify(lambda: None)
        for read in (iterate, collect, lambda stream: stream.__anext__()):
            with pytest.raises(RuntimeError, match="this stream notifies a reader"):
                await read(stream)


def test_the_running_thread_is_not_a_condition():
    """A loop may move to another thread between two runs."""
    manager = EngineManager(ScriptedEngine(), CONFIG)
    loop = VirtualLoop()
    loop.run_until_complete(manager.start())
    thread = threading.Thread(target=loop.run_until_complete, args=(manager.close(),))
    thread.start()
    thread.join()
    loop.close()
    assert manager.state is State.STOPPED
