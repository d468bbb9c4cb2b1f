"""What becomes of open requests when the engine dies: whoever has seen nothing of an answer gets it from the next engine, as if nothing
had happened; whoever has seen some of it is told so, once, and never given another one's tokens."""

from collections.abc import Callable, Iterable

import anyio

from llmserve.engine import Engine, EnginePrompt
from llmserve.errors import EngineDead, EngineRestarted, LLMServeError
from llmserve.lifecycle.open_request import Job
from llmserve.request import Sampling

# A request that was in two engines when they died may be what kills them.
MOST_REPLAYS = 2


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

    def rise(self, jobs: Iterable[Job]) -> list[Job]:
        """The engine is up; returns those that are to be begun again."""
        self._up.set()
        return [job for job in jobs if job.entered and not (job.in_engine or job.stream.ended or job.replaying)]

    def fall(self, error: EngineDead, jobs: Iterable[Job], *, for_good: bool) -> None:
        """The engine is gone, with what was in it; for good, also those that wait for it have no hope any more."""
        self._lose()
        if for_good:
            self._end = error
        for job in jobs:
            if job.in_engine or for_good or (error.stalled and not job.stream.ended and _is_suspect(job)):
                job.stream.fail(error)
                job.in_engine = False

    def _lose(self) -> None:
        if self._up.is_set():
            self._up = anyio.Event()
            self._hope = self._restarts()

    # One request

    async def wait(self) -> None:
        """Until an engine is up."""
        while not self._up.is_set():
            await self._up.wait()

    async def tokenize(self, job: Job) -> EnginePrompt:
        """Raises InvalidRequest."""
        while True:
            await self.wait()
            try:
                return await self._engine.tokenize(job.request)
            except EngineDead as error:
                self._outlive(job, error)

    async def submit(self, job: Job, prompt: EnginePrompt, sampling: Sampling) -> None:
        """Returns when an engine has it. Raises EngineError, and EngineRestarted when it was lost too often."""
        job.prompt, job.sampling = prompt, sampling
        request = job.request
        if request.return_prompt_ids:
            job.stream.prompt_token_ids = prompt.token_ids
        while not job.in_engine:
            await self.wait()
            job.stream.replay()
            # Before the await: a submit that is cancelled half-way may have left the request in the engine.
            job.in_engine = True
            try:
                await self._engine.submit(request.request_id, prompt, sampling, request.priority, job.stream)
            except EngineDead as error:
                self._outlive(job, error)

    async def replay(self, job: Job) -> None:
        """Begin a request again whose caller waits for its stream; a task of the manager's."""
        assert job.prompt is not None
        assert job.sampling is not None
        with anyio.CancelScope() as job.replaying:
            try:
                await self.submit(job, job.prompt, job.sampling)
            except LLMServeError as error:
                job.stream.fail(error)
        job.replaying = None

    def _outlive(self, job: Job, error: EngineDead) -> None:
        """Raises what ends the request."""
        fatal = self.judge(job, error)
        if fatal is not None:
            raise fatal from error

    def judge(self, job: Job, error: EngineDead) -> Exception | None:
        """What an engine's death means to one request: None, if it may be begun again. Not every engine tells of its own."""
        self._lose()
        if self._end is not None or not self._hope:
            return error
        if error.stalled and _is_suspect(job):
            return EngineRestarted("the engine stalled with this request in it, whose answer is constrained; it is not begun again")
        if job.in_engine and job.replays == MOST_REPLAYS:
            return EngineRestarted(f"the engine has died {MOST_REPLAYS + 1} times with this request in it")
        if not job.stream.rewind():
            return EngineRestarted("the engine died before the answer was complete, and is being restarted")
        if job.in_engine:
            job.in_engine = False
            job.replays += 1
        return None


def _is_suspect(job: Job) -> bool:
    """Whether its constraint may be why the engine stalled, and would make the next one stall. Also one that the engine has given back
    already: some engines report their own death, and do not know why."""
    return job.constraint is not None and (job.in_engine or job.replays > 0)
