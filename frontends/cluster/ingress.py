"""The ingress, which relays requests to replicas and outlives them.

Clients connect to its own port. Ray Serve's proxy reaches it too, more slowly.

It keeps a request until a part of the answer has been sent. Until then it can try another replica
when one refuses or dies.
"""

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Any

from frontends.answers.errors import described
from frontends.cluster.ingress_server import IngressServer, open_listeners
from frontends.cluster.intake import Intake
from frontends.cluster.relay import RelayedRequest
from frontends.cluster.replica_client import Answer, Lost, NotAccepted, ReplicaClient
from frontends.cluster.replica_directory import ReplicaAddress, ReplicaDirectory
from frontends.cluster.settings import ClusterServerSettings
from frontends.http.idempotency_store import HEADER
from frontends.net.connection_limits import raise_descriptor_limit
from frontends.openai import sse
from llmserve import EngineRestarted, LLMServeError, Unavailable
from llmserve.admission import Refusal
from llmserve.admission.retry_after import RETRY_AFTER

logger = logging.getLogger(__name__)

# The limit for all attempts to find a replica that accepts a request.
PATIENCE_SECONDS = RETRY_AFTER["no_replica"]
# Seconds of silence after which a replica counts as lost. Every replica reports twice a second. Ray
# detects an unreachable host only after a minute (measured with a link taken down).
SILENT_SECONDS = 10.0
# Maximum number of replicas that may die with a request, which may be the cause of their death.
MAX_LOST = 3
# Maximum seconds between two looks at the replicas' reports, and seconds between two attempts without
# a replica.
LOOK_SECONDS = 0.5
RETRY_SECONDS = 0.1
# Seconds in which Ray stops an ingress that has drained.
STOP_SECONDS = 20.0
REFUSED = 503


class Ingress:
    """The ingress. Raises ConfigurationError.

    Args:
        replicas: a handle of the deployment of `Replica`, which makes Ray Serve deploy it.
        shared_state: a handle of the application's `SharedState`.
        settings: the settings of the application.
    """

    async def __init__(self, replicas: Any, shared_state: Any, settings: ClusterServerSettings) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        """Listen on the ingress's own port."""
        raise_descriptor_limit()
        self._shared_state = shared_state.options(_by_reference=False)
        self._drain_timeout = settings.limits.drain_timeout
        access = settings.open_access()
        self._intake = Intake(access, settings.access.max_incomplete_bytes)
        self._relay = Relay(ReplicaClient(), ReplicaDirectory())
        # Quiet, because replicas log changes of the file.
        self._tasks = [asyncio.create_task(access.follow(quiet=True)), asyncio.create_task(self._follow())]
        self._stack = AsyncExitStack()
        self._stack.push_async_callback(self._relay.client.close)
        # The ingress that this one replaces has the port until it has drained.
        listeners = await open_listeners(settings.cluster, self._drain_timeout + STOP_SECONDS)
        self._server = IngressServer(settings, self._intake, self._relay.ask)
        await self._stack.enter_async_context(self._server.serving(listeners))

    async def __del__(self) -> None:
        """Shut down; Ray Serve calls this when it sends no more requests."""
        await self._server.drain(self._drain_timeout)
        await self._stack.aclose()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def __call__(self, request: Any) -> Any:
        """Answer a Starlette request, from Ray Serve's proxy.

        Ray Serve cancels this call or the response's body when the client has gone.
        """
        from starlette.responses import Response, StreamingResponse

        try:
            answer = await self._relay.ask(await self._intake.read(request))
        except LLMServeError as error:
            status, body, headers = described(error, request.scope["path"])
            return Response(sse.encode(body), status, headers, "application/json")
        headers = dict(answer.head.headers)
        if answer.head.is_events:
            return StreamingResponse(answer.events(), answer.head.status, headers)
        return Response(answer.body, answer.head.status, headers)

    def check_health(self) -> None:
        """Raise the failure of a task of this ingress, which Ray Serve then replaces."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def _follow(self) -> None:
        """Follow the replicas' reports, and give up the answers of replicas that are silent."""
        failing = False
        while True:
            try:
                async with asyncio.timeout(SILENT_SECONDS):
                    self._relay.learn(await self._shared_state.reports.remote(self._relay.directory.known, LOOK_SECONDS))
            except Exception as error:
                # Without new reports the ingress goes on with the replicas that it knows.
                if not failing:
                    logger.warning("the replicas' reports cannot be read: %s", error)
                failing = True
                await asyncio.sleep(LOOK_SECONDS)
            else:
                failing = False


class Relay:
    """Finds a replica for each request."""

    def __init__(self, client: ReplicaClient, directory: ReplicaDirectory) -> None:
        self.client = client
        self.directory = directory

    def learn(self, reports: Any) -> None:
        self.directory.learn(reports)
        silent = {name for name, report in reports.items() if report.silent > SILENT_SECONDS}
        since = asyncio.get_running_loop().time() - SILENT_SECONDS
        for answer in [answer for answer in self.client.answers if answer.replica in silent]:
            answer.lose(since)

    async def ask(self, asked: RelayedRequest) -> Answer:
        """Return the first answer that is not a refusal, from at most two replicas.

        If both refuse, return the refusal with the shorter Retry-After. Raises Unavailable if no
        replica accepts the request, and EngineRestarted if too many have died with it.
        """
        refusal: Answer | None = None
        avoided: set[str] = set()
        lost = 0
        clock = asyncio.get_running_loop().time
        patience = clock() + PATIENCE_SECONDS
        while lost < MAX_LOST:
            place = self.directory.choose(asked.get(HEADER), avoided)
            if place is None:
                if refusal is not None:
                    return refusal
                if clock() >= patience:
                    raise Unavailable("no replica accepts requests", retry_after=PATIENCE_SECONDS, reason=Refusal.STARTING)
                # Another one may be starting, or one that was slow may have time now.
                avoided.clear()
                await asyncio.sleep(RETRY_SECONDS)
                continue
            avoided.add(place.replica)
            try:
                answer = await self._ask(place, asked)
            except NotAccepted:
                continue
            except Lost:
                lost += 1
                continue
            if answer.head.status != REFUSED:
                return answer
            if refusal is not None:
                return min(refusal, answer, key=lambda one: one.retry_after)
            refusal = answer
        raise EngineRestarted(f"{MAX_LOST} replicas have died while they processed this request")

    async def _ask(self, place: ReplicaAddress, asked: RelayedRequest) -> Answer:
        try:
            return await self.client.ask(place, asked)
        except (NotAccepted, Lost):
            self.directory.doubt(place.replica)
            raise
