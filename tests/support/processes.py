"""Waits and ports that tests of other processes share."""

import socket

import anyio
import psutil


async def gone(*processes, seconds=120):
    """Wait until the processes have ended; the bound only ends a hang."""
    with anyio.fail_after(seconds):
        while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
            await anyio.sleep(0.02)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
