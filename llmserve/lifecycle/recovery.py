"""Decides what happens to open requests when the engine dies.

A request whose caller has read nothing is submitted to the next engine, unnoticed by the caller. A
request whose caller has read something ends with one error; its stream never mixes the tokens of
two engines.
"""

from collections.abc import Callable

import anyio

from llmserve.engine import Engine, EnginePrompt
from llmserve.errors import EngineDead, EngineRestarted, LLMServeError
from llmserve.lifecycle.open_request import OpenRequest
from llmserve.lifecycle.open_requests import OpenRequests
from llmserve.lifecycle.request_state import Event, RequestState
from llmserve.request import Sampling

# Maximum number of replays. A request that was in more engines when they died may be the cause.
MAX_REPLAYS = 2


class Recovery:
    """Submits requests to the engine, and to the next one if the engine dies.

    `restarts` returns whether the engine would be started again if it died now.
    """

    def __init__(self, engine: Engine, open_requests: OpenRequests, restarts: Callable[[], bool]) -> None:
        self._engine = engine
        self._open_requests = open_requests
        self._restarts = restarts
        self._hope = False
        self._up = anyio.Event()
        # Why no engine will be started again.
        self.failure: BaseException | None = None

    # The engine's lifecycle

    @property
    def up(self) -> bool:
        return self._up.is_set()

    def busy(self) -> int:
        """Return the number of requests that the engine should be working on.

        An engine that reports its death but goes on would leave all requests waiting, so they count
        as busy.
        """
        return sum(open_request.state.in_engine or not self.up for open_request in self._open_requests)

    def engine_up(self) -> list[OpenRequest]:
        """Note that the engine is up; return the requests that must be submitted again."""
        self._up.set()
        return [open_request for open_request in self._open_requests if open_request.state.now is RequestState.DETACHED]

    def engine_down(self, error: EngineDead, *, for_good: bool) -> None:
        """Note that the engine is down, and end the requests that were in it.

        With `for_good`, the requests that wait for an engine end too.
        """
        self._lose()
        if for_good:
            self.failure = error
        for open_request in self._open_requests:
            state = open_request.state
            if state.in_engine or for_good or (error.stalled and not open_request.stream.ended and _is_suspect(open_request)):
                open_request.stream.fail(error)
            # The stream's end may have moved the state.
            if state.in_engine:
                state.process(Event.LOST)

    def _lose(self) -> None:
        if self._up.is_set():
            self._up = anyio.Event()
            self._hope = self._restarts()

    # One request

    async def wait(self) -> None:
        """Wait until an engine is up."""
        while not self._up.is_set():
            await self._up.wait()

    async def tokenize(self, open_request: OpenRequest) -> EnginePrompt:
        """Return the request's prompt. Raises InvalidRequest."""
        while True:
            await self.wait()
            try:
                return await self._engine.tokenize(open_request.request)
            except EngineDead as error:
                self._outlive(open_request, error)

    async def submit(self, open_request: OpenRequest, prompt: EnginePrompt, sampling: Sampling) -> None:
        """Return when an engine has the request.

        Raises EngineError, and EngineRestarted if too many engines died with the request in them.
        """
        open_request.prompt, open_request.sampling = prompt, sampling
        request = open_request.request
        if request.return_prompt_ids:
            open_request.stream.prompt_token_ids = prompt.token_ids
        # The engine may die, or return the last token, during its submit.
        while not (open_request.state.in_engine or open_request.stream.ended):
            await self.wait()
            open_request.stream.replay()
            open_request.state.process(Event.SUBMIT)
            try:
                await self._engine.submit(request.request_id, prompt, sampling, request.priority, open_request.stream)
            except EngineDead as error:
                self._outlive(open_request, error)

    async def replay(self, open_request: OpenRequest) -> None:
        """Submit a request again while its caller waits; runs in a task of the manager."""
        # The caller may have left since the engine came up.
        if open_request.state.now is not RequestState.DETACHED:
            return
        open_request.state.process(Event.REPLAY)
        open_request.entry = anyio.CancelScope()
        assert open_request.prompt is not None
        assert open_request.sampling is not None
        with self._open_requests.entering(open_request):
            try:
                await self.submit(open_request, open_request.prompt, open_request.sampling)
            except LLMServeError as error:
                open_request.stream.fail(error)

    def _outlive(self, open_request: OpenRequest, error: EngineDead) -> None:
        """Raise the error that ends the request, if there is one."""
        fatal = self.outcome_after_death(open_request, error)
        if fatal is not None:
            raise fatal from error

    def outcome_after_death(self, open_request: OpenRequest, error: EngineDead) -> Exception | None:
        """Return the error that an engine's death means for a request; None if it is replayed.

        Not every engine reports its own death.
        """
        self._lose()
        if self.failure is not None or not self._hope:
            return error
        if error.stalled and _is_suspect(open_request):
            return EngineRestarted(
                "the engine stalled with this request in it; it is not submitted again because its answer is constrained"
            )
        if open_request.state.in_engine and open_request.replays == MAX_REPLAYS:
            return EngineRestarted(f"the engine has died {MAX_REPLAYS + 1} times with this request in it")
        if not open_request.stream.rewind():
            return EngineRestarted("the engine died before the answer was complete, and is being restarted")
        if open_request.state.in_engine:
            open_request.state.process(Event.LOST)
            open_request.replays += 1
        return None


def _is_suspect(open_request: OpenRequest) -> bool:
    """Whether the request's constraint may have stalled the engine, and would stall the next one.

    A request that the engine has already returned counts too: some engines report their own death
    without its cause.
    """
    return open_request.constraint is not None and (open_request.state.in_engine or open_request.replays > 0)
