"""Context-free rules: which of them can end, and the text of a shortest way through them."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

# A text stands for itself; any other symbol is the key of a rule.
Symbol = Hashable
Alternative = Sequence[Symbol]


def endings(rules: Mapping[Symbol, Sequence[Alternative]]) -> dict[Symbol, Alternative]:
    """For each rule that can end, the alternative by which it does so first. Takes time in proportion to the rules' size."""
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
    """The text of `start` by the chosen alternatives; None where it has more than `limit` characters."""
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
