"""Names what a user probably meant by an unknown name. It knows no option, so that any program may use it."""

import argparse
import difflib
from collections.abc import Iterable
from typing import Any


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the name that an unknown one was probably meant to be; None if none is near."""
    return next(iter(difflib.get_close_matches(name, list(names), 1, cutoff=0.75)), None)


class Parser(argparse.ArgumentParser):
    """A parser whose errors name the option, the command or the choice that was probably meant.

    The parsers of its commands are of this class too.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and end the program also for an unknown argument: only a command's own parser knows its options."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            options = [word.partition("=")[0] for word in unknown if word.startswith("-")]
            near = next(filter(None, (nearest(option, self._option_string_actions) for option in options)), None)
            self.error(f"unrecognized arguments: {' '.join(unknown)}" + (f"; do you mean {near}?" if near else ""))
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            near = nearest(str(value), map(str, action.choices or ()))
            if near:
                error.message += f"; do you mean {near!r}?"
            raise
