"""Reads prompts as text: ShareGPT's JSON, and JSON or JSON lines with a prompt in each entry.

An entry is a conversation (`conversations` as in ShareGPT, or `messages`), of which the first
question is the prompt and its answer gives the length, or it has a prompt and perhaps an answer or
its number of tokens, under one of the usual names.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from benchmarks.workload.requests import Empirical, Text, Texts
from benchmarks.workload.traces import UnreadableFile

PROMPTS = ("prompt", "text", "question", "instruction", "input")
ANSWERS = ("output_tokens", "completion_tokens", "completion", "response", "answer", "output")
IMAGES = ("image", "images", "image_url")
# Without a tokenizer, a token of English has about this number of characters.
CHARACTERS = 4
# A point sends fewer, and every generator process gets all of them.
MAX_TEXTS = 10_000


def estimate(text: str) -> int:
    """Return about how many tokens a text has."""
    return max(1, len(text) // CHARACTERS)


def read_texts(path: Path, count: Callable[[str], int] | None = None, limit: int = MAX_TEXTS) -> Texts:
    """Return a file's first prompts, with lengths by `count` or about. Raises UnreadableFile."""
    found: list[Text] = []
    skipped = 0
    for number, entry in enumerate(_entries(path), 1):
        try:
            decoded = json.loads(entry) if isinstance(entry, str) else entry
            text = _text(decoded, count or estimate)
            skipped += text is None and _has_image(decoded)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnreadableFile(f"{path}: entry {number}: {error}") from error
        if text is not None:
            found.append(text)
        if len(found) >= limit:
            break
    if not found:
        raise UnreadableFile(f"{path}: the file has no prompts{' without images' if skipped else ''}")
    name = path.name if count is not None else f"{path.name}, estimated"
    answers = [text.answer for text in found if text.answer is not None]
    return Texts(
        texts=tuple(found),
        lengths=Empirical(tuple(text.tokens for text in found), name),
        answers=Empirical(tuple(answers), name) if len(answers) == len(found) else None,
        with_images=skipped,
    )


def _entries(path: Path) -> Sequence[Any]:
    """Return the entries of a JSON list, or the lines of JSON lines."""
    try:
        content = path.read_text(encoding="utf-8")
        found = json.loads(content) if content.lstrip().startswith("[") else [line for line in content.splitlines() if line.strip()]
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UnreadableFile(f"{path}: {error}") from error
    return cast("Sequence[Any]", found)


def _text(entry: Any, count: Callable[[str], int]) -> Text | None:
    """Return an entry's prompt; None if a conversation does not begin with a question, or the prompt is empty or has an image."""
    prompt, answer = _turns(entry)
    if not prompt.strip() or _has_image(entry):
        return None
    length = answer if isinstance(answer, int) else count(answer) if isinstance(answer, str) and answer.strip() else None
    return Text(prompt, count(prompt), length)


def _turns(entry: Any) -> tuple[str, Any]:
    turns = entry.get("conversations", entry.get("messages"))
    if turns is not None:
        said = [(turn.get("from") or turn.get("role"), turn.get("value") or turn.get("content") or "") for turn in turns]
        said = [turn for turn in said if turn[0] != "system"]
        begins = bool(said) and said[0][0] in ("human", "user")
        return (_words(said[0][1]) if begins else ""), (_words(said[1][1]) if begins and len(said) > 1 else None)
    prompt = next((entry[name] for name in PROMPTS if name in entry), None)
    if not isinstance(prompt, str):
        raise TypeError(f"unknown format: it has none of the fields conversations, messages, {', '.join(PROMPTS)}")
    return prompt, next((entry[name] for name in ANSWERS if entry.get(name)), None)


def _words(content: Any) -> str:
    """Return the text of a message, which may be a list of parts."""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)


def _has_image(entry: Any) -> bool:
    """Whether an entry, or the question that it begins with, has an image."""
    if any(entry.get(name) for name in IMAGES):
        return True
    said = [turn for turn in entry.get("conversations", entry.get("messages")) or () if turn.get("role") != "system"]
    parts = (said[0].get("value") or said[0].get("content")) if said else entry.get("prompt")
    return isinstance(parts, list) and any("image" in str(part.get("type")) for part in parts)
