"""The commands of docs/deploy run on the simulated engine: start, probes, reload and end, as the files say."""

import configparser
import contextlib
import json
import os
import pathlib
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

import pytest
import yaml
from support.processes import free_port

from frontends.access.api_keys import add_key

pytestmark = pytest.mark.operations
ROOT = pathlib.Path(__file__).parent.parent.parent
DEPLOY = ROOT / "docs" / "deploy"
PATIENCE = 60
# Replaces what no machine without a GPU has. The rest is as in the files.
SIMULATED = {"LLMSERVE_ENGINE": "simulated", "LLMSERVE_MODEL": "sim"}
# The folders in EMPTY are empty, as with ProtectHome=yes, except for those in SHOWN: the interpreter of the tests may be there.
# Only the folders in WRITABLE can be written, as with ProtectSystem=strict and the unit's folders.
RESTRICTED = """
set -e
for folder in $SHOWN; do mkdir -p "$KEPT$folder"; mount --rbind "$folder" "$KEPT$folder"; done
for folder in $EMPTY; do mount -t tmpfs -o mode=755 tmpfs "$folder"; done
for folder in $SHOWN; do mkdir -p "$folder"; mount --rbind "$KEPT$folder" "$folder"; done
for folder in $WRITABLE; do mount --bind "$folder" "$folder"; done
while read -r _ point _; do
    case " $WRITABLE " in *" $point "*) continue ;; esac
    case "$point" in /dev|/dev/*|/proc|/proc/*|/sys|/sys/*) continue ;; esac
    mount -o remount,bind,ro "$point" || mountpoint -q "$point" || true
done < /proc/self/mounts
exec setpriv --reuid "$OWNER" --regid "$OWNER" --clear-groups --no-new-privs --bounding-set -all --inh-caps -all "$@"
"""


@pytest.fixture
def folder():
    """Yield a folder that every user may read, with `llmserve`, `python` and a file of keys."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="llmserve-deploy-"))
    path.chmod(0o755)
    (path / "llmserve").write_text(f'#!/bin/sh\nexec {sys.executable} -c "from frontends.cli.main import main; main()" "$@"\n')
    (path / "llmserve").chmod(0o755)
    (path / "python").symlink_to(sys.executable)
    yield path
    shutil.rmtree(path)


class Server:
    """A server that runs as a file of docs/deploy says."""

    def __init__(self, folder, command, environment, user=None):
        self.port, self.key = free_port(), add_key(folder / "keys.toml", "alice", {})
        if user is not None:
            shutil.chown(folder / "keys.toml", user)
        self._output = (folder / "output").open("wb")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("LLMSERVE_")},
            "PATH": f"{folder}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "LLMSERVE_CACHE": str(folder / "cache"),
            **environment,
            **SIMULATED,
            "LLMSERVE_PORT": str(self.port),
        }
        self.process = subprocess.Popen(command, env=self.environment, stdout=self._output, stderr=subprocess.STDOUT, cwd="/")
        self.output = folder / "output"

    def ask(self, path, body=None):
        """Return the status and the text of an answer; status 0 while nothing listens."""
        data = None if body is None else json.dumps(body).encode()
        # The probes of the files send no key.
        key = {} if path.startswith("/health") else {"Authorization": f"Bearer {self.key}"}
        headers = {"Content-Type": "application/json"} | key
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def generate(self, max_tokens):
        return self.ask("/generate", {"prompt": "hi", "max_tokens": max_tokens, "ignore_eos": True})

    def wait(self, condition, seconds=PATIENCE):
        """Wait until a condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < end, self.output.read_text()
            time.sleep(0.05)

    def is_ready(self):
        return self.ask("/health/ready")[0] == 200

    def ends(self, seconds):
        """Return the exit code, within the time that the file gives the server."""
        return self.process.wait(seconds)

    def close(self):
        self.process.kill()
        self.process.wait()
        self._output.close()


