"""The responses that are kept for `Idempotency-Key`, and the claims of the requests that are being answered.

Knows neither HTTP nor workers. Its memory is bounded, and shared fairly between tenants.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import attrs
import msgspec

from frontends.openai.errors import HTTPFailure

HEADER = "Idempotency-Key"
# Clients retry within this time; after it, or when the memory is full, the oldest responses are dropped.
KEEP_SECONDS = 600.0
KEEP_BYTES = 64 * 2**20
# A larger response is not kept.
MAX_ANSWER = 2**20
# Bytes of an entry beside its response, roughly.
OVERHEAD = 1024
# A claim that is older is free again, in case its owner lost it. Six times the longest request of `--max-seconds`'s default (600 s).
CLAIM_SECONDS = 3600.0
REUSED, CONFLICT = "idempotency_key_reused", "idempotency_conflict"


class Name(NamedTuple):
    """What a key means depends on who sent it, and to which route. `tenant` and `key` are those of the API key, None without one."""

    tenant: str | None
    key: str | None
    route: str | None
    value: str


class CachedResponse(msgspec.Struct, frozen=True, array_like=True):
    """A complete response, and the digest of the body that it answers."""

    body: bytes
    until: float
    kind: str
    answer: bytes

    @property
    def size(self) -> int:
        return OVERHEAD + len(self.answer)


@attrs.frozen(eq=False)
class Claim:
    """The right to answer a request. The owner that got it ends it; once it is `CLAIM_SECONDS` old, another request may get its own."""

    name: Name
    body: bytes
    since: float


class ResponseCache:
    """`clock` returns monotonic seconds; `max_bytes` bounds the responses that are kept."""

    def __init__(self, clock: Callable[[], float], max_bytes: int = KEEP_BYTES) -> None:
        self._clock = clock
        self._max = max_bytes
        # By tenant, and there the oldest first.
        self._kept: dict[str | None, OrderedDict[Name, CachedResponse]] = {}
        self._sizes: dict[str | None, int] = {}
        self._claims: dict[Name, Claim] = {}
        # Of all tenants together: their responses, and `OVERHEAD` for each.
        self.bytes = 0

    async def begin(self, name: Name, body: bytes) -> CachedResponse | Claim:
        return self.claim(name, body)

    def claim(self, name: Name, body: bytes) -> CachedResponse | Claim:
        """The response that is kept for this name, or a claim, which `end` must follow.

        Raises HTTPFailure with 409 while another request has the claim, with 422 for another body.
        """
        now = self._clock()
        self._drop_expired(name.tenant, now)
        mine = self._kept.get(name.tenant)
        kept = mine.get(name) if mine else None
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
        """Give the claim back, with the complete response if there is one. Does nothing after another request got the claim."""
        name = claim.name
        if self._claims.get(name) is not claim:
            return
        del self._claims[name]
        if answer is None or len(answer) > MAX_ANSWER:
            return
        kept = self._kept.setdefault(name.tenant, OrderedDict())[name] = CachedResponse(
            claim.body, self._clock() + KEEP_SECONDS, kind, answer
        )
        self._sizes[name.tenant] = self._sizes.get(name.tenant, 0) + kept.size
        self.bytes += kept.size
        while self.bytes > self._max:
            # The tenant that keeps most pays, so that no tenant can push out a tenant that keeps less than an equal share.
            self._drop_oldest(max(self._sizes, key=self._sizes.__getitem__))

    def _drop_expired(self, tenant: str | None, now: float) -> None:
        while tenant in self._kept and next(iter(self._kept[tenant].values())).until <= now:
            self._drop_oldest(tenant)

    def _drop_oldest(self, tenant: str | None) -> None:
        mine = self._kept[tenant]
        _, kept = mine.popitem(last=False)
        self._sizes[tenant] -= kept.size
        self.bytes -= kept.size
        if not mine:
            del self._kept[tenant], self._sizes[tenant]
