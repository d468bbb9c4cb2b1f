"""Checks of a server's exposure: reachable without authentication, or with a vulnerable engine."""

import ipaddress
import re
import tomllib
from pathlib import Path

import attrs

from llmserve import ConfigurationError

# The oldest version from which on no advisory is "open" (advisories.toml). Advisories that are
# "unknown" do not count: two have no known fix, and one is fixed in 0.33, which has no CPU build.
VLLM_FLOOR = "0.32"


@attrs.frozen
class Advisory:
    """One entry of advisories.toml, which explains the fields."""

    id: str
    package: str
    what: str
    here: str
    by: str
    also: str | None = None
    introduced: str | None = None
    fixed: str | None = None

    def is_in(self, version: str) -> bool:
        found = _numbers(version)
        return _numbers(self.introduced or "0") <= found and (self.fixed is None or found < _numbers(self.fixed))


def advisories() -> list[Advisory]:
    """Return all advisories of advisories.toml."""
    return [Advisory(**entry) for entry in tomllib.loads(Path(__file__).with_name("advisories.toml").read_text())["advisory"]]


def advisories_for(package: str, version: str) -> list[Advisory]:
    """Return the advisories that apply to this version of a package."""
    return [one for one in advisories() if one.package == package and one.is_in(version)]


def below_floor(version: str) -> bool:
    """Return whether this version of vLLM is too old to be reachable from other machines."""
    return _numbers(version) < _numbers(VLLM_FLOOR)


def check_reach(what: str, hosts: list[str], version: str | None, *, insecure: bool, authenticated: bool = False) -> None:
    """Check the hosts of the option `what`, where `version` is vLLM's; None for another engine.

    Raises ConfigurationError where other machines can reach a host without authentication, or can
    reach an engine that is too old.
    """
    reachable = [host for host in hosts if not is_loopback(host)]
    if not reachable or insecure:
        return
    if not authenticated:
        raise ConfigurationError(
            f"{what} {reachable[0]} is reachable from other machines, but this server has no authentication: "
            "add --api-keys, or use an authenticating proxy and add --insecure, or listen on 127.0.0.1"
        )
    if version is not None and below_floor(version):
        names = ", ".join(one.id for one in advisories_for("vllm", version))
        raise ConfigurationError(
            f"{what} {reachable[0]} is reachable from other machines, but vLLM {version} has known vulnerabilities ({names}): "
            f"use vLLM {VLLM_FLOOR} or newer, or add --insecure"
        )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can connect to a host.

    A name other than `localhost` counts as reachable from other machines.
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version: (0, 31, 0) for "0.31.0rc1+cpu"."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in found[0].split(".")) if found else ()
