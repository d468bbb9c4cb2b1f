"""Who can reach a server that asks nobody who they are, and what its engine's version is known to be vulnerable to."""

import ipaddress
import re
import tomllib
from pathlib import Path

import attrs

from llmserve import ConfigurationError

# From here on no version has an advisory that is open here. The unknown ones do not move it: two have no known fix, and one is fixed in
# 0.33, which has no build for CPUs.
VLLM_FLOOR = "0.32"


@attrs.frozen
class Advisory:
    """One entry of advisories.toml, where the fields are explained."""

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
    """All that were looked at."""
    return [Advisory(**entry) for entry in tomllib.loads(Path(__file__).with_name("advisories.toml").read_text())["advisory"]]


def advisories_for(package: str, version: str) -> list[Advisory]:
    """Those that this version has."""
    return [one for one in advisories() if one.package == package and one.is_in(version)]


def below_floor(version: str) -> bool:
    """Whether this version of vLLM is older than what may be reached by others."""
    return _numbers(version) < _numbers(VLLM_FLOOR)


def check_reach(what: str, hosts: list[str], version: str | None, *, insecure: bool, authenticated: bool = False) -> None:
    """Of a server's addresses, named by the option `what`; `version` is vLLM's, None for another engine.

    Raises ConfigurationError for one that other machines can reach without being asked who they are, or whose engine is too old.
    """
    reachable = [host for host in hosts if not is_loopback(host)]
    if not reachable or insecure:
        return
    if not authenticated:
        raise ConfigurationError(
            f"{what} {reachable[0]} can be reached from other machines, and this server asks nobody who they are: "
            "add --api-keys, or put a proxy that asks before it and add --insecure, or listen on 127.0.0.1"
        )
    if version is not None and below_floor(version):
        names = ", ".join(one.id for one in advisories_for("vllm", version))
        raise ConfigurationError(
            f"{what} {reachable[0]} can be reached from other machines, and vLLM {version} has {names}: "
            f"use vLLM {VLLM_FLOOR} or newer, or add --insecure"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to it; a name is taken for another machine's, but for localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _numbers(version: str) -> tuple[int, ...]:
    """Of "0.31.0rc1+cpu" 0, 31, 0."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in found[0].split(".")) if found else ()