@contextlib.contextmanager
def running(*arguments, **more):
    server = Server(*arguments, **more)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def open_request(server):
    """Yield while a request of 200 tokens runs, which must get its whole answer."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(server.generate(200)))
    thread.start()
    server.wait(lambda: json.loads(server.ask("/metrics.json")[1])["admission"]["running"] == 1)
    yield
    thread.join(PATIENCE)
    assert [status for status, _ in answers] == [200]
    assert json.loads(answers[0][1])


def closed(path):
    """Return the first folder above a path that other users cannot enter; None if there is none."""
    return next((parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001), None)


def documents(name):
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def located(words, folder):
    return [word.replace("/etc/llmserve", str(folder)) for word in words]


def read_unit():
    """Return the section [Service] of the unit."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read(DEPLOY / "llmserve.service")
    return unit["Service"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give up its rights as systemd does")
def test_the_unit_s_command_runs_as_an_unprivileged_user_on_a_read_only_system(folder):
    service = read_unit()
    owner = pwd.getpwnam("nobody")
    writable = {name: folder / name for name in ("cache", "logs", "tmp")}
    for path in writable.values():
        path.mkdir()
        os.chown(path, owner.pw_uid, owner.pw_gid)
    changes = {"/etc/llmserve": folder, "/var/log/llmserve": folder / "logs", "/var/cache/llmserve": folder / "cache"}
    assert (service["LogsDirectory"], service["CacheDirectory"], service["ProtectSystem"]) == ("llmserve", "llmserve", "strict")

    def placed(text):
        for old, new in changes.items():
            text = text.replace(old, str(new))
        return text

    lines = (DEPLOY / service["EnvironmentFile"].rpartition("/")[2]).read_text().splitlines()
    environment = dict(placed(line).split("=", 1) for line in [*lines, service["Environment"]] if line and not line.startswith("#"))
    settings = folder / "llmserve.toml"
    settings.write_text("max-tokens = 4")
    environment |= {"LLMSERVE_CONFIG": str(settings), "TMPDIR": str(writable["tmp"])}
    needed = [pathlib.Path(path) for path in (sys.base_prefix, sys.prefix, ROOT)]
    empty = {pathlib.Path("/root"), pathlib.Path("/home"), *filter(None, map(closed, needed))}
    shown = [path for path in needed if not empty.isdisjoint(path.parents)]
    environment |= {"EMPTY": " ".join(map(str, empty)), "SHOWN": " ".join(map(str, shown)), "KEPT": str(folder / "kept")}
    environment |= {"WRITABLE": " ".join(map(str, writable.values())), "OWNER": str(owner.pw_uid)}
    command = shlex.split(service["ExecStart"].replace("/opt/llmserve/bin", str(folder)))
    wrapped = ["unshare", "--mount", "--propagation", "private", "sh", "-c", RESTRICTED, "sh", *command]
    with running(folder, wrapped, environment, user="nobody") as server:
        server.wait(server.is_ready)
        status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
        for line in (rf"Uid:\s+{owner.pw_uid}\s", r"NoNewPrivs:\s+1\b", r"CapBnd:\s+0+\n", r"CapEff:\s+0+\n"):
            assert re.search(line, status), status
        mounts = pathlib.Path(f"/proc/{server.process.pid}/mounts").read_text()
        assert re.search(r"^\S+ / \S+ ro[ ,]", mounts, re.MULTILINE)
        assert server.generate(4)[0] == 200
        assert server.generate(5)[0] == 400
        settings.write_text("max-tokens = 5")
        subprocess.run(shlex.split(service["ExecReload"].replace("$MAINPID", str(server.process.pid))), check=True)
        server.wait(lambda: server.generate(5)[0] == 200)
        server.process.send_signal(signal.SIGTERM)
        assert server.ends(float(service["TimeoutStopSec"])) == 0
    requests = (writable["logs"] / "requests.jsonl").read_text().splitlines()
    assert {json.loads(line)["key"] for line in requests} == {"alice"}


def test_the_compose_file_s_command_and_health_check(folder):
    service = documents("compose.yaml")[0]["services"]["llmserve"]
    command = located([*service["entrypoint"], *service["command"]], folder)
    kind, *words = service["healthcheck"]["test"]
    assert kind == "CMD"
    with running(folder, command, {**service["environment"], "LLMSERVE_ENGINE_ARG": "start_seconds=2 step_seconds=0.01"}) as server:
        check = [word.replace(":8000", f":{server.port}") for word in words]

        def is_healthy():
            return not subprocess.run(check, env=server.environment, capture_output=True, timeout=PATIENCE, check=False).returncode

        server.wait(lambda: server.ask("/health/live")[0] == 200)
        assert not is_healthy()
        server.wait(is_healthy)
        with open_request(server):
            server.process.send_signal(signal.SIGTERM)
            assert not is_healthy()
        assert re.fullmatch(r"\d+m", service["stop_grace_period"])
        assert server.ends(60 * float(service["stop_grace_period"].removesuffix("m"))) == 0
        # The request log goes to standard output.
        assert '"key":"alice"' in server.output.read_text()


def test_the_pod_s_command_its_probes_and_its_end(folder):
    pod = documents("kubernetes.yaml")[2]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    command = located([*container["command"], *container["args"]], folder)
    environment = {one["name"]: one["value"] for one in container["env"]}
    assert "lifecycle" not in container

    def probe(server, name):
        return 200 <= server.ask(container[name]["httpGet"]["path"])[0] < 400

    with running(folder, command, {**environment, "LLMSERVE_ENGINE_ARG": "start_seconds=2 step_seconds=0.01"}) as server:
        startup = container["startupProbe"]
        server.wait(lambda: server.ask("/health/live")[0] == 200)
        assert not probe(server, "startupProbe")
        server.wait(lambda: probe(server, "startupProbe"), startup["periodSeconds"] * startup["failureThreshold"])
        assert probe(server, "readinessProbe")
        assert probe(server, "livenessProbe")
        with open_request(server):
            server.process.send_signal(signal.SIGTERM)
            server.wait(lambda: not probe(server, "readinessProbe"))
            # Balancers do not know yet that the pod ends: it serves on, and is not restarted.
            assert probe(server, "livenessProbe")
            assert server.generate(2)[0] == 200
        assert server.ends(pod["terminationGracePeriodSeconds"]) == 0
        lines = [json.loads(line) for line in server.output.read_text().splitlines()]
        assert {line["key"] for line in lines if "key" in line} == {"alice"}
        assert any(line.get("stage") == "leaving" for line in lines)
