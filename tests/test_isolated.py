"""What `.ci/run` hides from the tests, and what it removes after them."""

import os
import pathlib
import subprocess
import sys

import pytest

ISOLATED = pathlib.Path(__file__).parent.parent / ".ci/isolated.py"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make the namespaces")


@pytest.fixture
def run(tmp_path):
    """Run a shell command in a separate checkout, isolated from a home that has a cache."""
    home, tree = tmp_path / "home", tmp_path / "tree"
    (home / ".cache/llmserve").mkdir(parents=True)
    tree.mkdir()
    environment = {**os.environ, "HOME": str(home), "OUTSIDE": str(home), "LLMSERVE_CACHE": str(home / ".cache/llmserve")}
    subprocess.run(["git", "init", "-q", tree], check=True, env=environment)

    def run(command):
        words = [sys.executable, ISOLATED, "bash", "-c", command]
        return subprocess.run(words, cwd=tree, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("true", 0),
        ("exit 3", 3),
        ("kill -9 $$", 137),
        ('test ! -e ~/.cache/llmserve && test -z "$LLMSERVE_CACHE"', 0),
        ("ls ~/.cache/llmserve", 2),
        ("touch ~/x /tmp/x", 0),
    ],
)
def test_a_command_has_a_home_of_its_own(run, command, status):
    finished = run(command)
    assert finished.returncode == status, finished.stderr
    assert "left behind" not in finished.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("touch /dev/shm/x", "left behind: /dev/shm/x"),
        ("touch /var/tmp/x", "left behind: /var/tmp/x"),
        ("touch x", "left behind: ?? x"),
        ('touch "$OUTSIDE/x"', "cannot touch"),
    ],
)
def test_what_a_command_leaves_outside_of_it_is_an_error(run, command, message):
    finished = run(command)
    assert finished.returncode == 1
    assert message in finished.stderr


def test_a_process_that_a_command_leaves_is_named_and_ends(run):
    finished = run("(setsid sleep 100 &)")
    assert finished.returncode == 0
    assert "still running: process" in finished.stderr
    assert "sleep 100" in finished.stderr
