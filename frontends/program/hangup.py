"""What SIGHUP means: to read the operator's files again, or that the program's terminal is gone."""

import os
import signal

import anyio

from frontends.logs.operator_log import say
from frontends.net.file_watch import reread

# A terminal may send its SIGHUP a moment before it is gone.
SETTLE_SECONDS = 0.2


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


# When the program starts. nohup has the signal ignored: then only an operator sends it.
_MAY_LOSE_TERMINAL = _has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


def expect_hangups() -> None:
    """Call it when the program starts, in its main thread: until it serves, a SIGHUP from an operator has nothing to do."""
    if not _MAY_LOSE_TERMINAL:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


async def reload_or_end() -> bool:
    """After a SIGHUP: read the followed files again. Returns True where the program should end instead, as after SIGTERM."""
    if _MAY_LOSE_TERMINAL:
        await anyio.sleep(SETTLE_SECONDS)
        if not _has_terminal():
            return True
    say("reload    reading the files of keys, tenants and certificates again")
    reread()
    return False
