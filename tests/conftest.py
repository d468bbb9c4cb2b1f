"""Async tests of the core run on asyncio and trio, on a virtual clock, without the user's cache."""

import os

import hypothesis
import pytest
import trio.testing
from virtual import VirtualLoop

# A shared machine is slow at times, which must not fail a test.
hypothesis.settings.register_profile("llmserve", deadline=None)
hypothesis.settings.load_profile("llmserve")


@pytest.fixture(scope="session", autouse=True)
def nothing_from_outside(tmp_path_factory):
    """Give each test a new cache, without the developer's LLMSERVE_* variables."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("LLMSERVE_")]:
            patch.delenv(name)
        patch.setenv("LLMSERVE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    if request.param == "trio":
        return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}
    return "asyncio", {"loop_factory": VirtualLoop}
