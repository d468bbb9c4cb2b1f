"""Reads the bodies of /v1/responses, whose input may continue a response that the server keeps."""

from functools import partial

from frontends.access.caller import Caller
from frontends.answers.served_model import ServedModel
from frontends.openai.decoding import SMALL
from frontends.openai.errors import HTTPFailure
from frontends.openai.unsupported import NOTHING_STORED
from frontends.responses.requests import EMPTY, ParsedResponse, ResponsesRequest
from frontends.responses.stored import COMPLETE, Name, Operation, ResponseStore
from llmserve import InvalidRequest

PARAM = "previous_response_id"


class Conversations:
    """Reads bodies, and puts the conversation before it into each.

    Args:
        served: the model that generates.
        store: where responses are kept; None keeps none.
    """

    def __init__(self, served: ServedModel, store: ResponseStore | None) -> None:
        self._served = served
        self._store = store if store is not None and store.keeps else None
        self._reader = served.reader(ResponsesRequest)

    async def parse(self, body: bytes, caller: Caller) -> ParsedResponse:
        """Return a body's content. Raises LLMServeError."""
        served = self._served
        sent = await served.decode(body, self._reader, lambda sent: sent)
        before = EMPTY if sent.previous_response_id is None else await self._find(sent.previous_response_id, caller)
        make = partial(sent.wanted, caller, served.adapter(sent.model), before, self._store)
        return make() if len(body) + len(before) <= SMALL else await served.turns.run(make)

    async def _find(self, name: str, caller: Caller) -> bytes:
        """Return the conversation that ends with a response."""
        if self._store is None:
            raise InvalidRequest(f"{PARAM}: {NOTHING_STORED}", PARAM)
        found = await self._store.ask(Operation("get", Name(caller.tenant, name)))
        if found is None:
            words = f"{PARAM}: there is no response {name[:64]!r}, or it is no longer kept"
            raise HTTPFailure(400, words, "previous_response_not_found", param=PARAM)
        if found.status not in COMPLETE:
            raise InvalidRequest(f"{PARAM}: the response is {found.status}, and only a complete one can be continued", PARAM)
        return found.conversation()
