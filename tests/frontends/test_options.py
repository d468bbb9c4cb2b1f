"""Settings: options as fields of classes, from a command line to the service that is made of them."""

import argparse
import pickle
from pathlib import Path

import attrs
import pytest

from frontends.access.api_keys import add_key
from frontends.cluster.settings import ClusterServerSettings
from frontends.http.settings import HTTPServerSettings
from frontends.options.command_line import read
from frontends.options.definitions import Group, fields_of, group, make, name_of, option
from frontends.program.service import open_service
from frontends.program.settings import ServerSettings
from frontends.socket_app import SocketServerSettings
from llmserve import ConfigurationError

ALL = [HTTPServerSettings, SocketServerSettings, ClusterServerSettings]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@attrs.frozen(kw_only=True)
class Part:
    """Options of every kind."""

    size: int | None = option(None, "a whole number", metavar="N")
    share: float = option(0.5, "a number (default: %(default)s)")
    file: Path | None = option(None, "a path")
    names: tuple[str, ...] = option(("x",), "a name; repeatable", repeat=True, name="name")
    color: str = option("red", "a color: %(choices)s", choices=("red", "blue"), metavar="COLOR")
    loud: bool = option(False, "a switch")


@attrs.frozen(kw_only=True)
class Whole:
    """A titled group, before an option without a title."""

    titled: Part = group(Part, "the part")
    code: str = option("", "a text")


def parsed(*arguments, kind=Whole):
    return make(kind, read(argparse.ArgumentParser(), kind, arguments))


def options_of(kind):
    for field, described in fields_of(kind):
        if isinstance(described, Group):
            yield from options_of(described.kind)
        else:
            yield name_of(field, described)


def test_an_option_has_the_type_and_the_default_of_its_field():
    assert parsed() == Whole()
    found = parsed("--size", "3", "--share", "1", "--file", "a/b", "--name", "y", "--name", "z", "--color", "blue", "--loud", "--code", "c")
    assert found == Whole(code="c", titled=Part(size=3, share=1.0, file=Path("a/b"), names=("y", "z"), color="blue", loud=True))


def test_only_what_is_given_is_read_so_that_sources_can_be_merged():
    assert read(argparse.ArgumentParser(), Whole, ["--size", "3", "--name", "y"]) == {"size": 3, "name": ["y"]}
    merged = make(Whole, {"size": 1, "share": 0.1} | {"size": 3})
    assert (merged.titled.size, merged.titled.share) == (3, 0.1)


def test_the_help_lists_untitled_options_first_and_names_defaults_and_choices():
    parser = argparse.ArgumentParser(prog="p")
    read(parser, Whole, [])
    text = parser.format_help()
    assert text.index("--code") < text.index("the part:") < text.index("a whole number")
    assert "a number (default: 0.5)" in text
    assert "a color: red, blue" in text


@pytest.mark.parametrize("arguments", [["--size", "x"], ["--color", "green"], ["--loud=1"], ["--nonsense"]])
def test_a_wrong_value_names_its_option(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        parsed(*arguments)
    assert end.value.code == 2
    assert arguments[0].partition("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("kind", ALL)
def test_each_option_of_a_server_has_its_own_name(kind):
    names = list(options_of(kind))
    assert len(names) == len(set(names)) > 30


@pytest.mark.parametrize("kind", ALL)
def test_settings_reach_other_processes(kind):
    arguments = ["--engine", "simulated", "--engine-arg", "seed=1", "--api-keys", "keys.toml"]
    more = ["--trusted-proxy", "10.0.0.0/8", "--trusted-proxy", "unix", "--unix-mode", "660"] if kind is HTTPServerSettings else []
    settings = parsed(*arguments, *more, kind=kind)
    assert settings != kind()
    assert pickle.loads(pickle.dumps(settings)) == settings


async def test_a_service_is_made_of_the_files_that_were_read(tmp_path):
    keys = tmp_path / "keys.toml"
    secret = add_key(keys, "alice", {"concurrency": 3})
    settings = parsed("--engine", "simulated", "--served-model-name", "sim", "--api-keys", str(keys), kind=ServerSettings)
    access = settings.open_access()
    # A second reading would fail.
    keys.unlink()
    async with open_service(settings, access) as service, service.manager as manager:
        assert service.name == "sim"
        assert service.access.find(secret) is not None
        assert manager.config.isolate_tenants
        assert manager.config.admission.table.of("alice").concurrency == 3
        assert (await manager.generate("hello", max_tokens=2)).token_ids


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--slo-ttft", "-1"], "ttft must be a positive number"), (["--engine-arg", "speed=3"], "unknown engine argument")],
)
async def test_a_service_of_wrong_settings_is_one_error(arguments, words):
    settings = parsed("--engine", "simulated", *arguments, kind=ServerSettings)
    with pytest.raises(ConfigurationError, match=words):
        async with open_service(settings, settings.open_access()):
            pass
