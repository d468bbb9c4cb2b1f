"""The OpenAPI document of the HTTP interface, built from the structs of requests and answers."""

import re
from typing import Any, Literal

import msgspec
from aiohttp import web

from frontends.anthropic.errors import MessagesErrorBody
from frontends.anthropic.requests import CountRequest, MessagesRequest
from frontends.anthropic.response_builder import MessagesAnswer
from frontends.batch.objects import BatchList, BatchObject, CreateBatch, FileDeleted, FileList, FileObject
from frontends.http.authentication import PROBES, ROOT
from frontends.http.request_checks import Handler
from frontends.http.responses import json_response
from frontends.http.routes.health import Checked, ServerLoad, Version
from frontends.http.routes.responses import PATH as RESPONSE
from frontends.openai.bodies import ChatChoice, Metrics, PromptLogprobs, TextChoice, TokenIds, UsageBody
from frontends.openai.chat import BatchChatRequest, ChatRequest
from frontends.openai.completions import CompletionRequest
from frontends.openai.errors import ErrorBody
from frontends.openai.requests import GenerateRequest
from frontends.openai.tokenization import DetokenizeRequest, TokenizeRequest
from frontends.openai.tokens import TokensAnswer, TokensRequest
from frontends.pooling.answers import ClassesAnswer, EmbeddingsAnswer, PooledAnswer, RerankAnswer, ScoreAnswer
from frontends.pooling.inputs import ClassifyRequest, EmbeddingsRequest, PoolRequest
from frontends.pooling.scoring import RerankRequest, ScoreRequest
from frontends.responses.objects import ItemList, ResponseDeleted
from frontends.responses.requests import ResponsesRequest
from llmserve import Completion
from llmserve.runtime.version import __version__

REF = "#/components/schemas/{name}"


class TextAnswer(msgspec.Struct):
    """The complete answer to POST /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageBody
    metrics: Metrics = msgspec.UNSET


class ChatAnswer(msgspec.Struct):
    """The complete answer to POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    prompt_token_ids: TokenIds
    prompt_logprobs: PromptLogprobs
    metrics: Metrics = msgspec.UNSET


class Tokens(msgspec.Struct):
    """The answer to POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class TokenizerInfo(msgspec.Struct):
    """The answer to GET /tokenizer_info, with all further settings of the tokenizer."""

    tokenizer_class: str


class ResponsesAnswer(msgspec.Struct):
    """The answer to POST /v1/responses, with all further fields of OpenAI's."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None


class InputTokens(msgspec.Struct):
    """The answer to POST /v1/messages/count_tokens."""

    input_tokens: int


class Text(msgspec.Struct):
    """The answer to POST /detokenize."""

    prompt: str


class ModelCard(msgspec.Struct):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None
    # The base model of an adapter.
    parent: str | msgspec.UnsetType = msgspec.UNSET


