"""Real processes: a guard kills its processes when the host is killed, and ends when they end.

Killed processes leave nothing in /dev/shm or among vLLM's sockets.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from multiprocessing import shared_memory
from pathlib import Path

import psutil
import pytest

from llmserve.engines.processes.guard import ProcessGuard, is_alive
from llmserve.engines.processes.socket_files import VARIABLE

HOST = """
    import subprocess, sys, time
    from llmserve.engines.processes.guard import ProcessGuard
    ward = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.DEVNULL)
    guard = ProcessGuard()
    guard.watch([ward.pid])
    print(ward.pid, guard._process.pid, flush=True)
    time.sleep(600)
"""

# Like a core and its worker: a process with its own shared memory, and another process that it has
# started.
FAMILY = """
    import mmap, multiprocessing, os, subprocess, sys, time
    from multiprocessing import resource_tracker, shared_memory
    # The host's own tracker removes the segment only at the host's end, after the test.
    made = shared_memory.SharedMemory(create=True, size=4096)
    resource_tracker.unregister(made._name, "shared_memory")
    lock = multiprocessing.get_context("spawn").Lock()
    resource_tracker.unregister(lock._semlock.name, "semaphore")
    # Like the memory of vLLM's CPU workers, which Python does not know.
    exchange = f"vllm_dist_{os.getpid()}-tp:0-[0-1]-cpushm_0"
    with open("/dev/shm/" + exchange, "wb+") as file:
        file.truncate(4096)
        mapped = mmap.mmap(file.fileno(), 0)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(made.name, "sem." + lock._semlock.name[1:], exchange, child.pid, flush=True)
    time.sleep(600)
"""

# Maps the segment with the given name.
READER = """
    import sys, time
    from multiprocessing import shared_memory
    theirs = shared_memory.SharedMemory(sys.argv[1])
    print(flush=True)
    time.sleep(600)
"""


def ended(pid, seconds=10.0):
    """Wait for a process's end by an event, not by sleeping."""
    try:
        psutil.Process(pid).wait(seconds)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_killing_the_host_kills_the_guarded_processes(sent):
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(HOST)], stdout=subprocess.PIPE) as host:
        ward, guard = map(int, host.stdout.readline().split())
        host.send_signal(sent)
        if sent == signal.SIGSTOP:
            # The test goes on without an end.
            assert not ended(ward, 0.3)
            host.kill()
        assert ended(ward)
        assert ended(guard)


def test_a_ward_that_hangs_is_killed_as_well():
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(HOST)], stdout=subprocess.PIPE) as host:
        ward, guard = map(int, host.stdout.readline().split())
        psutil.Process(ward).suspend()
        host.kill()
        assert ended(ward)
        assert ended(guard)


def test_the_guard_leaves_when_there_is_nothing_to_guard():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as ward:
        guard = ProcessGuard()
        guard.watch([ward.pid])
        ward.kill()
        ward.wait()
        began = time.monotonic()
        guard.close()
        assert guard._process.returncode == 0
        assert time.monotonic() - began < 5.0


def test_a_guard_that_has_never_had_anything_to_guard_leaves_as_well():
    guard = ProcessGuard()
    guard.close()
    assert guard._process.returncode == 0


LAUNCH = """
    import multiprocessing, os, subprocess, sys, time
    from llmserve.engines.processes.guard import ProcessGuard

    def rest(name):
        time.sleep(600)

    if __name__ == "__main__":
        spawn = multiprocessing.get_context("spawn")
        before = spawn.Process(target=rest, args=(0,), name="EngineCore")
        before.start()
        guard = ProcessGuard()
        with guard.launching("EngineCore"):
            family = [before, *(spawn.Process(target=rest, args=(0,), name=name) for name in ("EngineCore_DP0", "EngineCore_DP1", "other"))]
            for one in family[1:]:
                one.start()
            while len(guard._told) < 2:
                time.sleep(0.01)
            print(*(one.pid for one in family), guard._process.pid, flush=True)
            time.sleep(600)
"""


def test_a_host_that_is_killed_in_the_middle_of_a_launch_takes_what_it_has_launched_with_it(tmp_path):
    """Nothing else is killed: no older process, and none of another part of the program."""
    program = tmp_path / "host.py"
    program.write_text(textwrap.dedent(LAUNCH))
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE) as host:
        before, first, second, other, guard = map(int, host.stdout.readline().split())
        host.kill()
        assert ended(first)
        assert ended(second)
        assert ended(guard)
        for left in (before, other):
            assert psutil.pid_exists(left)
            psutil.Process(left).kill()


def rest():
    time.sleep(600)


def start(name="EngineCore"):
    process = multiprocessing.get_context("spawn").Process(target=rest, name=name)
    process.start()
    return process


