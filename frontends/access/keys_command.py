"""The commands `keys add` and `keys list` of `python -m frontends.aiohttp_app`, for API keys."""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path

from frontends.access.api_keys import Keys, add_key, read_keys
from frontends.options.suggestions import Parser
from llmserve import ConfigurationError


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = Parser(prog=prog, description="Manage the API keys in a file for --api-keys.")
    commands = parser.add_subparsers(dest="command", required=True)
    words = "create a key and print it; the file stores only its hash, and is created if it does not exist"
    add = commands.add_parser("add", help=words, description=words)
    add.add_argument("file", type=Path, help="the TOML file of --api-keys")
    add.add_argument("id", help="name of the key in logs and in the file; to revoke the key, delete its table from the file")
    add.add_argument("--tenant", metavar="NAME", help="tenant that the key's requests count for (default: the key's id)")
    words = "first day, in UTC, on which the key is no longer valid (default: it never expires)"
    add.add_argument("--expires", type=date.fromisoformat, metavar="YYYY-MM-DD", help=words)
    add.add_argument("--weight", type=float, metavar="W", help="the tenant's share of the capacity under overload (default: 1)")
    add.add_argument("--concurrency", type=int, metavar="N", help="maximum number of open requests of the tenant")
    add.add_argument("--tokens-per-minute", type=float, metavar="N", help="maximum number of tokens per minute of the tenant")
    words = "list the keys in a file, without their secrets"
    listing = commands.add_parser("list", help=words, description=words)
    listing.add_argument("file", type=Path, help="the TOML file of --api-keys")
    return parser


def keys_command(argv: Sequence[str], prog: str = "python -m frontends.aiohttp_app keys") -> int:
    """Run the command; return the exit code, 2 for an invalid argument."""
    parser = build_parser(prog)
    options = parser.parse_args(argv)
    if sys.stdout is None:
        parser.exit(2, f"{parser.prog}: error: standard output is closed, and this command prints to it\n")
    try:
        if options.command == "list":
            lines, lost = _listed(read_keys(options.file)), ""
        else:
            fields = ("tenant", "expires", "weight", "concurrency", "tokens_per_minute")
            lines = [add_key(options.file, options.id, {field: getattr(options, field) for field in fields})]
            lost = f"; the key is lost: delete the table of {options.id!r} from {options.file} and add the key again"
    except ConfigurationError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    try:
        print("".join(f"{line}\n" for line in lines), end="", flush=True)
    except OSError as error:
        # Python would write to it again at exit.
        sys.stdout = None
        parser.exit(2, f"{parser.prog}: error: standard output cannot be written: {error.strerror}{lost}\n")
    return 0


def _listed(keys: Keys) -> list[str]:
    now, lines = datetime.now(UTC).timestamp(), []
    for key in keys:
        until = "" if key.expires is None else f", until {datetime.fromtimestamp(key.expires, UTC):%Y-%m-%d %H:%M} UTC"
        lines.append(f"{key.id}: tenant {key.tenant}{until}{', expired' if key.is_over(now) else ''}")
    return lines
