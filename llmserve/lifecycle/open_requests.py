"""The open requests of a manager: registers each on its arrival, and releases it at its end."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import anyio

from llmserve.cancellation import CancellationToken
from llmserve.engine import Engine
from llmserve.errors import DeadlineExceeded, EngineDead, InvalidRequest, LLMServeError, RequestCancelled
from llmserve.lifecycle.admission_driver import AdmissionDriver
from llmserve.lifecycle.deadlines import Deadlines
from llmserve.lifecycle.manager_loop import ManagerLoop
from llmserve.lifecycle.open_request import OpenRequest, interrupter, note_outcome
from llmserve.lifecycle.request_state import Event, RequestState
from llmserve.lifecycle.stream import TokenStream
from llmserve.observability.metrics import Observer, Observers
from llmserve.request import GenerationRequest, Timeline
from llmserve.tracing import CarefulTracer, NoTracer, Tracer

logger = logging.getLogger(__name__)


class OpenRequests:
    """The open requests by their id.

    The end of a request's stream is the one cause of its release. Callers, tokens, deadlines and
    engines only end the stream.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        admission: AdmissionDriver,
        loop: ManagerLoop,
        cleanup_timeout: float,
        observers: Sequence[Observer] = (),
        tracer: Tracer | None = None,
    ) -> None:
        self._engines = engines
        self._admission = admission
        self._loop = loop
        self._tracer: Tracer = NoTracer() if tracer is None else CarefulTracer(tracer)
        self._cleanup_timeout = cleanup_timeout
        self._by_id: dict[str, OpenRequest] = {}
        self._idle: anyio.Event | None = None
        self._observers = tuple(observers)
        self.observer: Observer = Observers(self._observers)
        self.deadlines = Deadlines(loop.time)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[OpenRequest]:
        """Iterate over the requests that are open now; they may end during the iteration."""
        return iter(tuple(self._by_id.values()))

    def record(self, recorder: Observer) -> None:
        """Notify `recorder` too, before the observers."""
        self.observer = Observers((recorder, *self._observers)) if self._observers else recorder

    # Arrival

    def add(
        self,
        request: GenerationRequest,
        timeline: Timeline,
        seconds: float,
        token: CancellationToken | None,
        on_death: Callable[[OpenRequest, EngineDead], Exception | None],
    ) -> OpenRequest:
        """Register a request that may take `seconds`. Raises InvalidRequest if its id is open."""
        if request.request_id in self._by_id:
            raise InvalidRequest(f"a request with the id {request.request_id[:64]!r} is already open", "request_id")
        deadline = timeline.arrived + seconds
        open_request = OpenRequest(request=request, timeline=timeline, deadline=deadline, span=self._tracer.begin(request, timeline))
        open_request.stream = TokenStream(
            timeline,
            self._loop.now,
            self.observer,
            on_end=lambda: self._ended(open_request),
            on_first=lambda: self._admission.first_token(open_request),
            on_death=lambda error: on_death(open_request, error),
            interval=request.sampling.stream_interval,
        )
        if token is not None:
            deadline = min(deadline, token.deadline)
            open_request.unlink = token.add_callback(interrupter(open_request.stream))
        # This comes after everything that can raise. Otherwise a failed arrival would stay
        # registered, and leaving the manager would wait for it.
        self._by_id[request.request_id] = open_request
        if deadline < math.inf:
            open_request.watch = self.deadlines.add(
                deadline, lambda: open_request.stream.fail(DeadlineExceeded(deadline - timeline.arrived))
            )
        return open_request

    def count_refused(self, request: GenerationRequest, timeline: Timeline, error: LLMServeError) -> None:
        """Count a request that was refused on arrival; it holds nothing that must be released."""
        note_outcome(timeline, error)
        timeline.finished = timeline.arrived
        self.observer.finished(timeline)
        self._tracer.begin(request, timeline).end(timeline)

    # The way to the engine, and the end

    @contextmanager
    def entering(self, open_request: OpenRequest) -> Iterator[None]:
        """Take a request to the engine inside this context; the request's end cancels its body.

        The release waits until the body has unwound: an abort that reaches the engine before the
        submit would find nothing.
        """
        try:
            with open_request.entry:
                yield
        finally:
            open_request.state.process(Event.ENTERED)
            if open_request.stream.ended:
                self._settle(open_request)

    async def leave(self, open_request: OpenRequest) -> None:
        """End the request because its caller has left; return when it holds nothing."""
        if not open_request.stream.ended:
            open_request.stream.fail(RequestCancelled("the caller left the stream"))
        # The manager's own task does the cleanup that must be awaited. An await here could be
        # cancelled: anyio cancels by level, and aiohttp's native cancel passes through any shield.
        if open_request.state.now is not RequestState.RELEASED:
            open_request.released = anyio.Event()
            await open_request.released.wait()

    def _ended(self, open_request: OpenRequest) -> None:
        """Handle the end of a stream: it has its last delta, or its error."""
        error = open_request.stream.error
        note_outcome(open_request.timeline, error)
        if error is None:
            open_request.state.process(Event.FINISHED)
        if open_request.state.on_the_way:
            open_request.entry.cancel()
        else:
            self._settle(open_request)

    def _settle(self, open_request: OpenRequest) -> None:
        """Release everything once: now if the engine is done with it, otherwise after an abort."""
        open_request.state.process(Event.SETTLE)
        open_request.unlink()
        if open_request.watch is not None:
            open_request.watch.release()
        open_request.timeline.finished = self._loop.now()
        if open_request.state.in_engine:
            self._loop.spawn(self._abort, open_request)
        else:
            self._release(open_request)

    async def _abort(self, open_request: OpenRequest) -> None:
        # An engine that has just died gets the abort too: it may still count the request.
        request_id = open_request.request.request_id
        with anyio.move_on_after(self._cleanup_timeout, shield=True) as scope:
            try:
                await self._engines[open_request.engine].abort(request_id)
            except Exception:
                logger.exception("aborting request %s failed", request_id)
        if scope.cancelled_caught:
            logger.warning("the engine did not confirm the abort of request %s", request_id)
        open_request.state.process(Event.ABORTED)
        self._release(open_request)

    def _release(self, open_request: OpenRequest) -> None:
        open_request.state.process(Event.RELEASE)
        self._admission.leave(open_request)
        del self._by_id[open_request.request.request_id]
        self.observer.finished(open_request.timeline)
        open_request.span.end(open_request.timeline)
        if open_request.released is not None:
            open_request.released.set()
        if self._idle is not None and not self._by_id:
            self._idle.set()

    # All requests

    async def drain(self, timeout: float | None) -> bool:
        """Wait until none is open; return whether that was within `timeout` seconds."""
        if self._by_id:
            self._idle = self._idle or anyio.Event()
            with anyio.move_on_after(timeout):
                await self._idle.wait()
        return not self._by_id
