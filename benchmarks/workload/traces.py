"""Reads recorded traffic as JSONL or CSV, with the columns of its publishers.

Mooncake (github.com/kvcache-ai/Mooncake, FAST25 traces): timestamp in milliseconds, input_length,
output_length, hash_ids. Each hash id stands for one block of 512 prompt tokens, so equal ids are a
shared prefix. In the form that AIPerf reads, a row with a delay in milliseconds is a later turn of
the conversation with the same session_id, to whose end it adds input_length tokens. Azure
(AzurePublicDataset, LLM inference traces): TIMESTAMP as a date, ContextTokens, GeneratedTokens.
BurstGPT (HPMLL/BurstGPT): Timestamp in seconds, "Request tokens", "Response tokens". A failed
request of BurstGPT has a response of 0 tokens and is left out.
"""

import csv
import datetime
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs

MOONCAKE_BLOCK = 512


class UnreadableFile(Exception):
    """A trace or a file of prompts cannot be read; the message names the file, the entry and the problem."""


@attrs.frozen
class LaterTurn:
    """A further request of a conversation.

    Attributes:
        think: Seconds from the end of the answer before.
        prompt: Tokens that it adds to the conversation.
        output: Answer length in tokens.
    """

    think: float
    prompt: int
    output: int


@attrs.frozen
class Arrival:
    """One request of a trace, with the later ones of its conversation.

    Attributes:
        time: Seconds since the first request.
        prompt: Prompt length in tokens.
        output: Answer length in tokens.
        blocks: Ids of the blocks of the prompt's prefix.
    """

    time: float
    prompt: int
    output: int
    blocks: tuple[int, ...] = ()
    later: tuple[LaterTurn, ...] = ()

    def at_speed(self, first: float, speed: float) -> "Arrival":
        later = tuple(attrs.evolve(turn, think=turn.think / speed) for turn in self.later)
        return attrs.evolve(self, time=(self.time - first) / speed, later=later)


def _mooncake(row: dict[str, Any]) -> Arrival:
    blocks = tuple(int(number) for number in row.get("hash_ids") or ())
    return Arrival(float(row.get("timestamp") or 0) / 1000, int(row["input_length"]), int(row["output_length"]), blocks)


def _azure(row: dict[str, Any]) -> Arrival:
    # The time has seven digits of a second, and Python reads six.
    moment = datetime.datetime.fromisoformat(str(row["TIMESTAMP"]).strip()[:26])
    # Only time differences count, so any time zone will do.
    seconds = moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp()
    return Arrival(seconds, int(row["ContextTokens"]), int(row["GeneratedTokens"]))


def _burstgpt(row: dict[str, Any]) -> Arrival:
    return Arrival(float(row["Timestamp"]), int(row["Request tokens"]), int(row["Response tokens"]))


# Format by the column that only this format has.
FORMATS: dict[str, Callable[[dict[str, Any]], Arrival]] = {
    "input_length": _mooncake,
    "ContextTokens": _azure,
    "Request tokens": _burstgpt,
}


def read_trace(path: Path, *, speed: float = 1.0, limit: int | None = None) -> list[Arrival]:
    """Return arrivals in order, from 0; `speed` 2 is twice as fast. Raises UnreadableFile."""
    try:
        with path.open(newline="") as file:
            rows: Iterable[Any] = csv.DictReader(file) if path.suffix == ".csv" else (json.loads(line) for line in file if line.strip())
            found: list[Arrival] = []
            sessions: dict[str, int] = {}
            for row in rows:
                _take(row, found, sessions)
                if limit is not None and len(found) >= limit:
                    break
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableFile(f"{path}: request {len(found) + 1}: {error}") from error
    if not found:
        raise UnreadableFile(f"{path}: the trace has no requests")
    found.sort(key=lambda arrival: arrival.time)
    first = found[0].time
    return [arrival.at_speed(first, speed) for arrival in found]


def _take(row: Any, found: list[Arrival], sessions: dict[str, int]) -> None:
    """Add a row's request, or a later turn to the conversation of its session."""
    arrival = _arrival(row)
    if arrival.prompt <= 0 or arrival.output <= 0:
        return
    session = str(row.get("session_id") or "")
    if session in sessions and row.get("delay") is not None:
        number = sessions[session]
        turn = LaterTurn(float(row["delay"]) / 1000, arrival.prompt, arrival.output)
        found[number] = attrs.evolve(found[number], later=(*found[number].later, turn))
        return
    if session:
        sessions[session] = len(found)
    found.append(arrival)


def _arrival(row: Any) -> Arrival:
    for column, convert in FORMATS.items():
        if isinstance(row, dict) and column in row:
            return convert(row)
    raise ValueError(f"unknown format: it has none of the columns {', '.join(map(repr, FORMATS))}")
