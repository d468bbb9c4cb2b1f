"""The store for `Idempotency-Key`: complete responses, and claims of requests in progress.

It knows neither HTTP nor workers. Its memory is bounded and shared fairly between tenants.
"""

from collections.abc import Callable
from typing import NamedTuple

import attrs
import msgspec

from frontends.access.fair_store import FairStore
from frontends.openai.errors import HTTPFailure

HEADER = "Idempotency-Key"
# Seconds for which a response is kept. When the memory is full, the oldest ones are dropped
# earlier.
KEEP_SECONDS = 600.0
KEEP_BYTES = 64 * 2**20
# Maximum size in bytes of a response that is kept.
MAX_ANSWER = 2**20
# Approximate bytes of an entry in addition to its response.
OVERHEAD = 1024
# Seconds after which a claim expires, in case its owner lost it: six times the default of
# `--max-seconds` (600 s).
CLAIM_SECONDS = 3600.0
REUSED, CONFLICT = "idempotency_key_reused", "idempotency_conflict"


class Name(NamedTuple):
    """The full name of an `Idempotency-Key`, which depends on its sender and its path.

    The path may name what the request changes, such as a batch to cancel. `tenant` and `key` are
    those of the API key; None without an API key.
    """

    tenant: str | None
    key: str | None
    path: str
    value: str


class CachedResponse(msgspec.Struct, frozen=True, array_like=True):
    """A complete response, and the digest of the body that it answers."""

    body: bytes
    kind: str
    answer: bytes

    @property
    def size(self) -> int:
        return OVERHEAD + len(self.answer)


@attrs.frozen(eq=False)
class Claim:
    """The right to answer a request, which its owner ends.

    Once the claim is `CLAIM_SECONDS` old, another request may get a claim.
    """

    name: Name
    body: bytes
    since: float


class ResponseCache:
    """The store.

    Args:
        clock: returns monotonic seconds.
        max_bytes: maximum bytes of all responses.
    """

    def __init__(self, clock: Callable[[], float], max_bytes: int = KEEP_BYTES) -> None:
        self._clock = clock
        self._kept: FairStore[CachedResponse] = FairStore(clock, KEEP_SECONDS, max_bytes)
        self._claims: dict[Name, Claim] = {}

    @property
    def size(self) -> int:
        """Bytes of all responses of all tenants, with `OVERHEAD` for each response."""
        return self._kept.bytes

    async def begin(self, name: Name, body: bytes) -> CachedResponse | Claim:
        return self.claim(name, body)

    def claim(self, name: Name, body: bytes) -> CachedResponse | Claim:
        """Return the response for this name, or a claim, which `end` must follow.

        Raises HTTPFailure with 409 while another request has the claim, and with 422 for another
        body.
        """
        now = self._clock()
        kept = self._kept.get(name.tenant, name)
        claim = self._claims.get(name)
        if claim is not None and now - claim.since >= CLAIM_SECONDS:
            claim = None
        known = kept or claim
        if known is not None and known.body != body:
            raise HTTPFailure(422, f"this {HEADER} was used for another request", REUSED)
        if kept is not None:
            return kept
        if claim is not None:
            raise HTTPFailure(409, "the first request with this key is still being answered", CONFLICT)
        claim = self._claims[name] = Claim(name, body, now)
        return claim

    def end(self, claim: Claim, kind: str = "", answer: bytes | None = None) -> None:
        """End a claim, with the complete response if there is one.

        Does nothing if another request has got the claim since.
        """
        name = claim.name
        if self._claims.get(name) is not claim:
            return
        del self._claims[name]
        if answer is None or len(answer) > MAX_ANSWER:
            return
        kept = CachedResponse(claim.body, kind, answer)
        self._kept.put(name.tenant, name, kept, kept.size)
