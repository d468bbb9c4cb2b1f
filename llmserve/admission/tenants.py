"""What tenants may have: their weights, how many requests at once, how many tokens a minute."""

import math

import attrs

from llmserve.admission.refusal import Refusal, Refused
from llmserve.admission.retry import LEAST, UNKNOWN
from llmserve.admission.ticket import Ticket
from llmserve.config import TenantTable

MINUTE = 60.0
# Accounts beyond twice those that had to be kept the last time, before they are looked through again.
KEPT = 256


@attrs.define
class _Account:
    """A tenant's requests at once, and its tokens: `balance` at the time `at`."""

    open: int = 0
    balance: float = math.inf
    at: float = 0.0


class Tenants:
    """The table in force, and what each tenant has of it at the moment."""

    def __init__(self, table: TenantTable | None = None) -> None:
        self.table = table or TenantTable()
        self._accounts: dict[str, _Account] = {}
        self._kept = 0

    def weight(self, tenant: str) -> float:
        limits = self.table.of(tenant)
        return limits.weight if limits else 1.0

    def objection(self, ticket: Ticket, interval: float, now: float) -> Refused | None:
        """Why this tenant may not have one more, and when it may; somebody is served every `interval` seconds."""
        limits = self.table.of(ticket.tenant)
        if limits is None:
            return Refused(Refusal.TENANT_UNKNOWN, MINUTE)
        account = self._accounts.get(ticket.tenant)
        if limits.concurrency is not None and account is not None and account.open >= limits.concurrency:
            return Refused(Refusal.TENANT_LIMIT, max(interval, LEAST) if interval else UNKNOWN)
        if limits.tokens_per_minute is not None:
            # Whoever asks for more than a minute's worth has it when a whole minute's is saved, and pays for it afterwards.
            wanted = min(_tokens(ticket), limits.tokens_per_minute)
            missing = wanted - self._balance(ticket.tenant, limits.tokens_per_minute, now)
            if missing > 0:
                return Refused(Refusal.TENANT_TOKENS, max(missing / limits.tokens_per_minute * MINUTE, LEAST))
        return None

    def take(self, ticket: Ticket, now: float) -> None:
        """One more of this tenant's is in."""
        account = self._accounts.setdefault(ticket.tenant, _Account(at=now))
        account.open += 1
        limits = self.table.of(ticket.tenant)
        ticket.reserved = _tokens(ticket)
        if limits is not None and limits.tokens_per_minute is not None:
            account.balance = self._balance(ticket.tenant, limits.tokens_per_minute, now) - ticket.reserved
            account.at = now

    def give_back(self, ticket: Ticket, now: float) -> None:
        """One that was taken is out, and has used what it has used."""
        account = self._accounts[ticket.tenant]
        account.open -= 1
        used = ticket.prompt_tokens + ticket.generated if ticket.granted is not None else 0
        account.balance += ticket.reserved - used
        if not self._is_debtor(ticket.tenant, now):
            del self._accounts[ticket.tenant]
        elif len(self._accounts) > 2 * self._kept + KEPT:
            self._accounts = {name: one for name, one in self._accounts.items() if self._is_debtor(name, now)}
            self._kept = len(self._accounts)

    def _is_debtor(self, tenant: str, now: float) -> bool:
        """Whether there is something to remember: what is open, or tokens that it has spent and not saved again."""
        limits = self.table.of(tenant)
        account = self._accounts[tenant]
        if account.open:
            return True
        if limits is None or limits.tokens_per_minute is None:
            return False
        return self._balance(tenant, limits.tokens_per_minute, now) < limits.tokens_per_minute

    def _balance(self, tenant: str, per_minute: float, now: float) -> float:
        account = self._accounts.get(tenant)
        if account is None:
            return per_minute
        return min(per_minute, account.balance + (now - account.at) * per_minute / MINUTE)


def _tokens(ticket: Ticket) -> float:
    return ticket.prompt_tokens + ticket.expected_tokens
