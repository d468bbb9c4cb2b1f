"""The report page of a run that was measured, in the same command.

The page is built in another process, because the benchmarks do not know the reports.
"""

import argparse
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from benchmarks.targets import TargetError


def add_report(command: argparse.ArgumentParser) -> None:
    words = "also build the report page, as `python -m reports build` does (needs llmserve[reports])"
    command.add_argument("--report", type=pathlib.Path, metavar="PAGE.html", help=words)


@contextmanager
def built_after(run: pathlib.Path, page: pathlib.Path | None) -> Iterator[None]:
    """Build the page after the block, also of a run that was cut short; without a `page`, do nothing.

    Raises TargetError: before the block without Bokeh, and after it if the page could not be built.
    """
    if page is None:
        yield
        return
    if find_spec("bokeh") is None:
        raise TargetError("--report needs Bokeh: pip install 'llmserve[reports]'")
    before = _written(run)
    try:
        yield
    except BaseException:
        if _written(run) != before:
            _build(run, page)
        raise
    if _build(run, page):
        raise TargetError(f"--report {page} could not be built; the run is in {run}")


def _written(run: pathlib.Path) -> int | None:
    return run.stat().st_mtime_ns if run.exists() else None


def _build(run: pathlib.Path, page: pathlib.Path) -> int:
    """Build the page, which prints its own errors; returns its exit code."""
    command = [sys.executable, "-m", "reports", "build", str(run), "-o", str(page)]
    return subprocess.run(command, check=False).returncode  # noqa: S603 - this interpreter, and paths
