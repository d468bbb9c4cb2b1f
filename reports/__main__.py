"""`python -m reports COMMAND`: pages and pictures of what `python -m benchmarks` measured."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.recording.storage import UnreadableRun
from frontends.options.suggestions import Parser
from reports import league, pictures, server, static
from reports.page_data import load
from reports.reference import RTX_4090

PROGRAM = "python -m reports"


def run_build(*, runs: list[Path], out: Path, reference: bool, price_per_hour: float | None) -> int:
    size = static.build(load(runs, RTX_4090 if reference else None, price_per_hour), out)
    print(f"written: {out} ({size / 2**20:.1f} MiB)")
    return 0


def run_overload(*, results: Path, out: Path) -> int:
    size = static.write(league.page(league.read(results)), league.TITLE, out)
    print(f"written: {out} ({size / 2**20:.1f} MiB)")
    return 0


def run_pictures(*, runs: list[Path], out: Path, reference: bool) -> int:
    for path in pictures.draw(load(runs, RTX_4090 if reference else None), out):
        print(f"written: {path}")
    return 0


def run_serve(*, runs: list[Path], live: list[str], api_key: str | None, host: str, port: int, price_per_hour: float | None) -> int:
    if not (runs or live):
        raise UnreadableRun("nothing to show: pass runs, or --live with the URL of a running server")
    server.serve(server.Site(runs, live, price_per_hour, api_key), host, port)
    return 0


def price(text: str) -> float:
    """Parse a price above 0."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: write a number above 0")
    return found


def url(text: str) -> str:
    """Parse the base URL of a server."""
    if urlsplit(text).scheme not in ("http", "https") or not urlsplit(text).netloc:
        raise argparse.ArgumentTypeError(f"{text!r}: write http://HOST:PORT")
    return text


def build_parser(prog: str = PROGRAM) -> argparse.ArgumentParser:
    parser = Parser(prog=prog, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="write one HTML file that works without a network")
    build.set_defaults(run_command=run_build)
    build.add_argument("-o", "--out", type=Path, default=Path("report.html"))
    compared = commands.add_parser("overload", help="write one HTML file of the policies that `benchmarks overload --league` compared")
    compared.set_defaults(run_command=run_overload)
    compared.add_argument("results", type=Path, metavar="RESULTS.json")
    compared.add_argument("-o", "--out", type=Path, default=Path("overload.html"))
    drawn = commands.add_parser(
        "pictures", help="draw throughput_vs_concurrency, latency_vs_concurrency and vram_usage as PNG (needs Chromium)"
    )
    drawn.set_defaults(run_command=run_pictures)
    drawn.add_argument("-o", "--out", type=Path, default=Path(), metavar="FOLDER")
    serve = commands.add_parser("serve", help="serve the page: choose runs, compare them, follow a live server's /metrics")
    serve.set_defaults(run_command=run_serve)
    serve.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    serve.add_argument("--port", type=int, default=5006, help="0 chooses a free port (default: %(default)s)")
    words = "follow this server (ours or vLLM's) in the Live tab as soon as a page is opened; may be repeated"
    serve.add_argument("--live", type=url, action="append", default=[], metavar="URL", help=words)
    serve.add_argument("--api-key", metavar="KEY", help="key that is sent to the servers of --live, and to no other")
    for command, number in ((build, "+"), (drawn, "+"), (serve, "*")):
        command.add_argument("runs", type=Path, nargs=number, metavar="RUN.json or FOLDER")
    for command in (build, serve):
        words = "price of the server per hour, in any currency: shows the cost of a million output tokens"
        command.add_argument("--price-per-hour", type=price, metavar="PRICE", help=words)
    for command in (build, drawn):
        command.add_argument("--reference", action="store_true", help="also draw the built-in run of Qwen2.5-1.5B on an RTX 4090, in grey")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROGRAM) -> None:
    """Exit with code 0, or 2 for a wrong input."""
    parser = build_parser(prog)
    given = vars(parser.parse_args(argv))
    run_command = given.pop("run_command")
    try:
        sys.exit(run_command(**given))
    except (UnreadableRun, pictures.NoBrowser) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except OSError as error:
        parser.exit(2, f"{parser.prog}: error: {error.filename or ''} {error.strerror or error}\n")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
