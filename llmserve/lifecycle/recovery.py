"""What becomes of open requests when the engine dies: whoever has seen nothing of an answer gets it from the next engine, as if nothing
had happened; whoever has seen some of it is told so, once, and never given another one's tokens."""

from collections.abc import Callable, Iterable

import anyio

from llmserve.engine import Engine, EnginePrompt
from llmserve.errors import EngineDead, EngineRestarted, LLMServeError
from llmserve.lifecycle.open_request import OpenRequest
from llmserve.request import Sampling

# A request that was in two engines when they died may be what kills them.
MAX_REPLAYS = 2


class Recovery:
    """The way into the engine, for requests that outlive it.

    `restarts` says whether the engine will be started again if it dies now.
    """

    def __init__(self, engine: Engine, restarts: Callable[[], bool]) -> None:
        self._engine = engine
        self._restarts = restarts
        self._hope = False
        self._up = anyio.Event()
        # Why there will be no engine any more.
        self._end: Exception | None = None

    # The engine's life

    @property
    def up(self) -> bool:
        return self._up.is_set()

    def engine_up(self, open_requests: Iterable[OpenRequest]) -> list[OpenRequest]:
        """The engine is up; returns those that are to be begun again."""
        self._up.set()
        return [
            open_request
            for open_request in open_requests
            if open_request.entered and not (open_request.in_engine or open_request.stream.ended or open_request.replaying)
        ]

    def engine_down(self, error: EngineDead, open_requests: Iterable[OpenRequest], *, for_good: bool) -> None:
        """The engine is gone, with what was in it; for good, also those that wait for it have no hope any more."""
        self._lose()
        if for_good:
            self._end = error
        for open_request in open_requests:
            if open_request.in_engine or for_good or (error.stalled and not open_request.stream.ended and _is_suspect(open_request)):
                open_request.stream.fail(error)
                open_request.in_engine = False

    def _lose(self) -> None:
        if self._up.is_set():
            self._up = anyio.Event()
            self._hope = self._restarts()

    # One request

    async def wait(self) -> None:
        """Until an engine is up."""
        while not self._up.is_set():
            await self._up.wait()

    async def tokenize(self, open_request: OpenRequest) -> EnginePrompt:
        """Raises InvalidRequest."""
        while True:
            await self.wait()
            try:
                return await self._engine.tokenize(open_request.request)
            except EngineDead as error:
                self._outlive(open_request, error)

    async def submit(self, open_request: OpenRequest, prompt: EnginePrompt, sampling: Sampling) -> None:
        """Returns when an engine has it. Raises EngineError, and EngineRestarted when it was lost too often."""
        open_request.prompt, open_request.sampling = prompt, sampling
        request = open_request.request
        if request.return_prompt_ids:
            open_request.stream.prompt_token_ids = prompt.token_ids
        while not open_request.in_engine:
            await self.wait()
            open_request.stream.replay()
            # Before the await: a submit that is cancelled half-way may have left the request in the engine.
            open_request.in_engine = True
            try:
                await self._engine.submit(request.request_id, prompt, sampling, request.priority, open_request.stream)
            except EngineDead as error:
                self._outlive(open_request, error)

    async def replay(self, open_request: OpenRequest) -> None:
        """Begin a request again whose caller waits for its stream; a task of the manager's."""
        assert open_request.prompt is not None
        assert open_request.sampling is not None
        with anyio.CancelScope() as open_request.replaying:
            try:
                await self.submit(open_request, open_request.prompt, open_request.sampling)
            except LLMServeError as error:
                open_request.stream.fail(error)
        open_request.replaying = None

    def _outlive(self, open_request: OpenRequest, error: EngineDead) -> None:
        """Raises what ends the request."""
        fatal = self.outcome_after_death(open_request, error)
        if fatal is not None:
            raise fatal from error

    def outcome_after_death(self, open_request: OpenRequest, error: EngineDead) -> Exception | None:
        """What an engine's death means to one request: None, if it may be begun again. Not every engine tells of its own."""
        self._lose()
        if self._end is not None or not self._hope:
            return error
        if error.stalled and _is_suspect(open_request):
            return EngineRestarted("the engine stalled with this request in it, whose answer is constrained; it is not begun again")
        if open_request.in_engine and open_request.replays == MAX_REPLAYS:
            return EngineRestarted(f"the engine has died {MAX_REPLAYS + 1} times with this request in it")
        if not open_request.stream.rewind():
            return EngineRestarted("the engine died before the answer was complete, and is being restarted")
        if open_request.in_engine:
            open_request.in_engine = False
            open_request.replays += 1
        return None


def _is_suspect(open_request: OpenRequest) -> bool:
    """Whether its constraint may be why the engine stalled, and would make the next one stall. Also one that the engine has given back
    already: some engines report their own death, and do not know why."""
    return open_request.constraint is not None and (open_request.in_engine or open_request.replays > 0)
