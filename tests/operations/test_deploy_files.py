"""The files and commands of docs/deploy are valid, and each of llmserve's options in them exists."""

import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from benchmarks.__main__ import build_parser as bench_parser
from frontends.access.keys_command import build_parser as keys_parser
from frontends.cli.main import COMMANDS
from frontends.http.routes.health import HealthRoutes
from frontends.http.settings import HTTPServerSettings
from frontends.options.command_line import read
from frontends.options.definitions import make, name_of, options_of
from frontends.options.sources import from_environment, variable_of
from frontends.options.suggestions import Parser
from llmserve import ConfigurationError

pytestmark = pytest.mark.operations
DOCS = pathlib.Path(__file__).parent.parent.parent / "docs"
FOLDER = DOCS / "deploy"
VARIABLES = {variable_of(name_of(*pair)) for pair in options_of(HTTPServerSettings)}
# Seconds after the drain: idle connections, the engine's end, and traces (docs/reliability.md).
AFTER_DRAIN = 30
# An option of Docker that the page mentions.
OTHER_PROGRAMS = {"--wait"}


def settings_of(arguments=(), environment=None):
    """Return the settings of a server with this command line and environment; exit or raise if an option is invalid."""
    environment = environment or {}
    unknown = {name for name in environment if name.startswith("LLMSERVE_")} - VARIABLES
    assert not unknown
    given = from_environment(HTTPServerSettings, environment) | read(Parser(allow_abbrev=False), HTTPServerSettings, list(arguments))
    settings = make(HTTPServerSettings, given)
    settings.engine_args()
    return settings


def check_settings(settings, patience):
    """Check what a service needs: keys, a proxy's address, and time to drain."""
    assert settings.access.api_keys == pathlib.Path("/etc/llmserve/keys.toml")
    assert not settings.access.insecure
    assert settings.http.trusted_proxies
    assert patience >= settings.limits.drain_delay + settings.limits.drain_timeout + AFTER_DRAIN


def documents(name):
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def test_the_unit_is_valid(tmp_path):
    text = (FOLDER / "llmserve.service").read_text()
    assert "/opt/llmserve/bin/llmserve" in text
    unit = tmp_path / "llmserve.service"
    unit.write_text(text.replace("/opt/llmserve/bin/llmserve", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    # systemd ignores an unknown key with a warning, and exits with 0.
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_s_options_exist_and_it_may_drain():
    unit = (FOLDER / "llmserve.service").read_text()
    environment = dict(
        line.split("=", 1) for line in (FOLDER / "llmserve.env").read_text().splitlines() if line and not line.startswith("#")
    )
    command = re.search(r"^ExecStart=\S+/llmserve serve(.*)$", unit, re.MULTILINE)
    settings = settings_of(shlex.split(command[1]), environment)
    check_settings(settings, float(re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[1]))
    assert settings.http.request_log.parent.name == re.search(r"^LogsDirectory=(.*)$", unit, re.MULTILINE)[1]


def test_the_compose_file_is_valid():
    import compose_spec

    file = compose_spec.PyCompose.from_yaml((FOLDER / "compose.yaml").read_text())
    file.validate()
    assert file.service_names() == ["llmserve"]


def test_the_compose_file_s_options_exist_and_it_may_drain():
    import compose_spec

    service = documents("compose.yaml")[0]["services"]["llmserve"]
    assert service["entrypoint"] == ["llmserve", "serve"]
    settings = settings_of(service["command"], service["environment"])
    check_settings(settings, compose_spec.parse_duration(service["stop_grace_period"]))
    assert_is_a_probe(" ".join(service["healthcheck"]["test"]), "ready")


def test_the_manifests_are_valid():
    import kubernetes_validate

    for document in documents("kubernetes.yaml"):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_the_manifests_options_exist_and_the_pod_may_drain():
    service, _, deployment = documents("kubernetes.yaml")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["llmserve", "serve"]
    settings = settings_of(container["args"], {one["name"]: one["value"] for one in container["env"]})
    check_settings(settings, pod["terminationGracePeriodSeconds"])
    assert settings.limits.drain_delay > 0
    assert container["ports"] == [{"name": service["spec"]["ports"][0]["targetPort"], "containerPort": settings.http.port}]
    assert service["metadata"]["name"] == "llmserve"
    assert pod["enableServiceLinks"] is False
    for probe, state in (("startupProbe", "ready"), ("readinessProbe", "ready"), ("livenessProbe", "live")):
        assert_is_a_probe(container[probe]["httpGet"]["path"], state)
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def assert_is_a_probe(text, state):
    (path,) = re.findall(r"/health/\w+", text)
    assert path == f"/health/{state}"
    assert f"GET {path}" in HealthRoutes(None, None, None, None, None).routes()


def commands():
    """Yield the commands of llmserve in the page and in the comments of the files."""
    for path in [DOCS / "deploy.md", *sorted(FOLDER.iterdir())]:
        for line in path.read_text().splitlines():
            for text in re.findall(r"(?:^|/|#\s+|`|&& )llmserve (\w[^`#&]*)", line):
                yield pytest.param(shlex.split(text), id=f"{path.name}: {text.strip()}")


@pytest.mark.parametrize("words", list(commands()))
def test_the_commands_exist(words):
    name, *arguments = words
    assert name in COMMANDS
    match name:
        case "serve":
            settings_of(arguments)
        case "keys":
            keys_parser("llmserve keys").parse_args(arguments)
        case "bench":
            bench_parser().parse_args(arguments)
        case _:
            assert not arguments


def test_options_in_the_text_exist():
    options = set(re.findall(r"`(--[a-z-]+)", (DOCS / "deploy.md").read_text())) - OTHER_PROGRAMS
    known = {f"--{name_of(*pair).replace('_', '-')}" for pair in options_of(HTTPServerSettings)}
    assert len(options) > 10
    assert options <= known


@pytest.mark.parametrize(
    ("arguments", "environment"), [(["--max-runing", "3"], {}), ([], {"LLMSERVE_MAX_RUNING": "3"}), ([], {"LLMSERVE_NONE": "1"})]
)
def test_an_option_that_does_not_exist_is_noticed(arguments, environment):
    with pytest.raises((SystemExit, ConfigurationError, AssertionError)):
        settings_of(arguments, environment)
