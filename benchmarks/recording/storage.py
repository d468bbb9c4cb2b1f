"""A run's files: `run.json`, and as JSON lines `run.requests.jsonl.gz`, `run.samples.jsonl.gz`.

Where the requests are a sample, `run.summary.gz` has the figures of all of them, and readers use
it.
"""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from benchmarks.recording.results import SCHEMA, Recording, RequestRecord, Run, Sample

# Times are kept to the microsecond: finer than an event loop's resolution, and half the size on
# disk.
DIGITS = 6
Line = TypeVar("Line", RequestRecord, Sample)


class UnreadableRun(Exception):
    """A file is not a run of this schema; the message names the file."""


def requests_path(path: Path) -> Path:
    return path.with_name(path.stem + ".requests.jsonl.gz")


def samples_path(path: Path) -> Path:
    return path.with_name(path.stem + ".samples.jsonl.gz")


def summary_path(path: Path) -> Path:
    return path.with_name(path.stem + ".summary.gz")


def find(path: Path) -> list[Path]:
    """Return the file itself, or a folder's runs: every .json file with its requests beside it."""
    return sorted(file for file in path.rglob("*.json") if requests_path(file).exists()) if path.is_dir() else [path]


def write(path: Path, recording: Recording) -> None:
    """Write all files, each atomically; an incomplete run is written like any other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(requests_path(path), _lines(recording.records))
    _replace(samples_path(path), _lines(recording.samples))
    if recording.summary:
        _replace(summary_path(path), _packed(recording.summary))
    else:
        summary_path(path).unlink(missing_ok=True)
    _replace(path, readable(recording.run))


def read(path: Path) -> Recording:
    """Read a run. Raises UnreadableRun for a missing or invalid file, or another schema."""
    try:
        raw = msgspec.json.decode(path.read_bytes())
        schema = raw.get("schema") if isinstance(raw, dict) else None
        if schema != SCHEMA:
            raise UnreadableRun(f"{path}: schema {schema}, but this version reads schema {SCHEMA}")
        run = msgspec.convert(raw, Run)
        summary = _unpacked(summary_path(path)) if summary_path(path).exists() else b""
        return Recording(run, _read_lines(requests_path(path), RequestRecord), _read_lines(samples_path(path), Sample), summary)
    except OSError as error:
        raise UnreadableRun(f"{error.filename or path}: {error.strerror or error}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnreadableRun(f"{path}: {error}") from error


def priced(recording: Recording, price_per_hour: float | None) -> Recording:
    """Return the recording with another price of the server; None keeps the recorded one."""
    if price_per_hour is None:
        return recording
    return msgspec.structs.replace(recording, run=msgspec.structs.replace(recording.run, price_per_hour=price_per_hour))


def readable(found: Any) -> bytes:
    """Encode as indented JSON, for people to read."""
    return msgspec.json.format(msgspec.json.encode(found)) + b"\n"


def schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the run, of a request's line and of a sample's line."""
    kinds, definitions = msgspec.json.schema_components([Run, RequestRecord, Sample], ref_template="#/$defs/{name}")
    title = f"llmserve benchmark run, schema {SCHEMA}"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, "anyOf": kinds, "$defs": definitions}


def _lines(entries: Sequence[Line]) -> bytes:
    encoder = msgspec.json.Encoder()
    return _packed(b"".join(encoder.encode(_rounded(entry)) + b"\n" for entry in entries))


def _packed(content: bytes) -> bytes:
    # The archive contains no time of writing, so equal records make equal bytes.
    return gzip.compress(content, compresslevel=6, mtime=0)


def _read_lines(path: Path, kind: type[Line]) -> list[Line]:
    decoder = msgspec.json.Decoder(kind)
    try:
        return [decoder.decode(line) for line in _unpacked(path).splitlines()]
    except msgspec.MsgspecError as error:
        raise UnreadableRun(f"{path}: {error}") from error


def _unpacked(path: Path) -> bytes:
    packed = path.read_bytes()
    if not packed:
        raise UnreadableRun(f"{path}: the file is empty")  # gzip accepts an empty file as an empty archive
    try:
        return gzip.decompress(packed)
    except (EOFError, zlib.error) as error:
        raise UnreadableRun(f"{path}: {error}") from error


def _rounded(entry: Line) -> Line:
    values = {name: getattr(entry, name) for name in entry.__struct_fields__}
    rounded: dict[str, Any] = {name: round(value, DIGITS) for name, value in values.items() if isinstance(value, float)}
    if isinstance(entry, RequestRecord):
        rounded["deliveries"] = [(round(time, DIGITS), count) for time, count in entry.deliveries]
    return msgspec.structs.replace(entry, **rounded)


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(path.name + ".part")
    draft.write_bytes(content)
    draft.replace(path)