class ModelList(msgspec.Struct):
    """The answer to GET /v1/models."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(msgspec.Struct):
    """The answer to GET /health/live and /health/ready."""

    status: Literal["live", "ready"]
    state: str


# The meaning of each status, on any route (docs/http.md).
ERRORS = {
    400: "A field, a header or the body is invalid; `param` names the field.",
    401: "The API key is missing, unknown or expired.",
    403: "The tenant is unknown, or the request comes from a page of another origin.",
    404: "The model, the path or the object does not exist.",
    405: "The path does not support this method.",
    408: "The body did not arrive in time.",
    409: "The first request with this Idempotency-Key is still being answered.",
    413: "The body is too large.",
    415: "The body is compressed or not JSON.",
    417: "The only supported expectation is 100-continue.",
    422: "This Idempotency-Key was used for another request.",
    429: "The tenant's limit is reached.",
    500: "The engine failed this request.",
    503: "The server is starting, stopping or at its limit, or its engine died.",
    504: "The request's deadline has passed.",
}
# The parts of the file's form.
FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string", "const": "batch"}},
}
POSTS: dict[str, tuple[Any, Any, str]] = {
    "/v1/completions": (CompletionRequest, TextAnswer, "Complete a text"),
    "/v1/chat/completions": (ChatRequest, ChatAnswer, "Answer a conversation"),
    "/v1/chat/completions/batch": (BatchChatRequest, ChatAnswer, "Answer several conversations, with a choice for each"),
    "/v1/responses": (ResponsesRequest, ResponsesAnswer, "Answer a conversation, in the format of the Responses API"),
    "/v1/messages": (MessagesRequest, MessagesAnswer, "Answer a conversation, in Anthropic's format"),
    "/v1/messages/count_tokens": (CountRequest, InputTokens, "Count a conversation's tokens, in Anthropic's format"),
    "/inference/v1/generate": (TokensRequest, TokensAnswer, "Continue token ids with token ids"),
    "/generate": (GenerateRequest, Completion, "Generate one sequence"),
    "/v1/embeddings": (EmbeddingsRequest, EmbeddingsAnswer, "Return the embeddings of texts"),
    "/pooling": (PoolRequest, PooledAnswer, "Return the vectors of texts, or the scores of a classifier's classes"),
    "/classify": (ClassifyRequest, ClassesAnswer, "Return the scores of a classifier's classes"),
    **dict.fromkeys(("/score", "/v1/score"), (ScoreRequest, ScoreAnswer, "Return the similarity of pairs of texts")),
    **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), (RerankRequest, RerankAnswer, "Order documents by their relevance")),
    "/tokenize": (TokenizeRequest, Tokens, "Return the tokens of a prompt, as the model gets it"),
    "/detokenize": (DetokenizeRequest, Text, "Return the text of tokens"),
    "/v1/batches": (CreateBatch, BatchObject, "Answer the requests in a file, behind all others"),
}
GETS: dict[str, tuple[Any, str]] = {
    "/v1/models": (ModelList, "List the served models"),
    "/v1/models/{model}": (ModelCard, "Describe a served model"),
    RESPONSE: (ResponsesAnswer, "Return a stored response"),
    f"{RESPONSE}/input_items": (ItemList, "List the items that a stored response answers"),
    "/v1/files": (FileList, "List the files"),
    "/v1/files/{file_id}": (FileObject, "Describe a file"),
    "/v1/batches": (BatchList, "List the batches"),
    "/v1/batches/{batch_id}": (BatchObject, "Describe a batch"),
    "/tokenizer_info": (TokenizerInfo, "Return the tokenizer's settings"),
    "/health": (Health, "Check whether the server accepts requests"),
    "/health/ready": (Health, "Check whether the server accepts requests"),
    "/health/live": (Health, "Check whether the process needs no restart"),
    "/ping": (Health, "Same as /health, under SageMaker's name"),
    "/version": (Version, "Return the engine's version"),
    "/load": (ServerLoad, "Return the numbers of open and waiting requests"),
}
CHECKS: dict[str, tuple[Any, str]] = dict.fromkeys(
    ("/health/generate", "/health_generate"), (Checked, "Check whether the engine generates tokens")
)
TEXT_METRICS: dict[str, Any] = {kind: {"schema": {"type": "string"}} for kind in ("text/plain", "application/openmetrics-text")}
JSON_METRICS: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
STREAMED = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/inference/v1/generate", "/generate")


class OpenAPIRoute:
    """The handler of GET /openapi.json.

    Args:
        keys: whether the server requires API keys.
        checks: whether the server has /health/generate.
    """

    def __init__(self, *, keys: bool, checks: bool) -> None:
        self._keys = keys
        self._checks = checks

    def routes(self) -> dict[str, Handler]:
        return {"GET /openapi.json": self.openapi}

    async def openapi(self, request: web.Request) -> web.Response:
        return json_response(document(__version__, keys=self._keys, checks=self._checks, root=request.config_dict[ROOT]))


def document(llmserve: str, *, keys: bool, checks: bool, root: str) -> dict[str, Any]:
    """Return the document.

    Args:
        llmserve: llmserve's version.
        keys: whether the server requires API keys.
        checks: whether the server has /health/generate.
        root: the prefix of all paths.
    """
    gets = GETS | (CHECKS if checks else {})
    types = [kind for request, answer, _ in POSTS.values() for kind in (request, answer)] + [answer for answer, _ in gets.values()]
    _, schemas = msgspec.json.schema_components([*types, FileDeleted, ResponseDeleted, ErrorBody, MessagesErrorBody], ref_template=REF)
    paths: dict[str, dict[str, Any]] = {path: {"get": _get(*of)} for path, of in gets.items()}
    for path, of in POSTS.items():
        paths.setdefault(path, {})["post"] = _post(path, *of)
    paths["/ping"]["post"] = paths["/ping"]["get"]
    _add_others(paths)
    for path, methods in paths.items():
        for name in re.findall(r"{(\w+)}", path):
            for operation in methods.values():
                path_parameter = {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                operation["parameters"] = [path_parameter, *operation.get("parameters", ())]
    paths["/metrics"] = {"get": _operation("Return all metrics", TEXT_METRICS | JSON_METRICS)}
    paths["/metrics.json"] = {"get": _operation("Return all metrics as JSON", JSON_METRICS)}
    if keys:
        for path in PROBES:
            paths[path]["get"]["security"] = []
    return {
        **({"security": [{"key": []}]} if keys else {}),
        **({"servers": [{"url": root}]} if root else {}),
        "openapi": "3.1.0",
        "info": {"title": "llmserve", "version": llmserve, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _add_others(paths: dict[str, dict[str, Any]]) -> None:
    """Add the operations whose body or answer is not JSON, or that have another method."""
    form = {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}
    anything: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    paths["/invocations"] = {
        "post": _operation("Answer a request to another route, by its fields, for SageMaker", anything)
        | {"requestBody": {"required": True, "content": anything}, "parameters": HEADERS}
    }
    paths["/v1/files"]["post"] = _get(FileObject, "Store a file of requests") | {"requestBody": form}
    paths["/v1/files/{file_id}"]["delete"] = _get(FileDeleted, "Delete a file")
    paths["/v1/files/{file_id}/content"] = {
        "get": _operation("Return a file's content", {"application/jsonl": {"schema": {"type": "string"}}})
    }
    paths[RESPONSE]["delete"] = _get(ResponseDeleted, "Delete a stored response")
    paths[RESPONSE]["get"]["responses"]["200"]["content"] |= EVENTS
    paths[RESPONSE]["get"]["parameters"] = FOLLOWING
    paths[f"{RESPONSE}/cancel"] = {"post": _get(ResponsesAnswer, "Cancel a response that is made in the background")}
    paths["/v1/batches/{batch_id}/cancel"] = {"post": _get(BatchObject, "Let a batch end with its answers so far")}


EVENTS: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
FOLLOWING = [
    {"name": name, "in": "query", "schema": schema, "description": words}
    for name, schema, words in (
        ("stream", {"type": "boolean", "default": False}, "Whether to return the events of a response in the background."),
        (
            "starting_after",
            {"type": "integer", "minimum": 0, "maximum": 999_999_999},
            "The sequence_number of the event before the first one to return; only with `stream`.",
        ),
    )
]
HEADERS = [
    {"name": name, "in": "header", "schema": schema, "description": words}
    for name, schema, words in (
        (
            "X-Request-Timeout",
            {"type": "number", "exclusiveMinimum": 0, "maximum": 86_400},
            "Maximum seconds for the whole answer, including the time in the queue.",
        ),
        ("X-Request-Id", {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"}, "A name of the request for logs."),
        (
            "Idempotency-Key",
            {"type": "string", "pattern": "^[!-~]{1,255}$"},
            "A repeated request with the same key gets the same answer, for ten minutes.",
        ),
    )
]


def _post(path: str, request: Any, answer: Any, words: str) -> dict[str, Any]:
    content = _json(answer) | (EVENTS if path in STREAMED else {})
    error = MessagesErrorBody if path.startswith("/v1/messages") else ErrorBody
    return _operation(words, content, error) | {"requestBody": {"required": True, "content": _json(request)}, "parameters": HEADERS}


def _get(answer: Any, words: str) -> dict[str, Any]:
    return _operation(words, _json(answer))


def _json(kind: Any) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": REF.format(name=kind.__name__)}}}


def _operation(words: str, content: dict[str, Any], error: Any = ErrorBody) -> dict[str, Any]:
    errors = {str(status): {"description": meaning, "content": _json(error)} for status, meaning in ERRORS.items()}
    return {"summary": words, "responses": {"200": {"description": "The answer", "content": content}} | errors}
