"""Operator files with any content: one error at startup, and no change while the server runs."""

import os
import shutil
import ssl
from datetime import UTC, timedelta, timezone
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontends.access.api_keys import Keys, add_key, digest
from frontends.access.control import Access
from frontends.net import file_watch
from frontends.net.tls import TLS
from llmserve import ConfigurationError, TenantLimits, TenantTable

pytestmark = pytest.mark.anyio
DATA = Path(__file__).parent.parent / "data"
KEY = f'[keys.a]\nsha256 = "{digest("one").hex()}"\n'


@pytest.fixture
def anyio_backend():
    return "asyncio"


CONTENTS = {
    "nested": b"a = " + b"[" * 5_000,
    "nested tables": b"a = " + b"{a = " * 5_000,
    "nested keys": b".".join([b"a"] * 5_000) + b" = 1",
    "an integer": b"a = " + b"9" * 5_000,
    "a hexadecimal": b"[tenants.a]\nweight = 0x" + b"f" * 5_000,
    "half": KEY[:-20].encode(),
    "empty": b"",
    "blank": b"\n  \n# nothing\n",
    "not UTF-8": b"\xff\xfe",
    "zeros": b"\0" * 1000,
    "another table": b"[other]\n",
}
FIELDS = ("weight", "concurrency", "tokens_per_minute")
NUMBERS = ["9" * 400, "0x" + "f" * 4_000, "1e400", "inf", "nan", "-1", "0", "1e-320", "1e300", "true", '"1"', "[1]", "2027-01-01"]
for number in NUMBERS:
    for field in FIELDS:
        CONTENTS[f"{field} {number[:12]}"] = f"{KEY}{field} = {number}\n[tenants.b]\n{field} = {number}\n".encode()


def fifo(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def loop(path):
    path.symlink_to(path)


def large(path):
    path.write_bytes(b"")
    os.truncate(path, 2**30)


PLACES = {
    "a FIFO": fifo,
    "a folder": Path.mkdir,
    "a device": device,
    "a loop of links": loop,
    "a gigabyte": large,
    "nothing": lambda path: None,
}


def write(text):
    return lambda path: path.write_bytes(text)


BAD = {**{name: write(text) for name, text in CONTENTS.items()}, **PLACES}


def clear(path):
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


async def said(capfd, words):
    found = ""
    with anyio.fail_after(10):
        while words not in found:
            await anyio.sleep(0.01)
            found += capfd.readouterr().err
    return found


@pytest.mark.parametrize("option", ["api_keys", "tenants"])
@pytest.mark.parametrize("name", BAD)
def test_at_the_start_it_is_one_error(tmp_path, name, option):
    path = tmp_path / "file.toml"
    BAD[name](path)
    with pytest.raises(ConfigurationError) as error:
        Access.open(**{option: path})
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("option", ["api_keys", "tenants"])
async def test_in_a_running_server_it_changes_nothing(tmp_path, monkeypatch, capfd, option):
    """Each invalid file is logged once, and the next valid file takes effect."""
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.02)
    path, good = tmp_path / "file.toml", KEY if option == "api_keys" else "[tenants.a]\nweight = 3\n"
    path.write_text(good)
    access, tables = Access.open(**{option: path}), []
    # An invalid number is found in the same check as other errors.
    table, bad = access.table, {name: place for name, place in BAD.items() if name.split()[0] not in FIELDS}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(access.follow, tables.append)
        for name, place in bad.items():
            clear(path)
            place(path)
            await said(capfd, "access    not changed: ")
            await anyio.sleep(0.05)
            assert "changed" not in capfd.readouterr().err, name
            assert access.table == table, name
            assert option == "tenants" or access.find("one") is not None, name
            clear(path)
            path.write_text(good)
            await said(capfd, "access    reloaded ")
        tasks.cancel_scope.cancel()
    assert tables == [table] * len(bad)


async def test_a_file_that_is_being_saved_is_not_read_before_it_is_complete(tmp_path, monkeypatch, capfd):
    """An editor writes a file piece by piece; the pieces are valid files but never take effect."""
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.02)
    path, left, real = tmp_path / "keys.toml", 20, file_watch.marks
    path.write_text(KEY)
    access, tables = Access.open(api_keys=path), []

    def save_some(paths):
        nonlocal left
        if left:
            left -= 1
            with path.open("a") as file:
                file.write(f'[keys.k{left}]\nsha256 = "{digest(str(left)).hex()}"\n')
        return real(paths)

    async with anyio.create_task_group() as tasks:
        # The file grows between any two looks, on a machine of any speed.
        monkeypatch.setattr(file_watch, "marks", save_some)
        path.write_text("")
        tasks.start_soon(access.follow, tables.append)
        await said(capfd, "reloaded")
        tasks.cancel_scope.cancel()
    assert len(tables) == 1
    assert left == 0
    assert access.find("0") is not None


