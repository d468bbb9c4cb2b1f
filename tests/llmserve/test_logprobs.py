import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve import TokenLogprob
from llmserve.lifecycle.logprobs import BLOCK, PackedLogprobs, unpacked


def entry(number):
    return TokenLogprob(number, f'"{number}é', None if number == 0 else -float(number), (TokenLogprob(number + 1, "", float("-inf")),))


@given(st.lists(st.integers(0, BLOCK + 2), max_size=5), st.slices(3 * BLOCK))
def test_it_reads_as_the_tuple_of_what_was_added(parts, part):
    packed, plain = PackedLogprobs(), []
    for size in parts:
        entries = [entry(len(plain) + number) for number in range(size)]
        packed.extend(entries)
        plain += entries
    assert len(packed) == len(plain)
    assert packed == tuple(plain)
    assert tuple(packed) == tuple(plain)
    assert packed[part] == tuple(plain[part])
    assert [packed[place] for place in range(-len(plain), len(plain), 50)] == [plain[place] for place in range(-len(plain), len(plain), 50)]
    assert packed != (*plain, entry(1))
    with pytest.raises(IndexError):
        packed[len(plain)]


def test_it_is_encoded_as_the_tuple_is():
    entries = tuple(map(entry, range(BLOCK + 1)))
    assert msgspec.json.encode(PackedLogprobs(entries), enc_hook=unpacked) == msgspec.json.encode(entries)
    with pytest.raises(NotImplementedError, match="object cannot be encoded"):
        msgspec.json.encode(object(), enc_hook=unpacked)
