"""Options from the command line, the environment and a file are the same options."""

import argparse
import json
import math
import shlex
import tomllib

import attrs
import jsonschema
import pytest

from frontends.cli.config import KINDS
from frontends.cli.main import COMMANDS, main
from frontends.http.settings import HTTPServerSettings
from frontends.options.changes import changes, with_options
from frontends.options.command_line import read
from frontends.options.definitions import key_of, make, name_of, options_of
from frontends.options.sources import from_environment, from_file, layers, merged, variable_of
from frontends.options.written import schema, write
from frontends.program.settings import ProgramSettings
from llmserve import ConfigurationError

# A text of each option whose type does not say what a valid text is. All other options get one by type.
TEXTS = {
    "port": "8123",
    "engines": "3",
    "workers": "3",
    "unix_mode": "640",
    "unix_group": "0",
    "host": "::1",
    "allowed_host": "model.example",
    "allowed_origin": "https://app.example",
    "trusted_proxy": "10.0.0.0/8",
    "root_path": "/llm",
    "engine_arg": "seed=1",
    "otlp_endpoint": "http://localhost:4318",
    "max_incomplete_bytes": str(2**30),
    "listen": "tcp://127.0.0.1:9001",
}
SECOND = {"trusted_proxy": "unix", "engine_arg": 'more={"a": [1, 2]}', "host": "127.0.0.2", "listen": "unix:///tmp/a b"}
every_server = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def texts_of(field, described):
    """Return valid texts of an option other than its default."""
    name = name_of(field, described)
    if described.choices is not None:
        found = next(choice for choice in described.choices if choice != field.default)
    elif name in TEXTS:
        found = TEXTS[name]
    else:
        found = {int: "7", float: "7.5", str: "text"}.get(getattr(field.type, "__args__", (field.type,))[0], "/some/file")
    return [found, *([SECOND[name]] if name in SECOND else [])]


def all_options(kind):
    return [(*pair, name_of(*pair)) for pair in options_of(kind) if name_of(*pair) != "config"]


def of_command_line(kind, path=None):
    arguments = []
    for field, described, name in all_options(kind):
        option = f"--{key_of(name)}"
        arguments += [option] if field.type is bool else [word for text in texts_of(field, described) for word in (option, text)]
    return make(kind, read(argparse.ArgumentParser(), kind, arguments))


def of_environment(kind, path=None):
    variables = {
        variable_of(name): "true" if field.type is bool else shlex.join(texts) if described.repeat else texts[0]
        for field, described, name in all_options(kind)
        for texts in [texts_of(field, described) if field.type is not bool else []]
    }
    return make(kind, from_environment(kind, variables))


def of_file(kind, path):
    lines = []
    for field, described, name in all_options(kind):
        texts = texts_of(field, described) if field.type is not bool else ["true"]
        plain = field.type in (int, float, int | None, float | None) and described.write is str
        value = "true" if field.type is bool else json.dumps(texts) if described.repeat else texts[0] if plain else json.dumps(texts[0])
        lines.append(f"{key_of(name)} = {value}")
    path.write_text("\n".join(lines))
    return make(kind, from_file(kind, path))


def of_written_file(kind, path):
    path.write_text(write(of_command_line(kind)))
    return make(kind, from_file(kind, path))


@every_server
@pytest.mark.parametrize("other", [of_environment, of_file, of_written_file])
def test_every_option_is_the_same_from_each_source(kind, other, tmp_path):
    expected, found = of_command_line(kind), other(kind, tmp_path / "f.toml")
    assert found == expected
    defaults = kind()
    for field, described, name in all_options(kind):
        # The sample differs from the default; otherwise the comparison would prove nothing.
        assert read_value(expected, field, described) != read_value(defaults, field, described), name


@every_server
def test_changes_are_all_options_that_differ(kind):
    old, new = kind(), of_command_line(kind)
    names = [name for _, _, name in all_options(kind)]
    assert [change.name for change in changes(old, new)] == names
    assert with_options(old, new, names) == new
    assert [change.name for change in changes(old, with_options(old, new, names[:3]))] == names[:3]


def read_value(settings, field, described):
    """Return an option's value, wherever its group is."""
    for part in attrs.fields(type(settings)):
        value = getattr(settings, part.name)
        if part == field:
            return value
        if attrs.has(type(value)) and part.metadata and (found := read_value(value, field, described)) is not MISSING:
            return found
    return MISSING


MISSING = object()


@every_server
def test_the_default_file_is_the_default_server_and_fits_the_schema(kind, tmp_path):
    path = tmp_path / "f.toml"
    path.write_text(write(kind()))
    assert make(kind, from_file(kind, path)) == kind()
    jsonschema.Draft202012Validator.check_schema(schema(kind))
    for text in (write(kind()), write(of_command_line(kind))):
        jsonschema.validate(tomllib.loads(text), schema(kind))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"max_running": 1}, schema(kind))


