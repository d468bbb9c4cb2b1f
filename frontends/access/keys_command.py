"""`python -m frontends.aiohttp_app keys add FILE ID`: makes an API key, prints it once, and keeps its hash."""

import argparse
import sys
from datetime import UTC, date, datetime
from pathlib import Path

from frontends.access.api_keys import Keys, add_key, read_keys
from llmserve import ConfigurationError


def keys_command(argv: list[str]) -> int:
    """Returns the exit code; 2 for a wrong argument."""
    parser = argparse.ArgumentParser(prog="python -m frontends.aiohttp_app keys", description="API keys, in a file for --api-keys.")
    commands = parser.add_subparsers(dest="command", required=True)
    words = "make a key: it is printed, and the file, which is made if there is none, keeps its hash"
    add = commands.add_parser("add", help=words, description=words)
    add.add_argument("file", type=Path)
    add.add_argument("id", help="a name for the key, for logs and for taking it back: delete its table from the file")
    add.add_argument("--tenant", metavar="NAME", help="whom its requests are counted for (default: the key's id)")
    add.add_argument("--expires", type=date.fromisoformat, metavar="YYYY-MM-DD", help="the first day, in UTC, on which it counts no more")
    add.add_argument("--weight", type=float, metavar="W", help="the tenant's share where there is not enough for all (default: 1)")
    add.add_argument("--concurrency", type=int, metavar="N", help="most requests of the tenant at once")
    add.add_argument("--tokens-per-minute", type=float, metavar="N", help="most tokens of the tenant a minute")
    words = "say which keys a file has"
    listing = commands.add_parser("list", help=words, description=words)
    listing.add_argument("file", type=Path)
    options = parser.parse_args(argv)
    if sys.stdout is None:
        parser.exit(2, f"{parser.prog}: error: standard output is closed, and this command prints to it\n")
    try:
        if options.command == "list":
            lines, lost = _listed(read_keys(options.file)), ""
        else:
            fields = ("tenant", "expires", "weight", "concurrency", "tokens_per_minute")
            lines = [add_key(options.file, options.id, {field: getattr(options, field) for field in fields})]
            lost = f"; the key is lost: delete the table of {options.id!r} from {options.file}, and add it again"
    except ConfigurationError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    try:
        print("".join(f"{line}\n" for line in lines), end="", flush=True)
    except OSError as error:
        # Python would try again at its end.
        sys.stdout = None
        parser.exit(2, f"{parser.prog}: error: standard output cannot be written: {error.strerror}{lost}\n")
    return 0


def _listed(keys: Keys) -> list[str]:
    now, lines = datetime.now(UTC).timestamp(), []
    for key in keys:
        until = "" if key.expires is None else f", until {datetime.fromtimestamp(key.expires, UTC):%Y-%m-%d %H:%M} UTC"
        lines.append(f"{key.id}: tenant {key.tenant}{until}{', expired' if key.is_over(now) else ''}")
    return lines
