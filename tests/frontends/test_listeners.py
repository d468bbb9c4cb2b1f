"""Listeners: address families, several hosts, permissions of unix sockets, printed addresses."""

import asyncio
import os
import re
import signal
import socket
import stat
import sys
import tempfile
from pathlib import Path

import anyio
import pytest
from program_support import MODULE, SOCKET, fetch, program

from frontends.net import listeners
from frontends.net.acceptor import accept_one, accept_waiting
from frontends.net.listeners import CannotListen, UnixAccess, authority, bind_all, bind_unix
from frontends.rawsocket.addresses import parse_address
from frontends.rawsocket.client import SocketClient


def has_ipv6():
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


def test_an_ipv6_address_has_brackets():
    assert authority("::1", 80) == "[::1]:80"
    assert authority("127.0.0.1", 80) == "127.0.0.1:80"
    assert str(parse_address("tcp://[::1]:80")) == "tcp://[::1]:80"


@needs_ipv6
@pytest.mark.parametrize(
    ("hosts", "reached", "refused"),
    [
        (["::1"], ["::1"], ["127.0.0.1"]),
        (["::"], ["::1", "127.0.0.1"], []),
        (["0.0.0.0"], ["127.0.0.1"], ["::1"]),
        (["127.0.0.1", "::1"], ["::1", "127.0.0.1"], []),
    ],
)
def test_each_host_is_reached_on_one_port_and_no_other_is(hosts, reached, refused):
    bound = bind_all(hosts, 0)
    try:
        (port,) = {listener.getsockname()[1] for listener in bound}
        for host in reached:
            with socket.create_connection((host, port), timeout=5):
                pass
        # Limits and logs use the IPv4 address of an IPv4 client.
        assert {listener.family for listener in bound if listener.getsockname()[0] != "::"} <= {socket.AF_INET, socket.AF_INET6}
        assert all(listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) for listener in bound if listener.family == socket.AF_INET6)
        for host in refused:
            with pytest.raises(OSError, match="refused"):
                socket.create_connection((host, port), timeout=5)
    finally:
        for listener in bound:
            listener.close()


@pytest.mark.parametrize("hosts", [["127.0.0.1", "127.0.0.1"], ["127.0.0.1", "localhost"], ["localhost", "127.0.0.1"], ["::", "0.0.0.0"]])
def test_an_address_that_two_hosts_have_is_bound_once(hosts):
    bound = bind_all(hosts, 0)
    addresses = [listener.getsockname()[0] for listener in bound]
    for listener in bound:
        listener.close()
    assert len(addresses) == len(set(addresses))
    assert {"127.0.0.1", "0.0.0.0"} & set(addresses)


def test_port_0_picks_a_port_that_is_free_on_all_hosts(monkeypatch):
    """A port that is free on the first host is in use on the second one, twice."""
    real, taken = listeners.bind, []

    def bind(host, port, **more):
        if host == "127.0.0.2" and len(taken) < 2:
            taken.append(port)
            raise OSError(98, "Address already in use")
        return real(host, port, **more)

    monkeypatch.setattr(listeners, "bind", bind)
    bound = bind_all(["127.0.0.1", "127.0.0.2"], 0)
    assert [listener.getsockname()[0] for listener in bound] == ["127.0.0.1", "127.0.0.2"]
    assert len({listener.getsockname()[1] for listener in bound}) == 1
    for listener in bound:
        listener.close()


def test_a_family_that_is_absent_is_left_out_where_the_host_has_another(monkeypatch):
    real = listeners.bind

    def bind(host, port, **more):
        if ":" in host:
            raise OSError(99, "Cannot assign requested address")
        return real(host, port, **more)

    monkeypatch.setattr(listeners, "bind", bind)
    (listener,) = bind_all(["::"], 0)
    listener.close()
    with pytest.raises(CannotListen, match=r"\[::1\]:0: Cannot assign"):
        bind_all(["::1"], 0)


def test_an_invalid_host_is_named_and_nothing_stays_open():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(CannotListen, match=f"127.0.0.1:{port}: Address already in use"):
            bind_all(["127.0.0.2", "127.0.0.1"], port)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", port), timeout=5)
    for host in ("a..b", "no-such-host.invalid"):
        with pytest.raises(CannotListen, match=re.escape(host)):
            bind_all([host], 0)