def test_the_command_line_comes_before_the_environment_and_that_before_the_file(tmp_path):
    kind, path = KINDS["serve"], tmp_path / "f.toml"
    path.write_text('port = 1\nmodel = "file"\nmax-wait = 3')
    sources = layers(kind, {"port": 3}, {"LLMSERVE_CONFIG": str(path), "LLMSERVE_PORT": "2", "LLMSERVE_MODEL": "variable"})
    settings = make(kind, merged(sources))
    assert isinstance(settings, HTTPServerSettings)
    assert (settings.http.port, settings.engine.model, settings.limits.max_wait) == (3, "variable", 3.0)
    text = write(settings, sources)
    assert "port = 3  # command line" in text
    assert 'model = "variable"  # environment' in text
    assert f"max-wait = 3.0  # {path}" in text
    assert "drain-timeout = 30.0  # default" in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_running = 1", "unknown key 'max_running': do you mean 'max-running'?"),
        ("zzz = 1", "unknown key 'zzz'"),
        ("port = 1.5", "port: 1.5 is not a valid value"),
        ("port = true", "port: use a text or a number, not True"),
        ("port = 70000", "port: 70000 is not a valid port: use 0 to 65535"),
        ("insecure = 1", "insecure: use true or false, not 1"),
        ('host = "::"', "host: use a list of values, not '::'"),
        ('engine = "fast"', "engine: 'fast' is not one of vllm, simulated"),
        ("[engine]", "engine: use a text or a number, not {}"),
        ("port = ", "Invalid value"),
    ],
)
def test_an_error_in_a_file_names_the_file_and_the_key(text, words, tmp_path):
    path = tmp_path / "f.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as error:
        from_file(ProgramSettings if "port" not in text and "host" not in text else KINDS["serve"], path)
    assert str(error.value).startswith(f"--config {path}: ")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("LLMSERVE_PROT", "1", "unknown variable LLMSERVE_PROT: do you mean LLMSERVE_PORT?"),
        ("LLMSERVE_PORT", "x", "LLMSERVE_PORT: 'x' is not a valid value"),
        ("LLMSERVE_INSECURE", "maybe", "LLMSERVE_INSECURE: 'maybe' is not a switch: use 1, true"),
        ("LLMSERVE_HOST", "'", "LLMSERVE_HOST: No closing quotation"),
    ],
)
def test_an_error_in_the_environment_names_the_variable(variable, text, words):
    with pytest.raises(ConfigurationError, match=words.replace("?", r"\?")):
        from_environment(KINDS["serve"], {variable: text})


def test_variables_that_others_set_are_left_alone():
    """Kubernetes sets the first three for a service named llmserve."""
    others = {
        "LLMSERVE_PORT": "tcp://10.0.0.1:8000",
        "LLMSERVE_SERVICE_HOST": "10.0.0.1",
        "LLMSERVE_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "LLMSERVE_API_KEY": "k",
        "LLMSERVE_CACHE": "/cache",
        "LLMSERVE_MAX_WAIT": "",
    }
    assert from_environment(KINDS["serve"], others) == {}


def test_the_command_prints_a_file_that_gives_the_same_settings(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMSERVE_SLO_TTFT", "2")
    assert main(["config", "--port", "8123", "--engine", "simulated"]) == 0
    path = tmp_path / "f.toml"
    path.write_text(capsys.readouterr().out)
    monkeypatch.delenv("LLMSERVE_SLO_TTFT")
    settings = make(KINDS["serve"], from_file(KINDS["serve"], path))
    assert isinstance(settings, HTTPServerSettings)
    assert (settings.http.port, settings.engine.kind, settings.limits.slo_ttft) == (8123, "simulated", 2.0)
    assert main(["config", "socket", "--schema"]) == 0
    assert "listen" in json.loads(capsys.readouterr().out)["properties"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: llmserve {name}")


def test_an_unknown_command_names_the_nearest(capsys):
    assert main(["serv"]) == 2
    assert capsys.readouterr().err == "llmserve: error: unknown command 'serv'; do you mean 'serve'?\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("serve --max-runing 1", "unrecognized arguments: --max-runing 1; do you mean --max-running?"),
        ("socket --max-streems=1", "unrecognized arguments: --max-streems=1; do you mean --max-streams?"),
        ("config --max-runing 1", "unrecognized arguments: --max-runing 1; do you mean --max-running?"),
        ("chat --modle x", "unrecognized arguments: --modle; do you mean --model?"),
        ("top --onec", "unrecognized arguments: --onec; do you mean --once?"),
        ("doctor --prot 1", "unrecognized arguments: --prot 1; do you mean --port?"),
        ("doctor --engine simulatd", "(choose from 'vllm', 'simulated'); do you mean 'simulated'?"),
        ("keys lits f", "(choose from 'add', 'list'); do you mean 'list'?"),
        ("keys add f a --tenat b", "unrecognized arguments: --tenat b; do you mean --tenant?"),
        ("bench swep", "; do you mean 'sweep'?"),
        ("bench sweep --concurency 1", "unrecognized arguments: --concurency 1; do you mean --concurrency?"),
        ("report biuld", "; do you mean 'build'?"),
        ("report build run.json --referense", "unrecognized arguments: --referense; do you mean --reference?"),
        ("completion bahs", "; do you mean 'bash'?"),
        ("chat --zzz", "unrecognized arguments: --zzz"),
    ],
)
def test_an_unknown_option_or_choice_names_the_nearest(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith(f"{message}\n")


def test_no_default_is_a_number_that_toml_cannot_write():
    for kind in KINDS.values():
        for field, _ in options_of(kind):
            assert not (isinstance(field.default, float) and math.isinf(field.default))


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "file.toml"
    path.write_bytes(b"\xef\xbb\xbfmax-running = 3\r\n")
    assert from_file(HTTPServerSettings, path) == {"max_running": 3}


def test_a_number_of_too_many_digits_names_the_file(tmp_path):
    path = tmp_path / "file.toml"
    path.write_text("max-running = " + "1" * 5000)
    with pytest.raises(ConfigurationError, match=r"file\.toml"):
        from_file(HTTPServerSettings, path)
