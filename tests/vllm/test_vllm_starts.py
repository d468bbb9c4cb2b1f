"""Starts that are given up, and engines that are closed, end quickly and leave nothing behind."""

import json
import os
import random
import signal
import sys
import tempfile
from pathlib import Path

import anyio
import psutil
import pytest
from program_support import MODULE, program
from support.processes import gone

pytestmark = pytest.mark.nightly

SCRIPT = Path(__file__).with_name("starts.py")
# This takes up to 5 s on an idle machine (docs/reliability.md): a core is killed at once, and an
# import of vLLM is abandoned after 3 s. A complete start takes 20 s and more, and a hanging start
# does not end.
END_SECONDS = 15


@pytest.fixture
def short(monkeypatch):
    """A separate TMPDIR with a short name, which leaves room for the names of sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


async def played(*words):
    found = await anyio.run_process([sys.executable, str(SCRIPT), *words], stderr=None)
    # vLLM writes its own lines to the same output.
    return [json.loads(line) for line in found.stdout.decode().splitlines() if line.startswith("{")]


# The first start imports vLLM, and keeps its descriptors and threads.
@pytest.mark.parametrize("kinds", [("timeout", "2", "cancel", "2", "stop", "2"), ("close", "2")], ids=lambda kinds: kinds[0])
@pytest.mark.timeout(600)
async def test_abandoned_starts_and_closed_engines_leave_nothing_behind(kinds, short):
    found = await played(str(random.randrange(1000)), "close", "1", *kinds)
    first = found[0]
    for one in found:
        assert one["late"] < (30 if one["kind"] == "close" else END_SECONDS), one
        assert (one["processes"], one["segments"], one["files"]) == (0, [], []), one
        assert one["descriptors"] <= first["descriptors"], one
        assert one["threads"] <= first["threads"], one
        if one["kind"] == "stop" and one["how"] != "up":
            assert one["how"].startswith("EngineDead: the engine was not up within")


async def ended(process):
    with anyio.fail_after(END_SECONDS):
        return await process.wait()


@pytest.mark.parametrize(("workers", "twice"), [("1", False), ("2", False), ("2", True)])
async def test_a_signal_ends_a_program_that_starts(workers, twice, short):
    engine = ("--model", "bundled", "--workers", workers)
    async with program(None, engine=engine, module=[*MODULE, "--port", "0"], until="loading") as (process, _, lines):
        host = psutil.Process(process.pid)
        await anyio.sleep(random.uniform(0, 15))
        family = host.children(recursive=True)
        process.send_signal(signal.SIGTERM)
        if twice:
            await anyio.sleep(0.1)
            process.send_signal(signal.SIGTERM)
        assert await ended(process) in ((-signal.SIGTERM, 0) if twice else (0,)), lines
        # The guard removes a moment later what its host has left.
        await gone(*family)
        with anyio.fail_after(END_SECONDS):
            while [name for name in os.listdir(short) if name.startswith("llmserve-") and "metrics" not in name]:
                await anyio.sleep(0.05)
