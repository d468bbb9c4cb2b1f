"""Tenants' weights, limits of concurrent requests and tokens per minute, usage, and room for each other."""

import math
from collections.abc import Mapping

import attrs

from llmserve.admission.length_estimates import Lengths
from llmserve.admission.prediction import QueueState
from llmserve.admission.refusals import Refusal, Refused
from llmserve.admission.retry_after import MIN_SECONDS
from llmserve.admission.ticket import NO_ROOM, Room, Ticket
from llmserve.admission.usage import UsageDelta
from llmserve.config import TenantLimits, TenantTable

MINUTE = 60.0
# The next cleanup runs when there are twice as many accounts as the last one kept, plus this number.
SPARE_ACCOUNTS = 256
UNLIMITED = TenantLimits()


@attrs.define
class _Account:
    """A tenant's number of open requests, and its token `balance` at the time `at`."""

    open: int = 0
    balance: float = math.inf
    at: float = 0.0


class Tenants:
    """The current tenant table and each tenant's usage."""

    def __init__(self, table: TenantTable | None = None) -> None:
        self.table = table or TenantTable()
        self._accounts: dict[str, _Account] = {}
        self._kept = 0
        # Open requests of each tenant with other controllers.
        self._elsewhere: Mapping[str, int] = {}
        # Tokens used since the last tally; None until the first tally.
        self._tally: dict[str, float] | None = None

    @property
    def limits_tokens(self) -> bool:
        """Whether any tenant has a limit of tokens per minute."""
        return any(
            limits is not None and limits.tokens_per_minute is not None for limits in (self.table.default, *self.table.named.values())
        )

    def weight(self, tenant: str) -> float:
        limits = self.table.of(tenant)
        return limits.weight if limits else 1.0

    def objection(self, ticket: Ticket, interval: float, now: float) -> Refused | None:
        """Return why this tenant may not have one more request, and when it may.

        `interval` is the time between two served requests in seconds.
        """
        limits = self.table.of(ticket.tenant)
        if limits is None:
            return Refused.of(Refusal.TENANT_UNKNOWN)
        if limits.concurrency is not None and self._open(ticket.tenant) >= limits.concurrency:
            return Refused(Refusal.TENANT_LIMIT, max(interval, MIN_SECONDS)) if interval else Refused.of(Refusal.TENANT_LIMIT)
        if limits.tokens_per_minute is not None:
            # A request for more than a minute's worth may start with a full balance; the tenant
            # pays the rest afterwards.
            wanted = min(_tokens(ticket), limits.tokens_per_minute)
            missing = wanted - self._balance(ticket.tenant, limits.tokens_per_minute, now)
            if missing > 0:
                return Refused(Refusal.TENANT_TOKENS, max(missing / limits.tokens_per_minute * MINUTE, MIN_SECONDS))
        return None

    def take(self, ticket: Ticket, now: float) -> None:
        """Count one more open request."""
        self._accounts.setdefault(ticket.tenant, _Account()).open += 1
        ticket.reserved = _tokens(ticket)
        self._spend(ticket.tenant, ticket.reserved, now)

    def give_back(self, ticket: Ticket, now: float) -> None:
        """Count the end of a request and what it really used."""
        self._accounts[ticket.tenant].open -= 1
        used = ticket.prompt_tokens + ticket.generated if ticket.granted is not None else 0
        self._spend(ticket.tenant, used - ticket.reserved, now)
        if not self._is_debtor(ticket.tenant, now):
            del self._accounts[ticket.tenant]
        self._forget(now)

    # With other controllers

    def tally(self) -> UsageDelta:
        """Return the usage since the last call. The first call starts the token count.

        It covers only tenants with limits.
        """
        tokens, self._tally = self._tally or {}, {}
        open_now = {name: one.open for name, one in self._accounts.items() if one.open and self._limits(name).concurrency is not None}
        return UsageDelta(tokens=tokens, open=open_now)

    def served_elsewhere(self, tally: UsageDelta, now: float) -> None:
        """Count the usage at other controllers."""
        self._elsewhere = tally.open
        for tenant, tokens in tally.tokens.items():
            self._charge(tenant, tokens, now)
        self._forget(now)

    # Accounts

    def _limits(self, tenant: str) -> TenantLimits:
        return self.table.of(tenant) or UNLIMITED

    def _open(self, tenant: str) -> int:
        account = self._accounts.get(tenant)
        return self._elsewhere.get(tenant, 0) + (account.open if account else 0)

    def _spend(self, tenant: str, tokens: float, now: float) -> None:
        """Charge tokens; a negative number returns them."""
        if self._charge(tenant, tokens, now) and self._tally is not None:
            self._tally[tenant] = self._tally.get(tenant, 0.0) + tokens

    def _charge(self, tenant: str, tokens: float, now: float) -> bool:
        per_minute = self._limits(tenant).tokens_per_minute
        if per_minute is None:
            return False
        balance = self._balance(tenant, per_minute, now) - tokens
        account = self._accounts.setdefault(tenant, _Account())
        account.balance, account.at = balance, now
        return True

    def _forget(self, now: float) -> None:
        if len(self._accounts) > 2 * self._kept + SPARE_ACCOUNTS:
            self._accounts = {name: one for name, one in self._accounts.items() if self._is_debtor(name, now)}
            self._kept = len(self._accounts)

    def _is_debtor(self, tenant: str, now: float) -> bool:
        """Whether the account must be kept: it has open requests, or its balance is not full."""
        if self._accounts[tenant].open:
            return True
        per_minute = self._limits(tenant).tokens_per_minute
        return per_minute is not None and self._balance(tenant, per_minute, now) < per_minute

    def _balance(self, tenant: str, per_minute: float, now: float) -> float:
        account = self._accounts.get(tenant)
        if account is None:
            return per_minute
        return min(per_minute, account.balance + (now - account.at) * per_minute / MINUTE)


