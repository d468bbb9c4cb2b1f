"""`benchmarks images`: the event loop's lag while images are prepared."""

import pytest

from benchmarks.__main__ import main
from benchmarks.robustness.images import KINDS, Images, Lag, conclude, distinct, file_of
from llmserve import Image
from llmserve.images.decoding import decode_all


@pytest.mark.parametrize("options", [(), ("--http",)])
def test_it_measures_the_lag_with_each_kind_of_image(call, options):
    kinds = [word for kind in KINDS for word in ("--kind", kind)]
    ended = call(main, "images", "--count", "3", "--megapixels", "0.01", "--engine-arg", "image_tokens=50", *kinds, *options)
    assert ended.returncode == 0
    rows = [line.split() for line in ended.stdout.splitlines()[3:]]
    assert [row[0] for row in rows] == ["none", *KINDS]
    assert all(row[-2:] == ["81", "tokens"] for row in rows[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_for_a_body_is_small_enough(kind):
    large = file_of(kind, 200)
    assert len(file_of(kind, 200, len(large) // 2)) <= len(large) // 2


def test_its_files_differ_and_have_the_same_image():
    for kind in KINDS:
        images, file = [], file_of(kind, 32)
        decode_all([("", Image(distinct(file, number))) for number in range(2)], images)
        first, second = images
        assert first.data != second.data
        assert first.pixels.tobytes() == second.pixels.tobytes()


def test_the_time_without_a_cpu_is_not_the_interpreter_s():
    lag = Lag(kind="PNG", lags=[0.001, 0.05, 0.002], unscheduled=[0.0, 0.049, 0.0], seconds=2.0, prompt_tokens=7)
    table = conclude(Images(count=3, pixels=4_000_000, found=[lag]))
    assert table.splitlines()[-1].split() == ["PNG", "2.0", "50.0", "50.0", "2.0", "2.0", "s", "7", "tokens"]
