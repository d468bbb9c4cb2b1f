"""Real processes: a host that is killed takes what it guards with it; one that ends what it guards is left by its guard."""

import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from llmserve.engines.guard import Guard

HOST = """
    import subprocess, sys, time
    from llmserve.engines.guard import Guard
    ward = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.DEVNULL)
    guard = Guard()
    guard.watch([ward.pid])
    print(ward.pid, guard._process.pid, flush=True)
    time.sleep(600)
"""


def ended(pid, seconds=10.0):
    """Not by sleeping: a process's end is an event."""
    try:
        psutil.Process(pid).wait(seconds)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_who_kills_the_host_kills_what_it_guards(sent):
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(HOST)], stdout=subprocess.PIPE) as host:
        ward, guard = map(int, host.stdout.readline().split())
        host.send_signal(sent)
        if sent == signal.SIGSTOP:
            # It may go on: nothing has ended.
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
        guard = Guard()
        guard.watch([ward.pid])
        ward.kill()
        ward.wait()
        began = time.monotonic()
        guard.close()
        assert guard._process.returncode == 0
        assert time.monotonic() - began < 5.0


def test_a_guard_that_has_never_had_anything_to_guard_leaves_as_well():
    guard = Guard()
    guard.close()
    assert guard._process.returncode == 0


LAUNCH = """
    import multiprocessing, os, subprocess, sys, time
    from llmserve.engines.guard import Guard

    def rest(name):
        time.sleep(600)

    if __name__ == "__main__":
        spawn = multiprocessing.get_context("spawn")
        before = spawn.Process(target=rest, args=(0,), name="EngineCore")
        before.start()
        guard = Guard()
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
    """And nothing else: not what was there before, nor what another part of the program has started meanwhile."""
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
