"""SIGHUP: either reread the operator's files, or end because the program's terminal is gone."""

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


# Evaluated when the program starts. Under nohup the signal is ignored: then only an operator sends
# it.
_MAY_LOSE_TERMINAL = _has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


def expect_hangups() -> None:
    """Ignore SIGHUP until the server serves, unless it may mean that the terminal is gone.

    Call this when the program starts, in its main thread.
    """
    if not _MAY_LOSE_TERMINAL:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


async def reload_or_end() -> bool:
    """Reread the followed files after a SIGHUP.

    Returns True where the terminal is gone and the program should end, as after SIGTERM.
    """
    if _MAY_LOSE_TERMINAL:
        await anyio.sleep(SETTLE_SECONDS)
        if not _has_terminal():
            return True
    say("reload    rereading the settings and the files of keys, tenants and certificates")
    reread()
    return False
