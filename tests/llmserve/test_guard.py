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
    guard = Guard([ward.pid])
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
        guard = Guard([ward.pid])
        ward.kill()
        ward.wait()
        began = time.monotonic()
        guard.close()
        assert guard._process.returncode == 0
        assert time.monotonic() - began < 5.0


def test_nothing_to_guard_starts_nothing():
    guard = Guard([])
    assert guard._process is None
    guard.close()
