"""Sends an image in many requests at once over HTTP, as a process of its own (`images.py`).

    python -m benchmarks.robustness.image_sender URL FILE COUNT

It prints a line when it is ready, waits for a line, sends, and prints the prompt's length.
"""

import base64
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

PATH = "/v1/chat/completions"


def distinct(data: bytes, number: int) -> bytes:
    """Return a file with the same image that no cache takes for the same."""
    # Readers ignore bytes after an image's end. The container of WebP has an even length.
    return data + number.to_bytes(8)


def body_of(data: bytes) -> bytes:
    url = "data:image/unknown;base64," + base64.b64encode(data).decode()
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    return msgspec.json.encode({"messages": [{"role": "user", "content": content}], "max_tokens": 1, "service_tier": "flex"})


def ask(address: str, body: bytes) -> int:
    """Return the prompt's length. Raises RuntimeError for another status than 200."""
    connection = HTTPConnection(address, timeout=600)
    connection.request("POST", PATH, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    if response.status != 200:
        raise RuntimeError(f"status {response.status}: {text[:300]!r}")
    answer: dict[str, Any] = msgspec.json.decode(text)
    return int(answer["usage"]["prompt_tokens"])


def main(url: str, file: str, count: int) -> None:
    # A client on another machine would take no CPU from the server.
    os.nice(19)
    data, address = Path(file).read_bytes(), urlsplit(url).netloc
    bodies = [body_of(distinct(data, number)) for number in range(count)]
    print("ready", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(count) as threads:
        print(*set(threads.map(lambda body: ask(address, body), bodies)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
