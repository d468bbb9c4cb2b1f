"""The ways in which a server answers: a table of scripts. Knows no client and sends nothing.

Each row is something that a server of OpenAI's API does, or that happens to one. A row says how the
answer looks and when its parts come; `benchmarks.truth.script` makes the bytes.
"""

from typing import Literal

import attrs

# Tokens that every measured request asks for. A warm-up asks for another number, and gets an
# ordinary answer.
TOKENS = 16

FaultKind = Literal["refuse", "error body", "error event", "reset", "close", "cut", "hang"]


@attrs.frozen(kw_only=True)
class Fault:
    """What happens to some of the requests.

    Attributes:
        kind: `refuse` answers with `status`; `error body` answers 200 with `body`; `error event`
            sends `body` as an event; `reset` resets the connection; `close` closes it within the
            HTTP message; `cut` ends the HTTP message without the end of the answer; `hang` sends
            nothing more.
        after: Tokens that are sent before it; -1 is before the HTTP headers.
        every: One request in `every` has the fault.
    """

    kind: FaultKind
    after: int = -1
    status: int = 200
    body: str = ""
    every: int = 2


@attrs.frozen(kw_only=True)
class Behaviour:
    """One way to answer; the defaults are what most servers do. Times are in seconds.

    Attributes:
        does: What the server does, for the table.
        headers_after: Time until the HTTP headers.
        first: Time from the headers to the first token.
        gap: Time of a step, which makes one token.
        growth: Further time of a step for each other request that runs.
        batch: Requests that run at the same time; others wait. 0 is no limit.
        stall: A further time before the token in the middle.
        chunks: Tokens of each chunk, in turns.
        lengths: Tokens of the answers, in turns, where the model ends them; None is as requested.
        role: Whether a chunk with only a role comes with the headers.
        reasoning: Tokens at the beginning that are reasoning.
        tool: Whether the tokens are the arguments of a tool call.
        empties: Chunks with an empty text before each text.
        word: The text of a token.
        usage: Which chunks have the usage: one of its own at the end, that with the finish reason,
            all, or none.
        counted: What the usage says; None is the truth.
        finish: Which chunk has the finish reason: the last text's, one of its own, or none.
        done: Whether `[DONE]` comes at the end.
        newline: The end of a line.
        space: Whether a space follows `data:`.
        comments: Whether a comment comes before each event.
        together: Events in one segment.
        split: Whether an event comes in two segments, cut within a character of its text.
        framing: How the HTTP message ends: in chunks, in chunks with trailers, or with the
            connection.
        close: Whether the connection is closed after the answer.
    """

    name: str
    does: str
    chat: bool = False
    headers_after: float = 0.0
    first: float = 0.06
    gap: float = 0.02
    growth: float = 0.0
    batch: int = 0
    stall: float = 0.0
    chunks: tuple[int, ...] = (1,)
    lengths: tuple[int, ...] | None = None
    role: bool = False
    reasoning: int = 0
    tool: bool = False
    empties: int = 0
    word: str = " word"
    usage: Literal["own", "finish", "all", "none"] = "own"
    counted: int | None = None
    finish: Literal["text", "own", "none"] = "text"
    done: bool = True
    newline: bytes = b"\n"
    space: bool = True
    comments: bool = False
    together: int = 1
    split: bool = False
    framing: Literal["chunks", "trailers", "connection"] = "chunks"
    close: bool = False
    fault: Fault | None = None

    @property
    def hangs(self) -> bool:
        return self.fault is not None and self.fault.kind == "hang"

    @property
    def tells_usage(self) -> bool:
        return self.usage != "none" and self.counted is None


def _completion(name: str, does: str, **fields: object) -> Behaviour:
    return Behaviour(name=name, does=does, **fields)  # type: ignore[arg-type]  # attrs checks the names


def _chat(name: str, does: str, **fields: object) -> Behaviour:
    return Behaviour(name=name, does=does, chat=True, role=True, finish="own", **fields)  # type: ignore[arg-type]


def _fault(name: str, does: str, kind: FaultKind, after: int = -1, *, status: int = 200, body: str = "", every: int = 2) -> Behaviour:
    return Behaviour(name=name, does=does, fault=Fault(kind=kind, after=after, status=status, body=body, every=every))


_OPENAI_ERROR = '{"error": {"message": "the engine died", "type": "server_error", "code": 500}}'
_PLAIN_ERROR = '{"error": "the engine died"}'

# Three lengths, so that no median lies between two of them.
_NATURAL = (4, 9, TOKENS)

