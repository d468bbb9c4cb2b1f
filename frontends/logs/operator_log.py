"""The operator's log on standard error: one form for the program's own lines, for Python's log records, and for those of vLLM's processes.

The form is in environment variables, which workers and the engine's processes inherit. Without them, as in another program, it is plain
text without times.
"""

import argparse
import json
import logging
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FORMAT, LEVEL, TIMES = "LLMSERVE_LOG_FORMAT", "LLMSERVE_LOG_LEVEL", "LLMSERVE_LOG_TIMES"
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
# Of the program's own lines, by their first word; all others are information.
STAGES = dict.fromkeys(("restarting", "advisory", "worker", "log"), "warning") | {"failed": "error", "error": "error"}
# vLLM's processes read it when they import vLLM. It names this module's `Formatter` and `ENGINE_LEVEL`.
ENGINE_CONFIG = Path(__file__).with_name("engine_logging.json")
NAME = "llmserve"


def add_log_options(parser: argparse.ArgumentParser) -> None:
    log = parser.add_argument_group("log on standard error")
    words = "the least that is logged: %(choices)s (default: %(default)s); of the engine's own log with --verbose, else its errors"
    log.add_argument("--log-level", choices=LEVELS, default="info", metavar="LEVEL", help=words)
    words = "text, with times unless standard error is a terminal, or json, an object for each line (default: %(default)s)"
    log.add_argument("--log-format", choices=("text", "json"), default="text", metavar="FORMAT", help=words)


def configure(options: argparse.Namespace, *, terminal: bool) -> None:
    """For this process and all that it starts. What the user has set for vLLM in the environment stays."""
    os.environ |= {FORMAT: options.log_format, LEVEL: options.log_level, TIMES: "" if terminal else "1"}
    if options.verbose:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", options.log_level.upper())
    if os.environ.get("VLLM_CONFIGURE_LOGGING", "1") != "0":
        os.environ.setdefault("VLLM_LOGGING_CONFIG_PATH", str(ENGINE_CONFIG))
    attach()


def attach() -> None:
    """Log this process's records in that form: ours from the level on that was chosen, those of libraries from warnings on."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter())
    logging.getLogger().addHandler(handler)
    for name in (NAME, "frontends"):
        logging.getLogger(name).setLevel(_level())


def is_json() -> bool:
    return os.environ.get(FORMAT) == "json"


def say(line: str) -> None:
    """Log one of the program's own lines: a word, and what it is about. A line that cannot be printed is lost and stops nothing."""
    stage, _, words = line.partition(" ")
    level = STAGES.get(stage, "info")
    if LEVELS[level] < _level():
        return
    text = _json(level, NAME, words.strip(), {"stage": stage}) if is_json() else _text(level, NAME, line)
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


class Formatter(logging.Formatter):
    """A record in the form that the environment names."""

    def format(self, record: logging.LogRecord) -> str:
        level, message = record.levelname.lower(), record.getMessage()
        trace = self.formatException(record.exc_info) if record.exc_info else record.exc_text
        if is_json():
            more = {"process": record.process} | ({"exception": trace} if trace else {})
            return _json(level, record.name, message, more, record.created)
        if not os.environ.get(TIMES) and record.levelno > logging.INFO:
            message = f"{level}: {message}"
        return _text(level, record.name, message, record.created) + (f"\n{trace}" if trace else "")


def _level() -> int:
    return LEVELS[os.environ.get(LEVEL, "info")]


def _text(level: str, name: str, message: str, created: float | None = None) -> str:
    begin = f"{_time(created)} {level:7} " if os.environ.get(TIMES) else ""
    return f"{begin}{name}  {message}"


def _json(level: str, name: str, message: str, more: dict[str, Any], created: float | None = None) -> str:
    return json.dumps({"time": _time(created), "level": level, "logger": name, "message": message} | more)


def _time(created: float | None) -> str:
    """UTC, in milliseconds, as in the request log."""
    moment = datetime.now(UTC) if created is None else datetime.fromtimestamp(created, UTC)
    return moment.isoformat(timespec="milliseconds")


def __getattr__(name: str) -> str:
    # The level is in the environment by the time that vLLM is imported, which is later than this module.
    if name == "ENGINE_LEVEL":
        return os.environ.get("VLLM_LOGGING_LEVEL", "INFO").upper()
    raise AttributeError(name)
