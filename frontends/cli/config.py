"""`llmserve config`: the settings of a server, where each comes from, and the schema of its file."""

import json
import os
import sys
from collections.abc import Sequence

from frontends.http.settings import HTTPServerSettings
from frontends.options.command_line import add_options
from frontends.options.definitions import make
from frontends.options.sources import layers, merged
from frontends.options.suggestions import Parser
from frontends.options.written import schema, write
from frontends.program.settings import ProgramSettings
from frontends.socket_app import SocketServerSettings
from llmserve import ConfigurationError

KINDS: dict[str, type[ProgramSettings]] = {"serve": HTTPServerSettings, "socket": SocketServerSettings}


def build_parser(prog: str, kind: type[ProgramSettings] = HTTPServerSettings) -> Parser:
    parser = Parser(
        prog=prog,
        usage=f"{prog} [serve|socket] [--schema] [options of that server]",
        description="Print the settings that a server would have, as a file for --config. A comment names the source of each value.",
    )
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of the file instead")
    add_options(parser, kind)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "llmserve config") -> int:
    """Print the effective settings; return 0, or 2 for an invalid option."""
    given = list(sys.argv[1:] if argv is None else argv)
    name = given.pop(0) if given and given[0] in KINDS else "serve"
    kind = KINDS[name]
    parser = build_parser(prog, kind)
    options = vars(parser.parse_args(given))
    if options.pop("schema"):
        sys.stdout.write(json.dumps(schema(kind), indent=2) + "\n")
        return 0
    try:
        sources = layers(kind, options, os.environ)
        settings = make(kind, merged(sources))
    except ConfigurationError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    sys.stdout.write(f"# The settings of `llmserve {name}`: `llmserve {name} --config FILE.toml`\n{write(settings, sources)}")
    return 0
