"""What `.ci/install.py` accepts: the platforms of the locks, and an error of one line elsewhere."""

import importlib.util
import pathlib
import subprocess
import sys
from types import ModuleType

import pytest

INSTALL = pathlib.Path(__file__).parent.parent / ".ci/install.py"


@pytest.fixture(scope="module")
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", INSTALL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13)])
def test_the_platforms_of_the_locks_are_accepted(install: ModuleType, version: tuple[int, int], machine: str) -> None:
    assert install.objection((*version, 1, "final", 0), "CPython", "Linux", machine) == ""


@pytest.mark.parametrize(
    ("platform", "named"),
    [
        (((3, 10, 9), "CPython", "Linux", "x86_64"), "this is CPython 3.10 on Linux x86_64"),
        (((3, 14, 0), "CPython", "Linux", "x86_64"), "this is CPython 3.14 on Linux x86_64"),
        (((3, 12, 1), "PyPy", "Linux", "x86_64"), "this is PyPy 3.12 on Linux x86_64"),
        (((3, 12, 1), "CPython", "Darwin", "arm64"), "this is CPython 3.12 on Darwin arm64"),
        (((3, 12, 1), "CPython", "Windows", "AMD64"), "this is CPython 3.12 on Windows AMD64"),
        (((3, 12, 1), "CPython", "Linux", "riscv64"), "this is CPython 3.12 on Linux riscv64"),
    ],
)
def test_other_platforms_get_one_line_that_names_both(install: ModuleType, platform: tuple[object, ...], named: str) -> None:
    message = install.objection(*platform)
    assert named in message
    assert "CPython 3.11, 3.12 and 3.13 on Linux x86_64 and aarch64" in message
    assert "\n" not in message


def test_the_installation_ends_with_that_line_before_pip_starts() -> None:
    program = f"import platform, runpy, sys; platform.machine = lambda: 'riscv64'; runpy.run_path({str(INSTALL)!r}, run_name='__main__')"
    ran = subprocess.run([sys.executable, "-c", program, "-r", "no-such.lock"], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stdout == ""
    (line,) = ran.stderr.splitlines()
    assert line.startswith("llmserve's locks are for")
