"""The parts of a message: texts and images. Knows no image library, and decodes nothing.

An image arrives as bytes or as a data URL. The server never fetches one: an address in a request
would choose what the server's network access reads.
"""

import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from llmserve.errors import InvalidRequest
from llmserve.validation import converters
from llmserve.validation.bounds import wrong_type

# Of one request.
MAX_IMAGES = 64
# Of one image, in bytes of its file. Bodies of HTTP requests are smaller.
MAX_BYTES = 32 * 2**20
# Base64 is decoded in pieces of this many characters. Decoding a piece holds the interpreter's lock
# for less than 1 ms; 4 MiB in one piece hold it for 10 ms or more.
PIECE = 2**18
# The field with the text of each type of part that is text, as in vLLM.
TEXT_FIELDS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking"}

_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,64}(;[a-z0-9=._+-]{1,64}){0,4};base64,", re.IGNORECASE | re.ASCII)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,15}:", re.IGNORECASE | re.ASCII)


@attrs.frozen
class Image:
    """An image in a message: a PNG, JPEG, WebP or GIF file, of which the first frame counts.

    A part of a message's content, beside texts:

        {"role": "user", "content": ["What is this?", Image(path.read_bytes())]}

    Attributes:
        data: The file's bytes, at most 32 MiB.

    Raises:
        InvalidRequest: There are too many bytes or none.
        TypeError: `data` is not of the type bytes.
    """

    data: bytes = attrs.field(repr=False)

    @data.validator
    def _bounded(self, _: object, value: object) -> None:
        if not isinstance(value, bytes):
            raise wrong_type("data", "bytes", value)
        if not 0 < len(value) <= MAX_BYTES:
            raise InvalidRequest(f"an image must have 1 to {MAX_BYTES:,} bytes, not {len(value):,}", "messages")

    def read(self) -> bytes:
        """Return the file's bytes."""
        return self.data


@attrs.frozen
class EncodedImage:
    """An image as base64, as it arrived in a data URL."""

    text: str = attrs.field(repr=False)

    def read(self) -> bytes:
        """Return the file's bytes. Takes milliseconds. Raises ValueError if the text is not base64."""
        text = self.text
        if text.find("=", 0, max(0, len(text) - 2)) >= 0:
            raise binascii.Error("padding before the end")
        return b"".join(binascii.a2b_base64(text[begin : begin + PIECE], strict_mode=True) for begin in range(0, len(text), PIECE))


AnyImage = Image | EncodedImage


def with_parts(value: Sequence[Mapping[str, Any]] | None) -> tuple[Mapping[str, Any], ...] | None:
    """Return messages whose contents are a text, None, or a list of texts and images.

    Raises InvalidRequest, which names the part, and TypeError for messages that are not mappings.
    """
    messages = converters.messages(value)
    if messages is None or not any(isinstance(message.get("content"), (list, tuple)) for message in messages):
        return messages
    found = tuple(_with_parts(f"messages[{number}].content", message) for number, message in enumerate(messages))
    if (count := len(images(found))) > MAX_IMAGES:
        raise InvalidRequest(f"messages has {count} images, but may have at most {MAX_IMAGES}", "messages")
    return found


def images(messages: Sequence[Mapping[str, Any]] | None) -> list[tuple[str, AnyImage]]:
    """Return the images of messages that `with_parts` returned, each with the name of its field."""
    return [
        (f"messages[{number}].content[{index}]{'.image_url.url' if isinstance(part, EncodedImage) else ''}", part)
        for number, message in enumerate(messages or ())
        if isinstance(message.get("content"), list)
        for index, part in enumerate(message["content"])
        if isinstance(part, AnyImage)
    ]


def text_of(content: str | Sequence[str | AnyImage] | None) -> str:
    """Return the text of a message's content, without its images."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part for part in content if isinstance(part, str))


def without_images(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a message with its text alone as its content."""
    return dict(message) | ({"content": text_of(message["content"])} if isinstance(message.get("content"), list) else {})


def openai_form(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message with its images as data URLs, for a wire."""
    content = message.get("content")
    if not isinstance(content, list):
        return dict(message)
    return {**message, "content": [part if isinstance(part, str) else {"type": "image_url", "image_url": _url(part)} for part in content]}


def _url(image: AnyImage) -> str:
    text = image.text if isinstance(image, EncodedImage) else binascii.b2a_base64(image.data, newline=False).decode()
    # The receiver finds the format in the file.
    return f"data:image/unknown;base64,{text}"


def _with_parts(field: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    if not isinstance(content, (list, tuple)):
        return message
    return {**message, "content": [_part(f"{field}[{index}]", part) for index, part in enumerate(content)]}


def _part(field: str, part: object) -> str | AnyImage:
    if isinstance(part, str | AnyImage):
        return part
    if not isinstance(part, Mapping):
        raise wrong_type(field, "a text, an Image or a mapping in OpenAI's form", part)
    kind = part.get("type")
    if kind == "image_url":
        return _encoded(f"{field}.image_url", part.get("image_url"))
    if kind not in TEXT_FIELDS:
        raise InvalidRequest(f"{field}: parts of the type {str(kind)[:64]!r} are not supported", field)
    text = part.get(TEXT_FIELDS[kind])
    if not isinstance(text, str):
        raise InvalidRequest(f"{field}: a part of the type {kind} requires {TEXT_FIELDS[kind]}", field)
    return text


def _encoded(field: str, value: object) -> EncodedImage:
    # vLLM accepts the URL itself too.
    url = value.get("url") if isinstance(value, Mapping) else value
    field = f"{field}.url"
    if not isinstance(url, str):
        raise InvalidRequest(f"{field} must be a data URL", field)
    found = _DATA_URL.match(url)
    if found is None:
        scheme = _SCHEME.match(url)
        if scheme is not None and scheme[0].lower() != "data:":
            words = f"the server fetches nothing, not even from {scheme[0]} addresses; send the image as a data URL"
        else:
            words = "an image must be a data URL with base64: data:image/png;base64,..."
        raise InvalidRequest(f"{field}: {words}", field)
    length = len(url) - found.end()
    if length > MAX_BYTES // 3 * 4:
        raise InvalidRequest(f"{field}: an image may have at most {MAX_BYTES:,} bytes", field)
    return EncodedImage(url[found.end() :])
