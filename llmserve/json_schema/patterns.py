"""Converts regular expressions for xgrammar, and refuses those of which it drops a part.

xgrammar 0.2.8 ignores look-around and anchors in the middle, and writes the match of a JSON Schema
`pattern` into the string unchanged: `^"` gives `\"\"\"`. So a pattern is rewritten to match the
inside of a JSON string. Python's parser reads the pattern. Where ECMA's and Python's rules differ,
only texts that match under both are allowed.
"""

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from re import _parser as syntax  # type: ignore[attr-defined]  # typeshed leaves re's parser out
from typing import Any, Literal

import attrs

Range = tuple[int, int]
LAST = 0x10FFFF
# Characters that a JSON string contains unescaped: no controls, quote or backslash, and no
# surrogates, which UTF-8 lacks.
PLAIN: list[Range] = [(0x20, 0x21), (0x23, 0x5B), (0x5D, 0xD7FF), (0xE000, LAST)]
ESCAPES = {ord(character): letter for character, letter in zip('"\\\b\f\n\r\t', '"\\bfnrt', strict=True)}
ASCII, ALL = [(0, 0x7F)], [(0, 0xD7FF), (0xE000, LAST)]
_CATEGORIES: dict[Any, list[Range]] = {
    syntax.CATEGORY_DIGIT: [(0x30, 0x39)],
    syntax.CATEGORY_WORD: [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)],
    syntax.CATEGORY_SPACE: [(0x09, 0x0D), (0x20, 0x20)],
}
_OPPOSITES = {
    syntax.CATEGORY_NOT_DIGIT: syntax.CATEGORY_DIGIT,
    syntax.CATEGORY_NOT_WORD: syntax.CATEGORY_WORD,
    syntax.CATEGORY_NOT_SPACE: syntax.CATEGORY_SPACE,
}
_ANCHORS = {syntax.AT_BEGINNING: "^", syntax.AT_END: "$"}
_LINE_ENDS = [(0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029)]
_REPEATS = (syntax.MAX_REPEAT, syntax.MIN_REPEAT)
# Preferred characters for the shortest match.
_PREFERRED = "a0A_- "


@attrs.frozen
class Part:
    """A piece of a pattern: a set of characters, a sequence, a choice, or a repetition.

    `most` is None for an unlimited repetition.
    """

    kind: Literal["characters", "sequence", "choice", "repeat"]
    parts: tuple["Part", ...] = ()
    ranges: tuple[Range, ...] = ()
    least: int = 1
    most: int | None = 1

    @cached_property
    def shortest_length(self) -> int:
        return int(self._length([part.shortest_length for part in self.parts], min, self.least))

    @cached_property
    def longest_length(self) -> float:
        return self._length([part.longest_length for part in self.parts], max, float("inf") if self.most is None else self.most)

    def _length(self, lengths: Sequence[float], of_choice: Callable[[Sequence[float]], float], times: float) -> float:
        """Return the length in characters, from the `lengths` of the parts."""
        match self.kind:
            case "characters":
                return 1
            case "sequence":
                return sum(lengths)
            case "choice":
                return of_choice(lengths)
        # Infinity times 0 would be NaN.
        return times * lengths[0] if lengths[0] else 0

    def shortest(self, limit: int) -> str:
        """Return the shortest text that matches, cut to `limit` characters."""
        match self.kind:
            case "characters":
                preferred = [character for character in _PREFERRED if _has(self.ranges, ord(character))]
                return preferred[0] if preferred else chr(self.ranges[0][0])
            case "choice":
                return min(self.parts, key=lambda part: part.shortest_length).shortest(limit)
            case "repeat":
                return (self.parts[0].shortest(limit) * min(self.least, limit))[:limit]
        text = ""
        for part in self.parts:
            text += part.shortest(limit - len(text)) if len(text) < limit else ""
        return text

    def in_json(self) -> str:
        """Return xgrammar's regular expression for the inside of a JSON string."""
        match self.kind:
            case "characters":
                return _in_json(self.ranges)
            case "sequence":
                return "".join(part.in_json() for part in self.parts)
            case "choice":
                return "(?:" + "|".join(part.in_json() for part in self.parts) + ")"
        most, repeated = "" if self.most is None else self.most, self.parts[0]
        # A group inside a group makes steps slow.
        inside = repeated.in_json()
        return f"{inside if repeated.kind == 'characters' else f'(?:{inside})'}{{{self.least},{most}}}"


def any_text(least: int, most: int | None) -> Part:
    """Return a part that matches `least` to `most` arbitrary characters."""
    return Part("repeat", (Part("characters", ranges=tuple(ALL)),), least=least, most=most)


def parse(pattern: str) -> Part:
    """Parse a pattern. Raises ValueError, which says what is not supported."""
    if "{," in pattern:
        raise ValueError("'{,' means different things in different languages; write '{0,' or '\\{,'")
    try:
        parsed = syntax.parse(pattern)
        if parsed.state.flags != re.UNICODE.value:
            raise ValueError("flags such as (?i) are not supported")
        return _sequence(parsed, start=True, end=True)
    except RecursionError:
        raise ValueError("its groups are nested too deeply") from None
    except (re.error, OverflowError, Warning) as error:
        raise ValueError(f"it cannot be read: {error}") from None


