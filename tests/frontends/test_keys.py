import os
import stat
from datetime import date

import aiohttp
import anyio
import pytest
from http_support import running_server
from hypothesis import given
from hypothesis import strategies as st
from program_support import program
from socket_support import running_socket

from frontends.access.api_keys import PREFIX, Key, Keys, add_key, digest, read_keys
from frontends.access.control import Access
from frontends.access.keys_command import keys_command
from frontends.http.authentication import PAGES
from frontends.net.file_watch import LOOK_SECONDS
from frontends.rawsocket import frames
from frontends.rawsocket.frames import Hello, Open
from llmserve import ConfigurationError, ManagerConfig, RestartConfig, TenantLimits, TenantTable
from llmserve.engines.simulated.engine import Fault

pytestmark = pytest.mark.anyio

DIGEST = digest("one").hex()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[keys", "TOML"),
        ("other = 1", "'other'"),
        ("keys = 1", "keys"),
        ("[keys.a]", "keys.a.sha256"),
        ('[keys.a]\nsha256 = "abc"', "keys.a.sha256"),
        (f'[keys.a]\nsha256 = "{DIGEST.upper()}"', "keys.a.sha256"),
        (f'[keys.a]\nsha256 = "{DIGEST}"\nlimit = 3', "'limit'"),
        (f'[keys.a]\nsha256 = "{DIGEST}"\ntenant = ""', "keys.a.tenant"),
        (f'[keys.a]\nsha256 = "{DIGEST}"\ntenant = "a b"', "keys.a.tenant"),
        (f'[keys."a/b"]\nsha256 = "{DIGEST}"', "keys.a/b"),
        (f'[keys.a]\nsha256 = "{DIGEST}"\nexpires = "soon"', "keys.a.expires"),
        (f'[keys.a]\nsha256 = "{DIGEST}"\nconcurrency = 0', "keys.a.concurrency"),
        (f'[keys.a]\nsha256 = "{DIGEST}"\n[keys.b]\nsha256 = "{DIGEST}"', "the same"),
    ],
)
def test_the_error_for_an_invalid_file_names_the_problem(text, named):
    with pytest.raises(ConfigurationError, match=named.replace("[", r"\[")):
        Keys.parse(text)


@given(st.lists(st.text(min_size=1), unique=True, max_size=5), st.text())
def test_only_the_key_itself_is_found(secrets, other):
    keys = Keys(Key(f"k{number}", digest(secret), "t") for number, secret in enumerate(secrets))
    for number, secret in enumerate(secrets):
        assert keys.find(secret, 0).id == f"k{number}"
    if other not in secrets:
        assert keys.find(other, 0) is None


def test_a_key_ends_on_its_day():
    keys = Keys.parse(f'[keys.a]\nsha256 = "{DIGEST}"\nexpires = 2027-01-01')
    (key,) = keys
    assert keys.find("one", key.expires - 1) == key
    assert keys.find("one", key.expires) is None
    assert keys.holds(key, key.expires - 1)
    assert not keys.holds(key, key.expires)
    zoned = Keys.parse(f'[keys.a]\nsha256 = "{DIGEST}"\nexpires = 2027-01-01T01:00:00+01:00')
    assert next(iter(zoned)).expires == key.expires


def test_a_key_s_limits_are_its_tenant_s():
    keys = Keys.parse(f'[keys.a]\nsha256 = "{DIGEST}"\ntenant = "t"\nconcurrency = 3')
    table = keys.tenants(TenantTable({"u": TenantLimits(weight=2)}))
    assert table.of("t") == TenantLimits(concurrency=3)
    assert table.of("u") == TenantLimits(weight=2)
    with pytest.raises(ConfigurationError, match="'t'"):
        keys.tenants(TenantTable({"t": TenantLimits()}))
    with pytest.raises(ConfigurationError, match=r"keys\.b"):
        Keys([*keys, Key("b", digest("two"), "t", limits=TenantLimits(concurrency=4))]).tenants(TenantTable())


def test_whose_key_is_known_is_known_where_strangers_are_refused():
    table = Keys([Key("a", digest("one"), "a")]).tenants(TenantTable(default=None))
    assert table.of("a") == TenantLimits()
    assert table.of("b") is None


