"""Every async test of the core runs on asyncio and on trio, both on a virtual clock. No test sees the user's cache."""

import os

import hypothesis
import pytest
import trio.testing
from virtual import VirtualLoop

# A machine that others use too is slow at times, which is no fault of what is tested.
hypothesis.settings.register_profile("llmserve", deadline=None)
hypothesis.settings.load_profile("llmserve")


@pytest.fixture(scope="session", autouse=True)
def nothing_from_outside(tmp_path_factory):
    """Tests read nothing that an earlier run or the developer's shell has left: the cache is new, and LLMSERVE_* variables are unset."""
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