def _sequence(items: Any, *, start: bool, end: bool) -> Part:
    """Parse a sequence. Anchors are supported only at the start and the end of the text.

    `start` and `end` say whether the sequence begins and ends there.
    """
    items = list(items)
    solid = [index for index, (kind, _) in enumerate(items) if kind is not syntax.AT]
    first, last = (solid[0], solid[-1]) if solid else (len(items), -1)
    parts = []
    for index, (kind, value) in enumerate(items):
        starts, ends = start and index <= first, end and index >= last
        if kind is syntax.AT:
            if value not in _ANCHORS:
                raise ValueError("word boundaries, \\A and \\Z are not supported")
            if not (starts if value is syntax.AT_BEGINNING else ends):
                raise ValueError(f"'{_ANCHORS[value]}' is supported at the {'start' if _ANCHORS[value] == '^' else 'end'} only")
        else:
            parts.append(_part(kind, value, start=starts, end=ends))
    return parts[0] if len(parts) == 1 else Part("sequence", tuple(parts))


def _part(kind: Any, value: Any, *, start: bool, end: bool) -> Part:
    if kind is syntax.SUBPATTERN:
        _, added, removed, items = value
        if added or removed:
            raise ValueError("flags such as (?i) are not supported")
        return _sequence(items, start=start, end=end)
    if kind is syntax.BRANCH:
        return Part("choice", tuple(_sequence(items, start=start, end=end) for items in value[1]))
    if kind in _REPEATS:
        least, most, items = value
        return Part("repeat", (_sequence(items, start=False, end=False),), least=least, most=None if most is syntax.MAXREPEAT else most)
    if kind in (syntax.ASSERT, syntax.ASSERT_NOT):
        raise ValueError("look-ahead and look-behind are not supported")
    ranges = _characters(kind, value)
    if not ranges:
        raise ValueError("one of its character classes is empty")
    return Part("characters", ranges=tuple(ranges))


def _characters(kind: Any, value: Any) -> list[Range]:
    if kind is syntax.LITERAL:
        return _intersect([(value, value)], ALL)
    if kind is syntax.NOT_LITERAL:
        return _without(ALL, [(value, value)])
    if kind is syntax.ANY:
        return _without(ALL, _LINE_ENDS)
    if kind is not syntax.IN:
        raise ValueError(f"{str(kind).lower().replace('_', ' ')} is not supported")
    negated = value[0][0] is syntax.NEGATE
    found: list[Range] = []
    for item, argument in value[negated:]:
        if item is syntax.CATEGORY:
            ascii_part = _CATEGORIES.get(argument) or _without(ASCII, _CATEGORIES[_OPPOSITES[argument]])
            # The languages differ in which other characters belong to the category.
            found += [*ascii_part, (0x80, LAST)] if negated else ascii_part
        else:
            found.append(argument if item is syntax.RANGE else (argument, argument))
    return _without(ALL, found) if negated else _intersect(_without(ALL, _without(ALL, found)), ALL)


def _without(ranges: Sequence[Range], removed: Sequence[Range]) -> list[Range]:
    left = []
    cuts = sorted(removed)
    for low, high in ranges:
        begin = low
        for cut_low, cut_high in cuts:
            if cut_high < begin or cut_low > high:
                continue
            if cut_low > begin:
                left.append((begin, cut_low - 1))
            begin = cut_high + 1
        if begin <= high:
            left.append((begin, high))
    return left


def _intersect(ranges: Sequence[Range], others: Sequence[Range]) -> list[Range]:
    return [(max(low, first), min(high, last)) for low, high in ranges for first, last in others if max(low, first) <= min(high, last)]


def _has(ranges: Sequence[Range], character: int) -> bool:
    return any(low <= character <= high for low, high in ranges)


def _in_json(ranges: Sequence[Range]) -> str:
    if ranges[-1][1] == LAST:
        # With a vocabulary of 49,000 tokens, a step takes a tenth of the time that explicit ranges
        # up to the last character take.
        plain = "^" + _class([(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), *_without(ALL, ranges)])
    else:
        plain = _class(_intersect(ranges, PLAIN))
    if plain not in ("", "^"):
        # Escapes could be added as alternatives, but a step would then cost up to thirty times as
        # much.
        return f"[{plain}]"
    escapes = "".join(_in_class(ord(letter)) for character, letter in ESCAPES.items() if _has(ranges, character))
    choices = [rf"\\[{escapes}]"] if escapes else []
    if not choices:
        # Other control characters, if there is nothing else.
        choices = [rf"\\u{code:04x}" for low, high in ranges for code in range(low, high + 1)]
    return choices[0] if len(choices) == 1 else "(?:" + "|".join(choices) + ")"


def _class(ranges: Sequence[Range]) -> str:
    """Return the inside of a character class, with control characters as codes."""
    return "".join(_in_class(low) if low == high else f"{_in_class(low)}-{_in_class(high)}" for low, high in ranges)


def _in_class(character: int) -> str:
    text = chr(character)
    if character < 0x20:
        return f"\\x{character:02x}"
    return f"\\{text}" if text in r"\]^[-" else text
