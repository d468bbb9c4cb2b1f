"""The README's embedded program runs unchanged on the real engine, as a separate program."""

import os
import subprocess
import sys

from support.pages import EXAMPLES, ROOT


def test_the_embedded_program_runs():
    command, environment = [sys.executable, "first.py"], {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=EXAMPLES, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.startswith(" Paris. Usage(")
