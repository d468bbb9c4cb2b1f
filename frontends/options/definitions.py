"""Defines options as fields of attrs classes, and makes the objects from the given values.

A class of settings holds options and groups of options:

    @attrs.frozen(kw_only=True)
    class LogSettings:
        log_level: str = option("info", "minimum level to log", choices=("info", "error"))

    @attrs.frozen(kw_only=True)
    class Settings:
        log: LogSettings = group(LogSettings, "log")

The field has the option's type and default. The module knows no source of values, such as a command
line; a source reads the texts with `parser_of`, and passes the values to `make` by the options' names.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar, get_args

import attrs

Settings = TypeVar("Settings")
_KEY = "frontends.options"


@attrs.frozen
class Option:
    """What a field does not say about its option.

    Attributes:
        help: the help text; `help_of` replaces `%(default)s` and `%(choices)s`.
        metavar: the value's name in the help; None derives it from the option's name.
        parse: converts a text, and raises ArgumentTypeError or ValueError; None uses the field's type.
        choices: the valid texts; None allows any.
        repeat: whether the option may be given several times. The field is then a tuple.
        name: the option's name, with underscores; None uses the field's name.
        write: converts a value back into the text that `parse` takes.
        reloads: whether SIGHUP changes it in a running server; the help text says so.
    """

    help: str
    metavar: str | None = None
    parse: Callable[[str], Any] | None = None
    choices: Collection[str] | None = None
    repeat: bool = False
    name: str | None = None
    write: Callable[[Any], str] = str
    reloads: bool = False


@attrs.frozen
class Group:
    """Options that a class of settings includes; without a title they are listed with its own."""

    kind: type
    title: str | None = None


def option(default: Any, help: str, **more: Any) -> Any:  # noqa: A002 - as argparse calls it
    """Return the field of an option. `more` are the attributes of `Option`."""
    described = Option(help, **more)
    return attrs.field(default=default, converter=tuple if described.repeat else None, metadata={_KEY: described})


def group(kind: type, title: str | None = None) -> Any:
    """Return the field of a group, whose options belong to the class `kind`."""
    return attrs.field(factory=kind, metadata={_KEY: Group(kind, title)})


def fields_of(kind: type) -> list[tuple["attrs.Attribute[Any]", Option | Group]]:
    """Return the fields of a class of settings; groups with a title come last."""
    fields = [(field, field.metadata[_KEY]) for field in attrs.fields(kind)]
    return sorted(fields, key=lambda pair: isinstance(pair[1], Group) and pair[1].title is not None)


def options_of(kind: type) -> Iterator[tuple["attrs.Attribute[Any]", Option]]:
    """Yield the options of a class of settings and of all its groups, in the order of the help."""
    for field, described in fields_of(kind):
        if isinstance(described, Group):
            yield from options_of(described.kind)
        else:
            yield field, described


def name_of(field: "attrs.Attribute[Any]", described: Option) -> str:
    """Return the option's name, by which `make` finds its value."""
    return described.name or field.name


def key_of(name: str) -> str:
    """Return an option's key in a file: its name on the command line without the dashes before it."""
    return name.replace("_", "-")


def type_of(field: "attrs.Attribute[Any]") -> Any:
    """Return the type of one value: for `int | None` and `tuple[int, ...]` it is `int`."""
    return (get_args(field.type) or (field.type,))[0]


def help_of(field: "attrs.Attribute[Any]", described: Option) -> str:
    """Return the help text with the default and the choices."""
    text = described.help.replace("%(choices)s", ", ".join(described.choices or ()))
    return text.replace("%(default)s", str(field.default)) + ("; SIGHUP reloads it" if described.reloads else "")


def parser_of(field: "attrs.Attribute[Any]", described: Option) -> Callable[[str], Any]:
    """Return the function that converts the option's text."""
    return described.parse or type_of(field)


def make(kind: type[Settings], given: Mapping[str, Any]) -> Settings:
    """Make settings of the values that were given, by option name; other options have their defaults."""
    values: dict[str, Any] = {}
    for field, described in fields_of(kind):
        if isinstance(described, Group):
            values[field.name] = make(described.kind, given)
        elif (name := name_of(field, described)) in given:
            values[field.name] = given[name]
    return kind(**values)
