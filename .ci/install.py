"""Run pip install for tox: the locks' pins with `--no-deps`, and torch's CPU build.

torch cannot be in a lock with hashes (see .ci/lock.py). A CPU build of the pinned release comes
from pip's own configuration where that offers one, and otherwise from PyTorch's index of CPU
wheels.
"""

import pathlib
import platform
import subprocess
import sys

PYTHONS = [(3, 11), (3, 12), (3, 13)]
MACHINES = ["x86_64", "aarch64"]
# Python compiles modules at their first import. Compiling all of torch, vLLM and transformers took
# 60 of 146 s.
PIP = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--disable-pip-version-check"]
TORCH = "torch==2.13.0+cpu"
PYTORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def objection(version: tuple, implementation: str, system: str, machine: str) -> str:
    """Return why the locks cannot be installed here, in one line, or "" where they can."""
    if implementation == "CPython" and system == "Linux" and tuple(version[:2]) in PYTHONS and machine in MACHINES:
        return ""
    found = f"{implementation} {version[0]}.{version[1]} on {system} {machine}"
    return f"llmserve's locks are for CPython 3.11, 3.12 and 3.13 on Linux x86_64 and aarch64, and this is {found}: see README.md, Install"


def install_torch() -> None:
    """Install from pip's configuration, or else from PyTorch's index."""
    print(f"installing {TORCH}", flush=True)
    if subprocess.run([*PIP, "--quiet", "--only-binary=:all:", TORCH], capture_output=True, check=False).returncode:
        subprocess.run([*PIP, "--index-url", PYTORCH_INDEX, TORCH], check=True)


def main(arguments: list) -> None:
    message = objection(sys.version_info, platform.python_implementation(), platform.system(), platform.machine())
    if message:
        sys.exit(message)
    if any(pathlib.Path(argument).name == "requirements-cpu.lock" for argument in arguments):
        install_torch()
    subprocess.run([*PIP, *arguments], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
