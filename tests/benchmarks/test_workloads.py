import itertools

import pytest

from benchmarks.workload.requests import Empirical, Fixed, LogNormal, Normal, Workload
from benchmarks.workload.traces import Arrival


def take(workload, count=200, part=""):
    return list(itertools.islice(workload.items(part), count))


def test_the_same_seed_asks_the_same_and_another_part_something_else():
    workload = Workload(prompt=Normal(30, 10), output=LogNormal(20, 0.5), vocabulary=(10, 100), seed=3)
    assert take(workload) == take(workload)
    assert not {item.prompt for item in take(workload, part="warm-up")} & {item.prompt for item in take(workload)}


def test_prompts_stay_inside_the_vocabulary_and_share_only_what_they_should():
    workload = Workload(prompt=Fixed(8), output=Fixed(4), vocabulary=(10, 20), shared_prefix=16)
    items = take(workload)
    assert {len(item.prompt) for item in items} == {24}
    assert len({item.prompt[:16] for item in items + take(workload, part="other")}) == 1
    assert len({item.prompt for item in items}) > 190
    assert all(10 <= token < 20 for item in items for token in item.prompt)


def test_another_salt_has_the_same_lengths_and_no_prompt_or_prefix_of_the_first():
    first, second = (
        take(Workload(prompt=Normal(30, 10), output=Fixed(4), vocabulary=(10, 9999), shared_prefix=16, salt=salt)) for salt in ("a", "b")
    )
    assert [len(item.prompt) for item in first] == [len(item.prompt) for item in second]
    assert not {item.prompt[:16] for item in first} & {item.prompt[:16] for item in second}
    trace = [Arrival(time=0.0, prompt=1024, output=4, blocks=(1, 2))] * 2
    replayed = {
        salt: [item.prompt for item in Workload(prompt=Fixed(1), output=Fixed(1), vocabulary=(10, 9999), salt=salt).replay(trace)]
        for salt in "ab"
    }
    assert replayed["a"][0] == replayed["a"][1] != replayed["b"][0]


@pytest.mark.parametrize(
    ("lengths", "median"), [(Normal(100, 20), 100), (LogNormal(100, 0.6), 100), (Empirical((100, 100, 7)), 100), (Fixed(100), 100)]
)
def test_lengths_have_the_median_that_was_asked(lengths, median):
    drawn = sorted(item.max_tokens for item in take(Workload(prompt=Fixed(1), output=lengths, vocabulary=(1, 9)), 2000))
    assert drawn[1000] == pytest.approx(median, rel=0.06)
    assert drawn[0] >= 1


def test_some_clients_leave_and_tenants_take_turns():
    items = take(Workload(prompt=Fixed(1), output=Fixed(1), vocabulary=(1, 9), cancelling=0.25, patience=2.0, tenants=("a", "b")), 2000)
    leaving = [item for item in items if item.cancel_after is not None]
    assert len(leaving) == pytest.approx(500, rel=0.2)
    assert {item.cancel_after for item in leaving} == {2.0}
    assert sum(item.tenant == "a" for item in items) == pytest.approx(1000, rel=0.2)
