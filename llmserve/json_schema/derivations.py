"""Context-free rules: which of them can end, and a short text for them."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

# A string stands for itself. Any other symbol is the key of a rule.
Symbol = Hashable
Alternative = Sequence[Symbol]


def endings(rules: Mapping[Symbol, Sequence[Alternative]]) -> dict[Symbol, Alternative]:
    """Return, for each rule that can end, its alternative that ends first. Takes linear time."""
    users: dict[Symbol, list[tuple[Symbol, int]]] = defaultdict(list)
    missing: dict[tuple[Symbol, int], int] = {}
    ready: list[tuple[Symbol, int]] = []
    for key, alternatives in rules.items():
        for number, alternative in enumerate(alternatives):
            needed = {symbol for symbol in alternative if not isinstance(symbol, str)}
            missing[key, number] = len(needed)
            for symbol in needed:
                users[symbol].append((key, number))
            if not needed:
                ready.append((key, number))
    found: dict[Symbol, Alternative] = {}
    while ready:
        later = []
        for key, number in ready:
            if key in found:
                continue
            found[key] = rules[key][number]
            for user in users[key]:
                missing[user] -= 1
                if not missing[user]:
                    later.append(user)
        ready = later
    return found


def write(chosen: Mapping[Symbol, Alternative], start: Symbol, limit: int) -> str | None:
    """Return the text of `start` with the chosen alternatives; None above `limit` characters."""
    text, left = [], [start]
    length = steps = 0
    while left:
        symbol = left.pop()
        steps += 1
        if isinstance(symbol, str):
            text.append(symbol)
            length += len(symbol)
        else:
            left.extend(reversed(chosen[symbol]))
        if length > limit or steps > 8 * limit:
            return None
    return "".join(text)
