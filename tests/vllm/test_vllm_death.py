"""The engine is killed or stopped: each client gets an answer or an error, and the host goes on."""

import re
import signal
import subprocess
import sys
import textwrap

import anyio
import anyio.lowlevel
import psutil
import pytest
from support.processes import gone
from support.requests import endless

from llmserve import EngineDead, EngineManager, EngineRestarted, GenerationRequest, ManagerConfig, RestartConfig, Sampling, State

# A healthy step on a busy machine takes less.
STALL_SECONDS = 8.0
# Bound of waits that an event ends: a busy machine takes longer, and a hang does not end.
PATIENCE = 120


def short(name):
    return GenerationRequest("The capital of France is", request_id=name, sampling=Sampling(max_tokens=8, temperature=0))


def core_of(manager):
    (core,) = manager.engine.running_llm.engine_core.resources.engine_manager.processes
    return psutil.Process(core.pid)


@pytest.mark.nightly
async def test_the_death_of_an_engine_without_restart_fails_all_requests():
    async with EngineManager.open("bundled", config=ManagerConfig(restart=RestartConfig(most=0))) as manager:
        core = core_of(manager)
        family = [core, *core.children(recursive=True)]
        async with manager.stream(endless("seen")) as stream:
            await anext(stream)
            core.kill()
            with anyio.fail_after(PATIENCE), pytest.raises(EngineDead):
                async for _ in stream:
                    pass
        await has_failed(manager)
    await gone(*family)


async def has_failed(manager):
    """Check that the manager serves no more, because its engine is not started again."""
    with anyio.fail_after(PATIENCE):
        while manager.state is not State.FAILED:
            await anyio.sleep(0.05)
    with pytest.raises(EngineDead):
        await manager.generate("again")


async def test_a_killed_engine_is_started_again_and_one_that_hangs_after_its_last_restart_fails_all_requests(caplog):
    """tests/llmserve/test_core_deaths.py has every moment of a death, on a stand-in core."""
    restart = RestartConfig(most=1, stall_timeout=STALL_SECONDS)
    async with EngineManager.open("bundled", config=ManagerConfig(restart=restart)) as manager:
        expected = (await manager.generate(short("before"))).text
        first = core_of(manager)
        assert await answers_around(manager, first, signal.SIGKILL) == [expected] * 4
        assert manager.statistics().restarts == 1
        # Not because it made no steps.
        assert "the engine died: vLLM's engine process died" in caplog.text
        second = core_of(manager)
        async with manager.stream(endless("seen")) as stream:
            await anext(stream)
            second.send_signal(signal.SIGSTOP)
            with anyio.fail_after(PATIENCE), pytest.raises(EngineDead, match="made no step"):
                async for _ in stream:
                    pass
        await has_failed(manager)
    await gone(first, second)


@pytest.mark.nightly
async def test_an_engine_that_dies_is_started_again_and_loses_nothing():
    """One engine is killed, and the next one hangs."""
    async with EngineManager.open("bundled", config=ManagerConfig(restart=RestartConfig(stall_timeout=STALL_SECONDS))) as manager:
        expected = (await manager.generate(short("before"))).text
        for restarts, sent in enumerate([signal.SIGKILL, signal.SIGSTOP], start=1):
            core = core_of(manager)
            answers = await answers_around(manager, core, sent)
            assert answers == [expected] * 4
            await gone(core)
            assert manager.statistics().restarts == restarts
            assert (await manager.generate(short(f"after {restarts}"))).text == expected
            assert manager.statistics().engine.running == 0


async def answers_around(manager, core, sent):
    """Return the answers of four requests that arrive after a signal to the core.

    A stream that had begun gets an error.
    """
    answers = []

    async def ask(name):
        answers.append((await manager.generate(short(name))).text)

    async with anyio.create_task_group() as tasks:
        async with manager.stream(endless(f"seen {sent}")) as stream:
            await anext(stream)
            core.send_signal(sent)
            for number in range(4):
                tasks.start_soon(ask, f"unseen {sent} {number}")
            with anyio.fail_after(PATIENCE), pytest.raises(EngineRestarted):
                async for _ in stream:
                    pass
        with anyio.fail_after(300):
            while manager.state is not State.READY:
                await anyio.sleep(0.1)
    return answers


@pytest.mark.nightly
async def test_it_loses_nothing_when_it_dies_in_a_prefill_or_while_it_drains():
    """Sixteen prompts that fill the context take seconds to a first token; then a drain follows."""
    answers = []

    async def ask(request):
        answers.append(await manager.generate(request))

    async with anyio.create_task_group() as tasks:
        async with EngineManager.open("bundled", config=ManagerConfig(drain_timeout=120)) as manager:
            for number in range(16):
                long = GenerationRequest([number + 1] * 2000, sampling=Sampling(max_tokens=4, ignore_eos=True))
                tasks.start_soon(ask, long)
            # The engine has the requests. It reports them after its first step, which is long.
            with anyio.fail_after(PATIENCE):
                while manager.statistics().running < 16:
                    await anyio.lowlevel.checkpoint()
            await anyio.sleep(0.2)
            first = core_of(manager)
            first.kill()
            assert manager.metrics()["tokens"]["completion"] == 0
            with anyio.fail_after(300):
                while len(answers) < 16:
                    await anyio.sleep(0.1)
            assert {len(answer.token_ids) for answer in answers} == {4}
            tasks.start_soon(ask, short("whole"))
            told = anyio.Event()
            tasks.start_soon(told_so, manager, told)
            with anyio.fail_after(PATIENCE):
                while manager.statistics().engine.running < 2:
                    await anyio.sleep(0.01)
            second = core_of(manager)
            # As soon as the server drains.
            tasks.start_soon(kill_when, manager, State.DRAINING, second, told)
    assert len(answers) == 17
    assert manager.state is State.STOPPED
    await gone(first, second)


async def told_so(manager, told):
    async with manager.stream(endless("seen")) as stream:
        await anext(stream)
        with pytest.raises(EngineRestarted):
            async for _ in stream:
                pass
    told.set()


async def kill_when(manager, state, core, told):
    """Kill the core; a stream that has begun ends."""
    while manager.state is not state:
        await anyio.lowlevel.checkpoint()
    core.kill()
    with anyio.fail_after(PATIENCE):
        await told.wait()


PARENT = """
    import multiprocessing, sys
    import anyio
    from llmserve import EngineManager

    def cores():
        return [one for one in multiprocessing.active_children() if one.name.startswith("EngineCore")]

    async def main():
        async with anyio.create_task_group() as tasks:
            if sys.argv[1] == "launching":
                tasks.start_soon(tell)
            async with EngineManager.open("bundled"):
                await tell()

    async def tell():
        while not cores():
            await anyio.sleep(0.01)
        # A guard hears of it a moment later.
        await anyio.sleep(0.2)
        print("core", cores()[0].pid, flush=True)
        await anyio.sleep_forever()

    if __name__ == "__main__":
        anyio.run(main)
"""


@pytest.mark.parametrize("moment", [pytest.param("launching", marks=pytest.mark.nightly), "serving"])
async def test_an_engine_ends_with_its_host_however_that_ends(moment, tmp_path):
    program = tmp_path / "host.py"
    program.write_text(textwrap.dedent(PARENT))
    async with await anyio.open_process([sys.executable, str(program), moment], stderr=subprocess.DEVNULL) as host:
        assert host.stdout is not None
        told = b""
        while not (found := re.search(rb"core (\d+)\n", told)):
            told += await host.stdout.receive()
        core = psutil.Process(int(found[1]))
        family = [core, *core.children(recursive=True)]
        host.kill()
        await gone(*family)
