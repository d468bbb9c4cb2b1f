"""Entries of several tenants in bounded memory, which the tenants share fairly."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import attrs

Entry = TypeVar("Entry")


@attrs.frozen(eq=False)
class _Sized(Generic[Entry]):
    entry: Entry
    size: int


class FairStore(Generic[Entry]):
    """The entries, each of a tenant and with a name.

    When there are too many, the tenant with the most loses its oldest entry that is not spared, or
    its newest one if it has no other. So no tenant can displace another one that has less than an
    equal share, and a tenant with nothing but spared entries gets no more of them. An entry that is
    replaced by a larger one goes last.

    Args:
        clock: returns monotonic seconds.
        seconds: the age at which an entry is dropped.
        max_bytes: maximum bytes of all entries.
        max_entries: maximum number of entries; None is any number.
        dropped: called with each entry that the store drops.
        spared: whether an entry is dropped last. Expired entries are not spared.

    Attributes:
        bytes: the bytes of all entries.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        seconds: float,
        max_bytes: int,
        max_entries: int | None = None,
        dropped: Callable[[Entry], object] = lambda _: None,
        spared: Callable[[Entry], bool] = lambda _: False,
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._dropped = dropped
        self._spared = spared
        # Entries by tenant, and the ages of all entries; the oldest come first.
        self._kept: dict[str | None, OrderedDict[Hashable, _Sized[Entry]]] = {}
        self._sizes: dict[str | None, int] = {}
        self._ends: OrderedDict[tuple[str | None, Hashable], float] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._ends)

    def get(self, tenant: str | None, name: Hashable) -> Entry | None:
        """Return an entry; None if it is unknown, dropped or another tenant's."""
        self._drop_expired()
        mine = self._kept.get(tenant)
        found = mine.get(name) if mine else None
        return found.entry if found else None

    def put(self, tenant: str | None, name: Hashable, entry: Entry, size: int) -> bool:
        """Keep an entry of `size` bytes as the newest one; return whether it is kept.

        It is not if it alone has more than the maximum, which drops no other entry, or if its tenant
        has the most and no older entry that is not spared.
        """
        self.pop(tenant, name)
        self._drop_expired()
        if size > self._max_bytes:
            return False
        self._ends[tenant, name] = self._clock() + self._seconds
        self._kept.setdefault(tenant, OrderedDict())
        self._set(tenant, name, entry, size)
        return (tenant, name) in self._ends

    def replace(self, tenant: str | None, name: Hashable, entry: Entry, size: int) -> None:
        """Replace an entry, whose age does not change. Raises KeyError if there is none.

        An entry that alone has more than the maximum is dropped.
        """
        before = self._kept[tenant][name].size
        self._sizes[tenant] -= before
        self.bytes -= before
        self._set(tenant, name, entry, size, keep=name)

    def pop(self, tenant: str | None, name: Hashable) -> Entry | None:
        """Remove and return an entry, if there is one."""
        mine = self._kept.get(tenant)
        found = mine.pop(name, None) if mine else None
        if mine is None or found is None:
            return None
        del self._ends[tenant, name]
        self._sizes[tenant] -= found.size
        self.bytes -= found.size
        if not mine:
            del self._kept[tenant], self._sizes[tenant]
        return found.entry

    def _set(self, tenant: str | None, name: Hashable, entry: Entry, size: int, keep: Hashable = None) -> None:
        self._kept[tenant][name] = _Sized(entry, size)
        self._sizes[tenant] = self._sizes.get(tenant, 0) + size
        self.bytes += size
        if size > self._max_bytes:
            self._drop(tenant, name)
        while self.bytes > self._max_bytes:
            most = max(self._sizes, key=self._sizes.__getitem__)
            self._drop_one(most, keep if most == tenant else None)
        while self._max_entries is not None and len(self) > self._max_entries:
            self._drop_one(max(self._kept, key=lambda one: len(self._kept[one])))

    def _drop_expired(self) -> None:
        now = self._clock()
        while self._ends:
            (tenant, name), end = next(iter(self._ends.items()))
            if end > now:
                return
            self._drop(tenant, name)

    def _drop_one(self, tenant: str | None, keep: Hashable = None) -> None:
        mine = self._kept[tenant]
        unspared = (name for name, one in mine.items() if name != keep and not self._spared(one.entry))
        newest = next((name for name in reversed(mine) if name != keep), keep)
        self._drop(tenant, next(unspared, newest))

    def _drop(self, tenant: str | None, name: Hashable) -> None:
        entry = self.pop(tenant, name)
        assert entry is not None
        self._dropped(entry)
