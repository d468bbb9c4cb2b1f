"""Checks the compatibility page against the server's decoders and against other APIs' fields."""

import pathlib
import re
import typing
from typing import Any

import attrs
import msgspec
import pytest
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.embedding_create_params import EmbeddingCreateParams

from frontends.access.caller import Caller
from frontends.anthropic.requests import MessagesRequest
from frontends.openai.chat import ChatRequest
from frontends.openai.completions import CompletionRequest
from frontends.openai.decoding import decode
from frontends.openai.sizes import Undecoded
from frontends.pooling.inputs import ClassifyRequest, EmbeddingsRequest
from frontends.pooling.scoring import RerankRequest, ScoreRequest, ScoringBody
from frontends.responses.requests import ResponsesRequest
from llmserve import EngineInfo, InvalidRequest

PAGE = pathlib.Path(__file__).parent.parent.parent / "docs/compatibility.md"
USER = [{"role": "user", "content": "hi"}]
BASE: dict[str, dict[str, Any]] = {
    "chat": {"messages": USER},
    "completions": {"prompt": "hi"},
    "messages": {"messages": USER, "max_tokens": 1},
    "responses": {"input": "hi"},
    "embeddings": {"input": "hi"},
    "classes": {"input": "hi"},
    "scores": {"queries": "hi", "documents": "a"},
    "ranks": {"query": "hi", "documents": ["a"]},
}
# The routes whose fields a heading is about.
ROUTES = {
    "## Both": ("chat", "completions"),
    "## Chat alone": ("chat",),
    "## Completions alone": ("completions",),
    "## Anthropic's messages": ("messages",),
    "## Responses": ("responses",),
    "## Embeddings": ("embeddings",),
    "## Classes": ("classes",),
    "## Scores": ("scores",),
    "## Ranks": ("ranks",),
}
KINDS: dict[str, Any] = {
    "chat": ChatRequest,
    "completions": CompletionRequest,
    "messages": MessagesRequest,
    "responses": ResponsesRequest,
    "embeddings": EmbeddingsRequest,
    "classes": ClassifyRequest,
    "scores": ScoreRequest,
    "ranks": RerankRequest,
}
INFO = EngineInfo(name="e", version="1", model="m", max_model_len=9, vocab_size=9, max_num_seqs=9, tasks=("embed",))


def requests_of(body):
    return (body.scoring(Caller(), None, INFO) if isinstance(body, ScoringBody) else body.wanted(Caller(), None)).requests


def listed():
    """Return the page's entry for each field of each route."""
    found = {route: {} for route in KINDS}
    routes: tuple[str, ...] = ()
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            routes = ROUTES.get(line, ())
        elif line.startswith("| `"):
            names, verdict = line.split("|")[1:3]
            for route in routes:
                for name in re.findall(r"`(\w+)`", names):
                    assert name not in found[route], f"{name} is there twice"
                    found[route][name] = verdict.strip()
    return found


LISTED = listed()
ROWS = [(route, name, verdict) for route, fields in LISTED.items() for name, verdict in fields.items()]


@pytest.mark.parametrize(("route", "name", "verdict"), ROWS, ids=[f"{route}-{name}" for route, name, _ in ROWS])
def test_the_server_matches_the_page(route, name, verdict):
    fields = msgspec.structs.fields(KINDS[route])
    known = {field.encode_name for field in fields}
    ignored = {field.encode_name for field in fields if field.type == Undecoded}
    assert verdict == ("ignored" if name in ignored else "supported" if name in known else "refused")
    decoder = msgspec.json.Decoder(KINDS[route])
    if verdict == "refused":
        neutral, reason = KINDS[route].unsupported[name]
        plain = decode(decoder, msgspec.json.encode(BASE[route]))
        for value in (None, *neutral):
            assert decode(decoder, msgspec.json.encode({**BASE[route], name: value})) == plain
        for value in (-7, "x", {"any": "thing"}, ["thing"], "long" * 100):
            with pytest.raises(InvalidRequest, match="not supported") as caught:
                decode(decoder, msgspec.json.encode({**BASE[route], name: value}))
            assert caught.value.param == name
            assert reason in str(caught.value)
    elif verdict == "ignored":
        body = decode(decoder, msgspec.json.encode({**BASE[route], name: {"any": ["thing"]}}))
        plain = decode(decoder, msgspec.json.encode(BASE[route]))
        (one,), (other,) = map(requests_of, (body, plain))
        assert one.sampling == other.sampling


@pytest.mark.parametrize("route", KINDS)
def test_null_has_no_effect(route):
    """Some clients send all fields of their library."""
    decoder, fields = msgspec.json.Decoder(KINDS[route]), dict.fromkeys(LISTED[route].keys() - BASE[route].keys())

    def asked(sent):
        requests = requests_of(decode(decoder, msgspec.json.encode({**BASE[route], **sent})))
        return [attrs.evolve(request, request_id="same") for request in requests]

    for sent in (fields, *({name: None} for name in fields)):
        assert asked(sent) == asked({}), sent


@pytest.mark.parametrize("route", KINDS)
def test_each_refused_field_has_its_reason(route):
    assert set(KINDS[route].unsupported) == {name for name, verdict in LISTED[route].items() if verdict == "refused"}


@pytest.mark.parametrize("route", KINDS)
def test_nothing_that_the_server_reads_is_missing(route):
    known = {field.encode_name for field in msgspec.structs.fields(KINDS[route])}
    assert known == {name for name, verdict in LISTED[route].items() if verdict != "refused"}


@pytest.mark.parametrize(
    ("route", "params"),
    [
        ("chat", chat_params.CompletionCreateParamsBase),
        ("completions", text_params.CompletionCreateParamsBase),
        ("embeddings", EmbeddingCreateParams),
    ],
    ids=["chat", "completions", "embeddings"],
)
def test_nothing_that_openai_s_client_sends_is_missing(route, params):
    sent = set(typing.get_type_hints(params)) | (set() if route == "embeddings" else {"stream"})
    assert sent <= set(LISTED[route]), sent - set(LISTED[route])