def test_a_key_is_shown_once_and_kept_as_a_hash(tmp_path, capsys):
    path = tmp_path / "keys.toml"
    assert keys_command(["add", str(path), "a", "--tenant", "t", "--expires", "2030-02-01", "--concurrency", "2", "--weight", "1.5"]) == 0
    secret = capsys.readouterr().out.strip()
    assert secret.startswith(PREFIX)
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys.toml"]
    keys_command(["add", str(path), "b"])
    found = read_keys(path).find(secret, 0)
    assert (found.id, found.tenant, found.limits) == ("a", "t", TenantLimits(weight=1.5, concurrency=2))
    capsys.readouterr()
    keys_command(["list", str(path)])
    assert capsys.readouterr().out == "a: tenant t, until 2030-02-01 00:00 UTC\nb: tenant b\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["a"], "already"), (["b/c"], "b/c"), (["b", "--tenant", "x y"], "tenant"), (["b", "--concurrency", "0"], "concurrency")],
)
def test_a_key_that_cannot_be_added_leaves_the_file_unchanged(tmp_path, capsys, arguments, named):
    path = tmp_path / "keys.toml"
    add_key(path, "a", {"expires": date(2030, 1, 1)})
    before = path.read_text()
    with pytest.raises(SystemExit) as end:
        keys_command(["add", str(path), *arguments])
    assert end.value.code == 2
    assert named in capsys.readouterr().err
    assert path.read_text() == before


def test_a_file_that_others_can_write_is_refused(tmp_path):
    path = tmp_path / "keys.toml"
    add_key(path, "a", {})
    path.chmod(0o666)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        read_keys(path)


# Over HTTP

ALICE, BOB = "lls_alice", "lls_bob"
KEYS = Keys([Key("alice-1", digest(ALICE), "alice"), Key("bob-1", digest(BOB), "bob"), Key("old", digest("lls_old"), "old", expires=1.0)])
BODY = {"prompt": "hi", "max_tokens": 2}


def bearer(secret):
    return {"Authorization": f"Bearer {secret}"}


async def test_every_route_but_the_probes_and_the_page_s_files_wants_a_key():
    async with running_server(app={"access": Access(KEYS)}) as server:
        from frontends.http.app import build_app

        app = build_app(server.manager, "sim")
        routes = {
            (route.method, route.resource.canonical.replace("{model}", "sim").replace("{name}", "main.js")) for route in app.router.routes()
        }
        assert len(routes) > 10
        for method, path in {*routes, ("GET", "/no/such/path"), ("POST", "/health/live"), ("GET", "/%6detrics"), ("GET", "/v1//metrics")}:
            async with server.session.request(method, path) as response:
                probe = path == "/ping" or (path in ("/health", "/health/live", "/health/ready") and method in ("GET", "HEAD"))
                if probe or path in PAGES or path == "/page/main.js":
                    assert response.status == 200
                else:
                    assert response.status == 401, (method, path)
                    assert response.headers["WWW-Authenticate"] == "Bearer"


async def test_probes_without_a_key_learn_no_detail_of_a_failure():
    """A probe without a key gets only the state: the engine's message may have paths and names."""
    config = ManagerConfig(drain_timeout=1, restart=RestartConfig(most=0))
    faults = (Fault(step=1, kind="die"),)
    async with running_server(config=config, app={"access": Access(KEYS)}, faults=faults) as server:
        await server.post("/v1/completions", BODY, headers=bearer(ALICE))
        with anyio.fail_after(5):
            while server.manager.state != "failed":
                await anyio.sleep(0.001)
        for path in ("/health", "/health/live", "/health/ready"):
            async with server.session.get(path) as response:
                assert response.status == 503
                assert (await response.json())["error"] == {
                    "message": "the engine has failed", "type": "service_unavailable", "param": None, "code": "engine_dead",
                }  # fmt: skip


WRONG = (
    {}, {"Authorization": ""}, {"Authorization": "Bearer"}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer  {ALICE}"},
    {"Authorization": f"Basic {ALICE}"}, {"Authorization": ALICE}, bearer("x" * 7000), bearer(ALICE[:-1]), bearer(ALICE + "\t."),
    bearer(ALICE + "x"), bearer("ällice"), bearer("lls_old"), bearer(ALICE.upper()), {"X-Api-Key": ALICE[:-1]},
    {"X-Api-Key": ""}, {"X-Api-Key": f"Bearer {ALICE}"}, {"X-Api-Key": "ällice"},
)  # fmt: skip


async def test_all_wrong_keys_get_the_same_answer_before_the_body_is_read():
    async with running_server(app={"access": Access(KEYS)}) as server:
        answers = set()
        for headers in WRONG:
            for path in ("/v1/completions", "/v1/completions?key=" + ALICE):
                async with server.session.post(path, data=b"not json", headers=headers) as response:
                    answers.add((response.status, await response.text()))
        assert len(answers) == 1
        assert answers.pop()[0] == 401
        from multidict import CIMultiDict

        twice = CIMultiDict([("Authorization", f"Bearer {ALICE}"), ("Authorization", f"Bearer {ALICE}")])
        async with server.session.post("/v1/completions", json=BODY, headers=twice) as response:
            assert response.status in (400, 401)


