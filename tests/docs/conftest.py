"""Programs of the documentation run in a folder of their own, where the simulated engine stands for vLLM."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from support.pages import ROOT, blocks

# Python imports this module in each process before the program.
SITE = 'from llmserve.engines import ENGINES\nENGINES["vllm"] = ENGINES["simulated"]\n'
COMMAND = '#!/bin/sh\nexec {python} -c "import sys; from frontends.cli.main import main; sys.exit(main())" "$@"\n'
READY = "  ready  "
# Seconds after which a program that does not end fails the test.
PATIENCE = 120


class Shell:
    """Runs programs as the reader of a page does."""

    def __init__(self, folder, environment):
        self.folder, self.environment = folder, environment

    def run(self, *command, text=None):
        """Return what a program prints; it must end without an error."""
        options = {"cwd": self.folder, "env": self.environment, "capture_output": True, "text": True, "timeout": PATIENCE}
        ended = subprocess.run(command, input=text, check=False, **options)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    @contextlib.contextmanager
    def serving(self, command):
        """Run a server until it is ready; yield its first address. At the end SIGTERM must end it without an error."""
        options = {"cwd": self.folder, "env": self.environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(["bash", "-c", f"exec {command}"], **options) as process:
            lines = []
            try:
                for line in process.stderr:
                    lines.append(line)
                    if READY in line:
                        break
                assert lines, command
                assert READY in lines[-1], "".join(lines)
                yield re.search(r"\w+://(\S+)", lines[0])[1]
            finally:
                process.send_signal(signal.SIGTERM)
                lines += process.communicate(timeout=PATIENCE)[1]
        assert process.returncode == 0, "".join(lines)


@pytest.fixture(scope="session")
def shell(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SITE)
    (folder / "bin").mkdir()
    (folder / "bin" / "llmserve").write_text(COMMAND.format(python=sys.executable))
    (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for program in (folder / "bin").iterdir():
        program.chmod(0o755)
    # What pages name without saying how it is made: an environment, an operator's files.
    (folder / ".tox/serve/bin").mkdir(parents=True)
    (folder / ".tox/serve/bin/activate").touch()
    (tenants,) = [block.text for block in blocks("toml") if "[tenants.alice]" in block.text]
    (folder / "tenants.toml").write_text(tenants)
    shutil.copy(ROOT / "tests/data/localhost.pem", folder / "chain.pem")
    shutil.copy(ROOT / "tests/data/localhost.key", folder / "key.pem")
    (folder / "key.pem").chmod(0o600)
    paths = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": f"{folder / 'site'}:{ROOT}"}
    return Shell(folder, {**os.environ, **paths, "LLMSERVE_PORT": "0", "TMPDIR": str(folder)})


@pytest.fixture(scope="session")
def here(shell):
    """Return a function that puts the addresses of running servers in the place of those in a text."""
    with (
        shell.serving("llmserve serve --engine-arg time_scale=0.1") as http,
        shell.serving("llmserve socket --listen tcp://127.0.0.1:0") as socket,
    ):

        def replace(text):
            return re.sub(r"(localhost|127\.0\.0\.1):8000", http, text).replace("127.0.0.1:9000", socket)

        yield replace
