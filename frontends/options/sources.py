"""Reads options from environment variables and from a TOML file, which name them as the command line does.

The option `--max-running` is the variable `LLMSERVE_MAX_RUNNING` and the key `max-running`.
"""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frontends.options.definitions import Option, key_of, name_of, options_of, parser_of
from frontends.options.suggestions import nearest
from llmserve import ConfigurationError
from llmserve.config import read_toml

PREFIX = "LLMSERVE_"
# Variables of llmserve that are no options.
OTHERS = frozenset({"LLMSERVE_API_KEY", "LLMSERVE_ARGUMENTS", "LLMSERVE_CACHE", "LLMSERVE_LOG_TIMES"})
SWITCHES = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
# Kubernetes sets LLMSERVE_PORT to such an address in a namespace with a service named `llmserve`.
KUBERNETES = "tcp://"


def variable_of(name: str) -> str:
    """Return an option's environment variable."""
    return PREFIX + name.upper()


def from_environment(kind: type, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of the options that variables set, by option name, for `make`.

    An empty variable counts as not set. The values of a repeatable option are separated by spaces, as
    in a shell. Raises ConfigurationError, which names the variable.
    """
    values: dict[str, Any] = {}
    for field, described in options_of(kind):
        variable = variable_of(name_of(field, described))
        text = environ.get(variable, "")
        if not text or (variable == "LLMSERVE_PORT" and text.startswith(KUBERNETES)):
            continue
        try:
            given: Any = shlex.split(text) if described.repeat else SWITCHES[text.lower()] if field.type is bool else text
        except KeyError:
            raise ConfigurationError(f"{variable}: {text!r} is not a switch: use {', '.join(SWITCHES)}") from None
        except ValueError as error:
            raise ConfigurationError(f"{variable}: {error}") from None
        values[name_of(field, described)] = _value(variable, field, described, given)
    names = {name_of(*pair).upper() for pair in options_of(kind)}
    for variable in environ:
        name = variable.removeprefix(PREFIX)
        if name != variable and name not in names and variable not in OTHERS and (near := nearest(name, names)):
            raise ConfigurationError(f"unknown variable {variable}: do you mean {PREFIX}{near}?")
    return values


def from_file(kind: type, path: Path) -> dict[str, Any]:
    """Return the values of the options in a TOML file, by option name, for `make`.

    Raises ConfigurationError, which names the file and the key.
    """
    try:
        table = read_toml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigurationError(f"--config {path}: {error.strerror}") from None
    except (ConfigurationError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--config {path}: {error}") from None
    options = {key_of(name_of(field, described)): (field, described) for field, described in options_of(kind)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in options:
            near = nearest(key, options)
            raise ConfigurationError(f"--config {path}: unknown key {key!r}" + (f": do you mean {near!r}?" if near else ""))
        field, described = options[key]
        values[name_of(field, described)] = _value(f"--config {path}: {key}", field, described, value)
    return values


def _value(where: str, field: Any, described: Option, given: Any) -> Any:
    """Convert a TOML value, or a text, as the command line would. Raises ConfigurationError."""
    if described.repeat:
        if not isinstance(given, list):
            raise ConfigurationError(f"{where}: use a list of values, not {given!r}")
        return [_one(where, field, described, item) for item in given]
    if field.type is bool:
        if not isinstance(given, bool):
            raise ConfigurationError(f"{where}: use true or false, not {given!r}")
        return given
    return _one(where, field, described, given)


def _one(where: str, field: Any, described: Option, given: Any) -> Any:
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise ConfigurationError(f"{where}: use a text or a number, not {given!r}")
    try:
        value = parser_of(field, described)(str(given))
    except argparse.ArgumentTypeError as error:
        raise ConfigurationError(f"{where}: {error}") from None
    except ValueError:
        raise ConfigurationError(f"{where}: {given!r} is not a valid value") from None
    if described.choices is not None and value not in described.choices:
        raise ConfigurationError(f"{where}: {given!r} is not one of {', '.join(described.choices)}")
    return value


def layers(kind: type, command_line: Mapping[str, Any], environ: Mapping[str, str]) -> Sequence[tuple[str, Mapping[str, Any]]]:
    """Return the sources of options and their values, the weakest first: file, environment, command line.

    The option `config` of the environment or of the command line names the file. Raises
    ConfigurationError.
    """
    variables = from_environment(kind, environ)
    path = (variables | dict(command_line)).get("config")
    file = [(str(path), from_file(kind, path))] if path else []
    return [*file, ("environment", variables), ("command line", command_line)]


def merged(sources: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the values of all sources, for `make`; a later source replaces an earlier one."""
    return {name: value for _, values in sources for name, value in values.items()}
