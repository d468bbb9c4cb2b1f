"""Reads options from a command line."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from frontends.options.definitions import Group, Option, fields_of, help_of, key_of, name_of, parser_of


def read(parser: argparse.ArgumentParser, kind: type, arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the values of the options that a command line gives, by option name, for `make`.

    Args:
        parser: a parser, to which this adds the options.
        kind: the class of settings.
        arguments: the command line; None is the program's.
    """
    add_options(parser, kind)
    return vars(parser.parse_args(arguments))


def add_options(parser: argparse.ArgumentParser, kind: type) -> None:
    """Add the options of a class of settings to a parser."""
    _add(parser, parser.add_argument, kind)


def _add(parser: argparse.ArgumentParser, add: Callable[..., Any], kind: type) -> None:
    for field, described in fields_of(kind):
        if isinstance(described, Group):
            _add(parser, parser.add_argument_group(described.title).add_argument if described.title else add, described.kind)
        else:
            name = name_of(field, described)
            # Without a default, the values that were given can be told from defaults.
            add(f"--{key_of(name)}", dest=name, default=argparse.SUPPRESS, **_arguments(field, described))


def _arguments(field: Any, described: Option) -> dict[str, Any]:
    # argparse itself cannot name a default that it does not set.
    text = help_of(field, described)
    if field.type is bool:
        return {"action": "store_true", "help": text}
    action = "append" if described.repeat else "store"
    more = {"metavar": described.metavar, "choices": described.choices, "type": parser_of(field, described)}
    return {"action": action, "help": text, **more}
