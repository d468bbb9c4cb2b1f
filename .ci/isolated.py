"""Run a command as on a machine that has never run it, and fail if it leaves anything behind.

    python3 .ci/isolated.py COMMAND [ARGUMENT ...]

The command gets a new HOME, new XDG folders, new temporary folders and a new pip cache, and no
LLMSERVE_* variable. It runs in new mount and process namespaces, which need root: the caller's home
is read-only there, and only the command's own processes exist. The exit status is the command's. If
that is 0, it is 1 if the command left a file in /dev/shm, /var/tmp or the working tree (unless git
ignores it). Remaining processes are named, and end.
"""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

TMP = "/tmp"
SHARED = ("/dev/shm", "/var/tmp")
XDG = ("CACHE", "CONFIG", "DATA", "STATE")
# A process may need some seconds to end after a signal.
END_SECONDS = 5.0


def main(command: list[str]) -> int:
    """Run outside of the namespaces."""
    if os.geteuid() != 0:
        sys.exit("isolated.py creates namespaces, which requires root: run it as root or in a container")
    before = _untracked()
    with tempfile.TemporaryDirectory(prefix="isolated-") as folder:
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        status = subprocess.run([*unshare, sys.executable, __file__, "--inside", folder, *command], check=False).returncode
    return _judge(status, sorted(_untracked() - before))


def inside(folder: str, command: list[str]) -> int:
    """Run as the first process of the namespaces, which inherits all orphans."""
    _mount(folder)
    child = subprocess.Popen(command, env=_environment())
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    status = _reap(child.pid)
    for process in _processes():
        # Not an error, because the process ends with the namespace.
        print(f"isolated.py: still running: {process}", file=sys.stderr)
    return _judge(status, [str(path) for top in SHARED for path in pathlib.Path(top).iterdir()])


def _judge(status: int, left: list[str]) -> int:
    for thing in left:
        print(f"isolated.py: left behind: {thing}", file=sys.stderr)
    return status or bool(left)


def _untracked() -> set[str]:
    """Return the paths that git would add."""
    run = subprocess.run(["git", "status", "--porcelain", "--untracked-files=all"], check=True, capture_output=True, text=True)
    return set(run.stdout.splitlines())


def _mount(folder: str) -> None:
    tree = os.open(".", os.O_PATH)
    home = os.path.expanduser("~")
    _run("mount", "--bind", home, home)
    _run("mount", "-o", "remount,bind,ro", home)
    for path in SHARED:
        _run("mount", "-t", "tmpfs", "tmpfs", path)
    _run("mount", "--bind", folder, TMP)
    os.chmod(TMP, 0o1777)
    # The working tree may lie in a folder that is now covered or read-only.
    path = os.getcwd()
    os.makedirs(path, exist_ok=True)
    # Without canonicalization, because the link's path now leads elsewhere, and only the link leads
    # to the folder.
    _run("mount", "--no-canonicalize", "--bind", f"/proc/self/fd/{tree}", path, pass_fds=[tree])
    _run("mount", "-o", "remount,bind,rw", path)
    os.chdir(path)


def _run(*command: str, pass_fds: list[int] | None = None) -> None:
    subprocess.run(command, check=True, pass_fds=pass_fds or [])


def _environment() -> dict[str, str]:
    home = pathlib.Path(TMP, "home")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLMSERVE_", "XDG_"))}
    folders = {f"XDG_{name}_HOME": home / name.lower() for name in XDG} | {"PIP_CACHE_DIR": home / "pip", "HOME": home, "TMPDIR": TMP}
    home.mkdir()
    return kept | {name: str(path) for name, path in folders.items()}


def _reap(pid: int) -> int:
    """Wait for the child and for orphans; return the child's exit status as a shell does."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _processes() -> list[str]:
    """Return the processes that have not ended within END_SECONDS."""
    deadline = time.monotonic() + END_SECONDS
    while (found := _living()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _living() -> list[str]:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if folder.name != str(os.getpid()):
            found.append(f"process {folder.name}: {words[:200]}")
    return found


if __name__ == "__main__":
    _, *arguments = sys.argv
    if arguments[:1] == ["--inside"]:
        sys.exit(inside(arguments[1], arguments[2:]))
    sys.exit(main(arguments))
