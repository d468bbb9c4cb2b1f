"""Runs a program whose results go to standard output, which may be a pipe to a program that ends first."""

import os
import sys
from collections.abc import Callable
from typing import TextIO


def written(program: Callable[[], int], name: str) -> int:
    """Run a program and write all that it has printed; return its exit code.

    It is 1 if standard output's reader has ended, 2 if standard output cannot be written, and 130
    after Ctrl-C. `name` begins the message.
    """
    try:
        try:
            return program()
        finally:
            # Otherwise the interpreter would do so as it exits, and report an error with a traceback.
            if sys.stdout is not None:
                _flush(sys.stdout, name)
    except BrokenPipeError:
        _discard(sys.stdout)
        return 1
    except KeyboardInterrupt:
        return 130


def _flush(stream: TextIO, name: str) -> None:
    try:
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard(stream)
        sys.stderr.write(f"{name}: error: standard output cannot be written: {error.strerror}\n")
        sys.exit(2)


def _discard(stream: TextIO) -> None:
    """Drop what the stream has not written, which the interpreter would write as it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