BEHAVIOURS = (
    _completion("plain", "one token in a chunk, the usage in a chunk of its own"),
    _completion("finish-own-chunk", "the finish reason comes in an empty chunk, the usage after it", finish="own"),
    _completion("usage-with-finish", "the usage comes with the finish reason", usage="finish"),
    _completion("usage-continuous", "each chunk has the usage so far", usage="all"),
    _completion("usage-none", "no usage", usage="none"),
    _completion("usage-zero", "the usage says 0 tokens, although text came", counted=0),
    _completion("four-tokens", "four tokens in a chunk, the usage only at the end", chunks=(4,)),
    _completion("four-tokens-continuous", "four tokens in a chunk, each chunk has the usage", chunks=(4,), usage="all"),
    _completion("speculative", "1, 3, 2 and 4 tokens in a chunk, each chunk has the usage", chunks=(1, 3, 2, 4), usage="all"),
    _completion("no-done", "no `[DONE]`", done=False),
    _completion("no-done-no-usage", "no `[DONE]` and no usage, only the finish reason", done=False, usage="none", finish="own"),
    _completion("natural-lengths", "the model ends answers after 4, 9 or 16 tokens", lengths=_NATURAL),
    _completion("empty-answer", "one answer in four has no token", lengths=(0, 16, 16, 16)),
    _completion("empty-chunks", "two empty chunks before each text", empties=2),
    _completion("slow-headers", "the HTTP headers come after 250 ms", headers_after=0.25),
    _completion("slow-first-token", "the headers come at once, the first token 300 ms later", first=0.3),
    _completion("stall", "a pause of 400 ms in the middle", stall=0.4),
    _completion("batch-limit", "one request runs at a time, the other waits", batch=1),
    _completion("step-growth", "a step takes 15 ms longer for each other request", growth=0.015),
    _chat("chat", "chat: a role first, the finish reason in an empty chunk"),
    _chat("chat-early-role", "chat: the role comes 200 ms before the first text", first=0.2),
    _chat("chat-reasoning", "chat: ten tokens of reasoning before the text", reasoning=10),
    _chat("chat-tool-call", "chat: a tool call instead of text", tool=True),
    _chat("chat-four-tokens", "chat: four tokens in a chunk, the usage only at the end", chunks=(4,)),
    _chat("chat-continuous", "chat: each chunk has the usage so far, the role's too", usage="all"),
    _chat("chat-natural-lengths", "chat: answers of natural length", lengths=_NATURAL),
    _completion("crlf", "lines end in CR LF", newline=b"\r\n"),
    _completion("no-space", "no space after `data:`", space=False),
    _completion("comments", "a comment (keep-alive) before each event", comments=True),
    _completion("four-events-at-once", "four events in one segment", together=4),
    _completion("split-event", "each event comes in two segments", split=True),
    _completion("split-character", "each event is cut within a character of three bytes", split=True, word=" 語"),
    _completion("long-lines", "lines of 100 KB", word=" word" * 20_000, usage="all"),
    _completion("close-after-answer", "the server closes each connection after its answer", close=True),
    _completion("until-close", "no length and no chunks: the answer ends with the connection", framing="connection", close=True),
    _completion("trailers", "HTTP trailers after the last chunk", framing="trailers"),
    _fault("error-400", "400 for every other request", "refuse", status=400, body=_OPENAI_ERROR),
    _fault("error-500", "500 for every other request", "refuse", status=500, body="Internal Server Error"),
    _fault("refused-429", "429 with Retry-After for every other request", "refuse", status=429, body=_OPENAI_ERROR),
    _fault("refused-503", "503 for every other request", "refuse", status=503, body=_PLAIN_ERROR),
    _fault("refused-quarter", "429 for every fourth request", "refuse", status=429, body=_OPENAI_ERROR, every=4),
    _fault("error-body", "200 with an error as JSON instead of a stream", "error body", body=_OPENAI_ERROR),
    _fault("error-event", "an error event after five tokens, then `[DONE]`", "error event", 5, body=_OPENAI_ERROR),
    _fault("error-event-plain", "the same, the error is a string", "error event", 5, body=_PLAIN_ERROR),
    _fault("reset-before-headers", "the connection is reset before the headers", "reset"),
    _fault("reset-mid-stream", "the connection is reset after five tokens", "reset", 5),
    _fault("closed-mid-stream", "the connection is closed after five tokens, within the HTTP message", "close", 5),
    _fault("truncated", "the answer ends after five tokens, without a finish reason", "cut", 5),
    _fault("hang-before-headers", "every fourth request gets nothing at all", "hang", every=4),
    _fault("hang-mid-stream", "every fourth request gets five tokens, then nothing", "hang", 5, every=4),
)


def find(names: str) -> tuple[Behaviour, ...]:
    """Return the rows of comma-separated names. Raises ValueError that names an unknown row."""
    known = {behaviour.name: behaviour for behaviour in BEHAVIOURS}
    try:
        return tuple(known[name] for name in names.split(","))
    except KeyError as error:
        raise ValueError(f"there is no behaviour {error}; choose from {', '.join(known)}") from None
