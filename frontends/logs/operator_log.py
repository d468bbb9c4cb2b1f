"""The operator's log on standard error.

The program's lines, Python's log records and the logs of vLLM's processes share one format.
Environment variables hold the format, so that workers and the engine's processes inherit it.
Without the variables, as in other programs, the format is plain text without times.
"""

import json
import logging
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs

from frontends.options.definitions import option

FORMAT, LEVEL, TIMES = "LLMSERVE_LOG_FORMAT", "LLMSERVE_LOG_LEVEL", "LLMSERVE_LOG_TIMES"
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
# Levels of the program's lines by their first word; all other lines have the level info.
STAGES = dict.fromkeys(("restarting", "advisory", "worker", "log"), "warning") | {"failed": "error", "error": "error"}
# vLLM's processes read this file when they import vLLM. It refers to `Formatter` and
# `ENGINE_LEVEL`.
ENGINE_CONFIG = Path(__file__).with_name("engine_logging.json")
NAME = "llmserve"


@attrs.frozen(kw_only=True)
class LogSettings:
    """The operator's log."""

    log_level: str = option(
        "info",
        "minimum level to log: %(choices)s (default: %(default)s); with --verbose it also applies to the engine's log, of which "
        "otherwise only errors are shown",
        metavar="LEVEL",
        choices=LEVELS,
        reloads=True,
    )
    log_format: str = option(
        "text",
        "text (with timestamps unless standard error is a terminal) or json (one object per line) (default: %(default)s)",
        metavar="FORMAT",
        choices=("text", "json"),
    )


def configure(settings: LogSettings, *, verbose: bool, terminal: bool) -> None:
    """Configure logging for this process and its child processes.

    Environment variables of vLLM that the user has set stay.

    Args:
        settings: the format, and the minimum level.
        verbose: whether the engine logs from the level of the settings on.
        terminal: whether standard error is a terminal.
    """
    os.environ |= {FORMAT: settings.log_format, LEVEL: settings.log_level, TIMES: "" if terminal else "1"}
    if verbose:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", settings.log_level.upper())
    if os.environ.get("VLLM_CONFIGURE_LOGGING", "1") != "0":
        os.environ.setdefault("VLLM_LOGGING_CONFIG_PATH", str(ENGINE_CONFIG))
    attach()


def attach() -> None:
    """Log this process's records in that format.

    Records of llmserve are logged from the chosen level on, records of libraries from warnings on.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter())
    logging.getLogger().addHandler(handler)
    set_level(os.environ.get(LEVEL, "info"))


def set_level(level: str) -> None:
    """Log this process's records and lines from this level on. The engine's processes keep theirs."""
    os.environ[LEVEL] = level
    for name in (NAME, "frontends"):
        logging.getLogger(name).setLevel(LEVELS[level])


def is_json() -> bool:
    return os.environ.get(FORMAT) == "json"


def say(line: str) -> None:
    """Log one of the program's lines: a stage word and a message.

    A line that cannot be printed is dropped without an error.
    """
    stage, _, words = line.partition(" ")
    level = STAGES.get(stage, "info")
    if LEVELS[level] < _level():
        return
    text = _json(level, NAME, words.strip(), {"stage": stage}) if is_json() else _text(level, NAME, line)
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


class Formatter(logging.Formatter):
    """Formats log records in the format that the environment variables hold."""

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
    """Return the time in UTC with milliseconds, as in the request log."""
    moment = datetime.now(UTC) if created is None else datetime.fromtimestamp(created, UTC)
    return moment.isoformat(timespec="milliseconds")


def __getattr__(name: str) -> str:
    # vLLM is imported later than this module, when the environment holds the level.
    if name == "ENGINE_LEVEL":
        return os.environ.get("VLLM_LOGGING_LEVEL", "INFO").upper()
    raise AttributeError(name)