async def test_a_key_determines_the_tenant_regardless_of_the_request():
    async with running_server(app={"access": Access(KEYS)}) as server:
        status, _, _ = await server.post("/v1/completions", {**BODY, "user": "bob"}, headers=bearer(ALICE))
        assert status == 200
        status, _, _ = await server.post("/generate", {**BODY, "tenant": "alice"}, headers=bearer(ALICE))
        assert status == 200
        status, answer, _ = await server.post("/generate", {**BODY, "tenant": "bob"}, headers=bearer(ALICE))
        assert (status, answer["error"]["param"]) == (400, "tenant")
        assert server.manager.metrics()["requests"]["completed"] == 2


async def test_revoking_a_key_ends_no_open_request(tmp_path):
    """With both protocols, an open stream continues and the next request is refused."""
    access = Access(KEYS)
    async with running_server(app={"access": access}, time_scale=0.05) as server:
        body = {"prompt": "hi", "max_tokens": 30, "ignore_eos": True, "stream": True}
        async with server.session.post("/v1/completions", json=body, headers=bearer(ALICE)) as response:
            await response.content.readline()
            access.keys = Keys([])
            assert (await response.text()).endswith("data: [DONE]\n\n")
        status, _, _ = await server.post("/v1/completions", BODY, headers=bearer(ALICE))
        assert status == 401


async def test_on_a_raw_socket_a_key_is_sent_once_and_checked_for_each_stream():
    access = Access(KEYS)
    async with running_socket(access=access, time_scale=0.5) as served:
        for wrong in (None, "", "lls_carol", "lls_old"):
            async with served.raw(greet=False) as raw:
                raw.send(Hello(frames.VERSION, wrong))
                assert (await raw.read()).kind == "FrameError"
        async with served.raw(greet=False) as raw:
            raw.send(Hello(frames.VERSION, ALICE))
            await raw.read()
            from msgspec import Raw, msgpack

            raw.send(Open(1, 1000, Raw(msgpack.encode(BODY))))
            await raw.read_until(frames.End)
            raw.send(Open(2, 1000, Raw(msgpack.encode({**BODY, "tenant": "bob"}))))
            assert (await raw.read()).details["param"] == "tenant"
            raw.send(Open(4, 1000, Raw(msgpack.encode({**BODY, "max_tokens": 30, "ignore_eos": True}))))
            await raw.read_until(frames.Started)
            access.keys = Keys([])
            raw.send(Open(3, 1000, Raw(msgpack.encode(BODY))))
            # The connection and its open streams continue, as over HTTP.
            found = await raw.read_until(frames.End)
            (error,) = [message for message in found if isinstance(message, frames.Error)]
            assert (error.id, error.kind, error.details["param"]) == (3, "InvalidRequest", "key")
            assert found[-1].usage.completion_tokens == 30


# As a program


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_the_file_is_read_again_when_it_changes(tmp_path, workers):
    path = tmp_path / "keys.toml"
    first = add_key(path, "first", {"concurrency": 5})

    async with program(tmp_path, "--api-keys", str(path), "--workers", workers) as (process, url, _):
        # Open connections are distributed over the workers, so each worker gets a request.
        async with aiohttp.ClientSession(url) as one, aiohttp.ClientSession(url) as two:

            async def statuses(key):
                found = set()
                for session in (one, two):
                    async with session.post("/v1/completions", json=BODY, headers=bearer(key)) as response:
                        await response.read()
                        found.add(response.status)
                return found

            assert await statuses(first) == {200}
            assert await statuses("lls_other") == {401}
            second = add_key(path, "second", {})
            with anyio.fail_after(20):
                while await statuses(second) != {200}:
                    await anyio.sleep(0.05)
            path.unlink()
            os.mkfifo(path)
            with anyio.fail_after(20):
                while "not changed" not in (line := (await process.stderr.readline()).decode()):
                    assert line
            # Workers do not log it. Each worker has had the time to apply a change.
            await anyio.sleep(LOOK_SECONDS * 3)
            assert await statuses(second) == {200}


async def test_with_keys_other_machines_may_reach_it(tmp_path):
    path = tmp_path / "keys.toml"
    add_key(path, "a", {})
    async with program(tmp_path, "--host", "0.0.0.0", "--api-keys", str(path)) as (_, url, _):
        assert url.startswith("http://0.0.0.0:")


async def test_a_key_file_and_a_key_variable_exclude_each_other(tmp_path, monkeypatch):
    path = tmp_path / "keys.toml"
    add_key(path, "a", {})
    monkeypatch.setenv("LLMSERVE_API_KEY", "x")
    with pytest.raises(AssertionError, match="LLMSERVE_API_KEY"):
        async with program(tmp_path, "--api-keys", str(path)):
            pass