async def test_an_explicit_line_revokes_all_keys(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.02)
    path = tmp_path / "keys.toml"
    path.write_text(KEY)
    access = Access.open(api_keys=path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(access.follow)
        path.write_text("")
        assert "write the line [keys]" in await said(capfd, "not changed")
        path.write_text("[keys]\n")
        await said(capfd, "reloaded")
        assert access.keys is not None
        assert access.find("one") is None
        tasks.cancel_scope.cancel()


async def test_a_file_that_could_not_be_read_is_tried_again(tmp_path, monkeypatch, capfd):
    """This happens without free descriptors: the file itself does not change afterwards."""
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.02)
    path = tmp_path / "keys.toml"
    path.write_text(KEY)
    access, real, failing = Access.open(api_keys=path), os.open, True

    def fail(name, *arguments, **more):
        if failing and name == path:
            raise OSError(24, "Too many open files")
        return real(name, *arguments, **more)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(access.follow)
        # Patched, because a process without descriptors cannot run a test.
        monkeypatch.setattr(file_watch.os, "open", fail)
        path.write_text(KEY + f'[keys.b]\nsha256 = "{digest("two").hex()}"\n')
        await said(capfd, "not changed: --api-keys")
        await anyio.sleep(0.1)
        assert "not changed" not in capfd.readouterr().err
        failing = False
        await said(capfd, "reloaded")
        assert access.find("two") is not None
        tasks.cancel_scope.cancel()


async def test_a_change_while_the_model_loads_takes_effect(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.02)
    path = tmp_path / "keys.toml"
    path.write_text(KEY)
    access = Access.open(api_keys=path)
    path.write_text("[keys]\n")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(access.follow)
        await said(capfd, "reloaded")
        tasks.cancel_scope.cancel()
    assert access.find("one") is None


async def test_a_key_in_the_environment_outlives_a_change_of_tenants(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.02)
    monkeypatch.setenv("LLMSERVE_API_KEY", "secret")
    path = tmp_path / "tenants.toml"
    path.write_text("[tenants.a]\n")
    access = Access.open(tenants=path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(access.follow)
        path.write_text("[tenants.b]\n")
        await said(capfd, "reloaded")
        tasks.cancel_scope.cancel()
    assert access.find("secret") is not None
    assert access.find("other") is None


def test_a_key_is_added_to_an_empty_file(tmp_path):
    path = tmp_path / "keys.toml"
    path.touch(0o600)
    secret = add_key(path, "a", {})
    assert Access.open(api_keys=path).find(secret) is not None


def certificate(path, kind):
    """Test files on which OpenSSL would block, or for which it would prompt for a password."""
    if kind in PLACES:
        PLACES[kind](path)
    elif kind == "encrypted":
        from cryptography.hazmat.primitives import serialization as pem

        key = pem.load_pem_private_key((DATA / "localhost.key").read_bytes(), None)
        path.write_bytes(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.BestAvailableEncryption(b"x")))
    else:
        path.write_bytes(CONTENTS[kind])


@pytest.mark.parametrize("which", ["certificate", "key", "authority"])
@pytest.mark.parametrize("kind", [*PLACES, "encrypted", "empty", "zeros", "not UTF-8"])
async def test_certificates_too(tmp_path, monkeypatch, capfd, which, kind):
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.02)
    paths = {"certificate": tmp_path / "c.pem", "key": tmp_path / "k.pem", "authority": tmp_path / "a.pem"}

    def restore():
        for name, path in paths.items():
            shutil.copy(DATA / ("localhost.key" if name == "key" else "localhost.pem"), path)

    restore()
    tls = TLS.of(*paths.values())
    before = tls.context
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tls.follow)
        paths[which].unlink()
        certificate(paths[which], kind)
        await said(capfd, "tls       not changed: ")
        assert tls.context is before
        with pytest.raises(ConfigurationError):
            TLS.of(*paths.values())
        clear(paths[which])
        restore()
        await said(capfd, "tls       reloaded")
        assert isinstance(tls.context, ssl.SSLContext)
        assert tls.context is not before
        tasks.cancel_scope.cancel()


values = st.recursive(
    st.integers()
    | st.floats()
    | st.booleans()
    | st.text(max_size=5)
    | st.dates()
    | st.datetimes(timezones=st.sampled_from([None, UTC, timezone(-timedelta(hours=23)), timezone(timedelta(hours=23))])),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


def toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(one):08x}" for one in value) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return value.isoformat() if hasattr(value, "isoformat") else repr(value)


@given(
    st.dictionaries(st.sampled_from(["sha256", "tenant", "expires", "weight", "concurrency", "tokens_per_minute", "unknown"]), values),
    st.sampled_from(["keys.a", "keys", "tenants.a", "tenants", "default", "a.b.c"]),
)
def test_any_toml_is_a_table_or_one_error(fields, where):
    text = f"[{where}]\n" + "".join(f"{name} = {toml(value)}\n" for name, value in fields.items())
    for parse in (Keys.parse, TenantTable.parse):
        try:
            found = parse(text)
        except ConfigurationError as error:
            assert len(str(error)) < 500
        else:
            limits = found.of("a") if isinstance(found, TenantTable) else TenantLimits()
            assert limits.weight * 1e15 < float("inf")