def _tokens(ticket: Ticket) -> float:
    return ticket.prompt_tokens + ticket.expected_tokens


class Headroom:
    """The room that a tenant which floods the engine leaves for the others.

    A fair queue gives a tenant that asks for little the next slot. But with an engine full of
    another tenant's requests, the next slot may take seconds to come. Therefore requests of tenants
    that ask for more than their share start only while some room stays free, and as soon as it is
    taken, the next slots restore it. A full engine does so within a few departures, which costs the
    other tenants that room once, and no throughput beyond it.
    """

    # How long room is kept after the last request that needed it.
    SECONDS = 10.0
    # There is room for one ticket per PER_LIMIT tickets that may run. A smaller engine keeps one, and the smallest none.
    PER_LIMIT, MIN_LIMIT = 64, 8
    # Weight of one request in the mean prompt.
    FADE = 1 / 8
    # Forecasts of the cache err by about this much. A tenant that asks for little need not wait
    # until the answers of the others have ended as forecast.
    BESIDE = Room(overdraft=0.1)

    def __init__(self) -> None:
        self._until = -math.inf
        self._prompt_tokens = 0.0

    def offered(self, ticket: Ticket, queue: QueueState, now: float) -> None:
        """Note a new ticket, and whether its tenant asks for more than its share."""
        ticket.yields = queue.own_pressure >= 1
        if queue.pressure > 1 and not ticket.yields:
            self._until = now + self.SECONDS
            self._prompt_tokens += (ticket.prompt_tokens - self._prompt_tokens) * self.FADE

    def beside(self, ticket: Ticket, limit: int | None, answers: Lengths, now: float) -> Room:
        """Return what a ticket must leave free; `limit` is the policy's."""
        if now > self._until or limit is None or limit < self.MIN_LIMIT:
            return NO_ROOM
        if not ticket.yields:
            return self.BESIDE
        return Room(max(1, limit // self.PER_LIMIT), int(self._prompt_tokens), answers.mean())