@pytest.fixture
def family():
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(FAMILY)], stdout=subprocess.PIPE) as core:
        *made, worker = core.stdout.readline().decode().split()
        yield core, psutil.Process(int(worker)), [Path("/dev/shm", name) for name in made]
        core.kill()


@pytest.mark.parametrize("stopped", [False, True])
def test_a_kill_covers_descendants_and_leaves_nothing_in_shared_memory(family, stopped, monkeypatch):
    core, worker, made = family
    # The segment was never registered, so the tracker would print an error about it.
    monkeypatch.setattr("multiprocessing.resource_tracker.unregister", lambda name, kind: None)
    guard = ProcessGuard()
    guard.watch([core.pid])
    if stopped:
        core.send_signal(signal.SIGSTOP)
        worker.suspend()
    guard.kill()
    assert ended(worker.pid)
    assert core.wait(10) == -signal.SIGKILL
    assert all(file.exists() for file in made)
    guard.close()
    assert not any(file.exists() for file in made)


def test_a_process_killed_by_another_program_leaves_nothing_either(family, monkeypatch):
    core, worker, made = family
    monkeypatch.setattr("multiprocessing.resource_tracker.unregister", lambda name, kind: None)
    monkeypatch.setattr("llmserve.engines.processes.guard.LEAVE_SECONDS", 0.1)
    guard = ProcessGuard()
    guard.watch([core.pid])
    guard.note()
    core.kill()
    core.wait()
    assert is_alive(worker)
    guard.close()
    assert not is_alive(worker)
    assert not any(file.exists() for file in made)


def test_a_segment_of_the_hosts_own_stays():
    """It stays even if a killed process has mapped it."""
    mine = shared_memory.SharedMemory(create=True, size=4096)
    try:
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(READER), mine.name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as core:
            core.stdout.readline()
            guard = ProcessGuard()
            guard.watch([core.pid])
            guard.kill()
            core.wait()
            guard.close()
        assert Path("/dev/shm", mine.name).exists()
    finally:
        mine.close()
        mine.unlink()


def test_a_launch_that_is_not_wanted_any_more_is_killed_as_soon_as_it_starts_anything():
    guard = ProcessGuard()
    with guard.launching("EngineCore"):
        first = start()
        while not guard._told:
            time.sleep(0.01)
        guard.kill()
        second = start()
        first.join(10)
        second.join(10)
    assert first.exitcode == second.exitcode == -signal.SIGKILL
    guard.close()


def test_a_guard_ignores_launches_of_another_thread():
    """Two engines of one process start together, and one start is given up."""
    guard, other_guard = ProcessGuard(), ProcessGuard()
    launched, over = threading.Event(), threading.Event()
    others = []

    def launch_another():
        with other_guard.launching("EngineCore"):
            others.append(start())
            launched.set()
            over.wait()

    thread = threading.Thread(target=launch_another)
    with guard.launching("EngineCore"):
        thread.start()
        mine = start()
        launched.wait()
    over.set()
    thread.join()
    guard.kill()
    mine.join(10)
    guard.close()
    assert mine.exitcode == -signal.SIGKILL
    assert others[0].is_alive()
    other_guard.kill()
    others[0].join(10)
    other_guard.close()


@pytest.fixture
def short():
    """A folder with a short name that leaves room for sockets' names, unlike pytest's folders."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_sockets_are_made_in_a_folder_that_goes_with_the_last_engine(monkeypatch, short):
    monkeypatch.setenv(VARIABLE, str(short))
    first = ProcessGuard()
    folder = Path(os.environ[VARIABLE])
    second = ProcessGuard()
    assert folder.parent == short
    assert os.environ[VARIABLE] == str(folder)
    (folder / "socket").touch()
    first.close()
    assert folder.exists()
    second.close()
    assert not folder.exists()
    assert os.environ[VARIABLE] == str(short)


def test_a_folder_whose_sockets_would_have_names_that_are_too_long_is_made_elsewhere(monkeypatch, tmp_path):
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setenv(VARIABLE, str(deep))
    guard = ProcessGuard()
    folder = Path(os.environ[VARIABLE])
    assert folder.is_dir()
    assert not folder.is_relative_to(deep)
    guard.close()
    assert not folder.exists()
    assert not list(deep.iterdir())


@pytest.mark.parametrize("guards", ["nothing", "a process"])
def test_a_host_that_is_killed_leaves_no_sockets(guards, short):
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOST)], stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(short)}
    ) as host:
        ward, guard = map(int, host.stdout.readline().split())
        assert len(list(short.iterdir())) == 1
        # With a guarded process, or without one yet, as at the beginning of a start.
        if guards == "nothing":
            psutil.Process(ward).kill()
        host.kill()
        assert ended(ward)
        assert ended(guard)
    assert not list(short.iterdir())
