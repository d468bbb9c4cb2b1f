"""`llmserve doctor`: what a support engineer asks first about the machine that is to serve.

Each line is `ok` and a fact, or `fix` and a command. No check imports vLLM or torch.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

from frontends.cli import checks
from frontends.cli.checks import Finding
from frontends.options.suggestions import Parser
from llmserve.engines import ENGINES


def examine(*, host: str, port: int, model: str, engine: str) -> Iterator[Finding]:
    """Yield the findings, the quickest first."""
    yield checks.python()
    yield from checks.packages()
    yield from checks.vulnerabilities()
    yield checks.gpus()
    yield checks.cpus()
    yield checks.memory()
    yield checks.shared_memory()
    yield checks.descriptors()
    yield checks.port(host, port)
    yield checks.cache()
    yield checks.temporary()
    if ENGINES[engine].has_files:
        yield checks.model(model, engine)


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = Parser(prog=prog, description="Check this machine. Each line is ok, or has the command that fixes it.")
    parser.add_argument("--model", default="bundled", help="model that is to be served (default: %(default)s)")
    parser.add_argument("--engine", choices=list(ENGINES), default=next(iter(ENGINES)), help="inference engine (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address that the server is to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port that the server is to listen on (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "llmserve doctor") -> int:
    """Run `llmserve doctor`; return 0, or 1 if a line says what to fix."""
    broken = 0
    for finding in examine(**vars(build_parser(prog).parse_args(argv))):
        broken += finding.fix is not None
        sys.stdout.write(f"{'ok ' if finding.fix is None else 'fix'} {finding.what:<16} {finding.fact}\n")
        if finding.fix is not None:
            sys.stdout.write(f"{'':21}run: {finding.fix}\n")
        sys.stdout.flush()
    return 1 if broken else 0
