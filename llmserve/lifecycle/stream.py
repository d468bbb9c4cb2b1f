"""TokenStream carries one request's deltas from the engine, which pushes, to the caller."""

import copy
from collections.abc import Callable

import msgspec

from llmserve.engine import EngineTimings
from llmserve.errors import EngineDead, EngineError, LLMServeError
from llmserve.lifecycle.delta_buffer import DeltaBuffer
from llmserve.observability.metrics import Observer
from llmserve.pooling.vectors import Embedding, Pooled
from llmserve.request import Completion, Delta, Timeline, Usage
from llmserve.runtime.wakeup import make_wakeup
from llmserve.tools import OutputParser, join

# The finish_reason of an answer that an error ended, as in vLLM.
ABORTED = "abort"


def _nothing() -> None:
    """Do nothing."""


def _as_it_is(error: EngineDead) -> Exception | None:
    return error


class TokenStream:
    """An async iterator of `Delta` for one reader; made by `EngineManager.stream()`.

    `error` is what ended the stream; None while it is open and after a normal end. While the caller
    does not read, deltas are merged into one, so a slow reader costs no more memory than the answer
    itself. An error is raised after the tokens that came before it.
    """

    def __init__(
        self,
        timeline: Timeline,
        clock: Callable[[], float],
        observer: Observer,
        on_end: Callable[[], None],
        on_first: Callable[[], None] = _nothing,
        on_death: Callable[[EngineDead], Exception | None] = _as_it_is,
        interval: int = 1,
    ) -> None:
        self.timeline = timeline
        self._clock = clock
        self._observer = observer
        self._on_end = on_end
        self._on_first = on_first
        self._on_death = on_death
        # Tokens in each delta after the first, and tokens since the reader was last woken.
        self._interval = interval
        self._unwoken = 0
        self._pending: Delta | DeltaBuffer | None = None
        self.error: Exception | None = None
        self._ended = False
        # True while `put` is ignored: the stream has ended, or the deltas are from an engine that
        # died.
        self._deaf = False
        self._read_from = False
        self._wakeup = make_wakeup()
        self._wake = self._wakeup.wake
        self._notifies = False
        # Parses the text, if it is more than text, in the pieces that the engine put. Set by the
        # stream's maker.
        self.reader: OutputParser | None = None
        self._unparsed: list[Delta] = []
        # Set for a request with `return_prompt_ids`, before the stream is entered.
        self.prompt_token_ids: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        state = f"failed: {self.error!r}" if self.error else "ended" if self._ended else "open"
        return f"<TokenStream {self.request_id} {state}, {self.timeline.completion_tokens} tokens>"

    @property
    def request_id(self) -> str:
        return self.timeline.request_id

    @property
    def ended(self) -> bool:
        """Whether no more deltas will come; some may still be unread."""
        return self._ended

    @property
    def usage(self) -> Usage:
        """Number of tokens so far."""
        return Usage(self.timeline.prompt_tokens, self.timeline.completion_tokens, self.timeline.cached_tokens)

    def __aiter__(self) -> "TokenStream":
        self._require_reader()
        return self

    def _require_reader(self) -> None:
        self._wakeup.require_reader()
        if self._notifies:
            raise RuntimeError("this stream notifies a reader: do not iterate; call `take()` after each call of `notify`'s callback")

    async def __anext__(self) -> Delta:
        """Return the next delta.

        Raises:
            EngineRestarted: The engine died after part of the answer was read. If nothing was read,
                the request is submitted again, unnoticed.
            RequestCancelled, DeadlineExceeded: The request was ended from outside.
            EngineError: The engine failed the request, or died.
            RuntimeError: Another task reads the stream, or it belongs to another event loop.
        """
        while self._pending is None or (self._unwoken and not self._ended):
            self.raise_if_failed()
            if self._ended:
                raise StopAsyncIteration
            if self._notifies:
                self._require_reader()
            await self._wakeup.sleep()
        return self._read()

    def notify(self, ready: Callable[[], None]) -> None:
        """Call `ready()` at once and whenever there is more to `take()` or the stream ends.

        `ready` runs inside the engine's step, in the event loop's thread. It should only note the
        call; call `take()` after the step. A stream is either iterated or notifies.

        Raises RuntimeError if a task reads it, or in another event loop or thread.
        """
        self._wakeup.require_reader()
        self._notifies = True
        self._wake = ready
        if self._pending is not None or self._ended:
            ready()

    def take(self) -> Delta | None:
        """Return what came since the last call as one delta, or None. See `ended` and `error`."""
        return None if self._pending is None else self._read()

    def _read(self) -> Delta:
        self._read_from = True
        pending, self._pending = self._pending, None
        assert pending is not None
        delta = pending.whole() if isinstance(pending, DeltaBuffer) else pending
        if self.reader is None:
            return delta
        pieces, self._unparsed = self._unparsed, []
        read = self.reader.read
        messages = [read(piece.text, piece.token_ids, last=piece.finish_reason is not None) for piece in pieces]
        return msgspec.structs.replace(delta, message=join(messages))

    async def collect(self) -> Completion:
        """Read to the end and return the whole answer.

        Raises what iterating raises. The error's `partial` is the answer so far.
        """
        whole, reason = await self._whole()
        return self._completion(whole, reason)

    async def embedding(self) -> Embedding:
        """Return the vector. Raises what iterating raises."""
        whole, _ = await self._whole()
        if not isinstance(whole, Pooled):
            raise EngineError("the engine returned tokens and no vector")
        return Embedding(self.request_id, whole.data, self.usage)

    async def _whole(self) -> tuple[Delta, str]:
        """Return everything, and the finish reason."""
        whole = await self._rest()
        if self.error is not None:
            raise self._with_partial(self.error, whole)
        if whole is None or whole.finish_reason is None:
            raise EngineError("the engine ended the request without a finish reason")
        return whole, whole.finish_reason

    def _with_partial(self, error: Exception, whole: Delta | None) -> Exception:
        if whole is None or not isinstance(error, LLMServeError):
            return error
        if isinstance(error, EngineDead):
            # The same object ends all streams of an engine, but `partial` belongs to one caller.
            error = copy.copy(error)
            error.__cause__ = self.error
        error.partial = self._completion(whole, ABORTED)
        return error

    def _completion(self, whole: Delta, finish_reason: str) -> Completion:
        return Completion(
            request_id=self.request_id,
            text=whole.text,
            token_ids=whole.token_ids,
            finish_reason=finish_reason,
            usage=self.usage,
            stop_reason=whole.stop_reason,
            logprobs=whole.logprobs,
            prompt_logprobs=whole.prompt_logprobs,
            message=whole.message,
            prompt_token_ids=self.prompt_token_ids,
        )

    async def _rest(self) -> Delta | None:
        """Return everything until the end, even if the end is an error.

        Nothing is read before the end, so the request can be replayed if its engine dies.
        """
        self._require_reader()
        wake = self._wakeup.wake
        self._wake = lambda: wake() if self._ended else None
        while not self._ended:
            await self._wakeup.sleep()
        try:
            return self.take()
        except LLMServeError:
            # The parser may be unable to read a truncated answer.
            if self.error is None:
                raise
            return None

    def raise_if_failed(self) -> None:
        """Raise the error that ended the stream, if there is one."""
        if self.error is not None:
            raise self.error

    def put(self, delta: Delta, timings: EngineTimings | None = None) -> None:
        """Add tokens; after the end they are ignored."""
        if self._deaf:
            return
        timeline = self.timeline
        if delta.token_ids or type(delta) is Pooled:
            now = self._clock()
            count = len(delta.token_ids)
            self._observer.tokens(timeline, count, now)
            timeline.completion_tokens += count
            if timeline.first_token is None:
                timeline.first_token = now
                self._on_first()
            timeline.last_token = now
        if timings is not None:
            _note_timings(timeline, timings)
        if self.reader is not None:
            self._unparsed.append(Delta(delta.text, delta.token_ids, delta.finish_reason))
        pending = self._pending
        if pending is None:
            self._pending = delta
        elif isinstance(pending, DeltaBuffer):
            pending.add(delta)
        else:
            self._pending = DeltaBuffer(pending)
            self._pending.add(delta)
        if delta.finish_reason is not None:
            timeline.finish_reason = delta.finish_reason
            self._end()
        if self._interval == 1 or self._is_due(len(delta.token_ids)):
            self._wake()

    def _is_due(self, count: int) -> bool:
        """Whether to wake the reader: for the first tokens, each `interval` tokens and the end."""
        self._unwoken += count
        due = self._ended or self.timeline.completion_tokens == count or self._unwoken >= self._interval
        if due:
            self._unwoken = 0
        return due

    def fail(self, error: Exception) -> None:
        """End with an error; the first one counts. An engine's death may cause a replay instead."""
        if self._ended:
            return
        fatal = self._on_death(error) if isinstance(error, EngineDead) else error
        if fatal is not None:
            self.error = fatal
            self._end()
            self._wake()

    def rewind(self) -> bool:
        """Drop the deltas and ignore new ones until `replay()`; return False if some were read."""
        if self._read_from:
            return False
        self._deaf = True
        self._pending = None
        self._unparsed.clear()
        self._unwoken = 0
        self.timeline.completion_tokens = 0
        self.timeline.first_token = self.timeline.last_token = None
        return True

    def replay(self) -> None:
        """Accept the deltas of the next engine."""
        self._deaf = self._ended

    def _end(self) -> None:
        self._ended = self._deaf = True
        on_end = self._on_end
        # These refer to objects that refer to this stream: only the garbage collector would free
        # the prompt, seconds later.
        self._on_end = self._on_first = _nothing
        self._on_death = _as_it_is
        on_end()


def _note_timings(timeline: Timeline, timings: EngineTimings) -> None:
    timeline.engine_queued = timings.queued
    timeline.engine_scheduled = timings.scheduled
    timeline.engine_first_token = timings.first_token
    timeline.engine_last_token = timings.last_token
    timeline.cached_tokens = timings.cached_tokens