@needs_ipv6
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_server_prints_each_address_with_brackets_and_answers_there(tmp_path, workers):
    hosts = ("--host", "[::1]", "--host", "127.0.0.1", "--workers", workers)
    async with program(tmp_path, *hosts) as (process, _, lines):
        urls = [re.search(r"http://\S+", line)[0] for line in lines if "listening" in line]
        assert [re.sub(r"\d+$", "", url) for url in urls] == ["http://[::1]:", "http://127.0.0.1:"]
        for url in urls:
            assert (await fetch(f"{url}/health"))[0] == 200
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(20):
            assert await process.wait() == 0


@needs_ipv6
async def test_the_socket_server_listens_on_both_families_too(tmp_path):
    module = (*SOCKET, "--insecure", "--listen", "tcp://[::]:0")
    async with program(tmp_path, module=module) as (_, url, _):
        assert url.startswith("tcp://[::]:")
        port = url.rsplit(":", 1)[1]
        for host in ("[::1]", "127.0.0.1"):
            async with SocketClient(f"tcp://{host}:{port}") as client:
                assert client is not None


# Unix sockets


def test_a_unix_socket_has_its_mode_and_its_group(tmp_path):
    for mode, group in ((0o600, None), (0o660, os.getgid()), (0o666, None)):
        path = tmp_path / f"{mode:o}"
        with bind_unix(path, UnixAccess(mode, group)):
            found = os.stat(path)
            assert stat.S_IMODE(found.st_mode) == mode
            assert group is None or found.st_gid == group


@pytest.mark.parametrize(("module", "place"), [((*MODULE, "--port", "0"), "--unix"), (SOCKET, "--listen")])
@pytest.mark.parametrize(("option", "mode"), [(("--unix-group", str(os.getgid())), 0o660), (("--unix-mode", "666"), 0o666)])
async def test_the_options_reach_the_socket_of_each_server(tmp_path, module, place, option, mode):
    path = tmp_path / "socket"
    async with program(tmp_path, place, str(path) if place == "--unix" else f"unix://{path}", *option, module=module):
        assert stat.S_IMODE(os.stat(path).st_mode) == mode


# Run as another user: send /ping over the named socket, and print the answer.
STRANGER = """
import os, socket, sys
os.setgid(65534), os.setgroups([]), os.setuid(65534)
stream = socket.socket(socket.AF_UNIX)
stream.connect(sys.argv[1])
stream.send(b"GET /ping HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
print(stream.recv(20))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
@pytest.mark.parametrize(("mode", "answered"), [("600", False), ("666", True)])
async def test_another_user_is_served_where_the_mode_lets_him_in(tmp_path, mode, answered):
    # Only their owner can use pytest's folders.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        await ask_as_another_user(tmp_path, Path(folder) / "socket", mode, answered)


async def ask_as_another_user(tmp_path, path, mode, answered):
    async with program(tmp_path, "--unix", str(path), "--unix-mode", mode):
        found = await anyio.run_process([sys.executable, "-c", STRANGER, str(path)], check=False)
    assert (b"200 OK" in found.stdout) == answered, found.stderr
    assert (b"PermissionError" in found.stderr) != answered


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--unix-mode", "9"), "not an octal mode"),
        (("--unix-mode", "060"), "not an octal mode"),
        (("--unix-group", "no-such-group"), "no group"),
    ],
)
async def test_a_wrong_mode_or_group_is_an_error(arguments, words):
    found = await anyio.run_process([*MODULE, *arguments], check=False)
    assert found.returncode == 2
    assert words in found.stderr.decode().splitlines()[-1]


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancelled_accept_loses_no_connection(turns):
    """A regression: asyncio's `sock_accept` lost the connection if the task was cancelled at turn 1 or 2."""
    (listener,) = bind_all(["127.0.0.1"], 0)
    listener.setblocking(False)
    with listener:
        task = asyncio.ensure_future(accept_one(listener))
        await asyncio.sleep(0)
        with socket.create_connection(listener.getsockname()):
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            (accepted,) = await asyncio.gather(task, return_exceptions=True)
            found = [accepted] if isinstance(accepted, socket.socket) else list(accept_waiting(listener))
            assert len(found) == 1
            found[0].close()
