"""Every async test of the core runs on asyncio and on trio, both on a virtual clock."""

import pytest
import trio.testing
from virtual import VirtualLoop


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    if request.param == "trio":
        return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}
    return "asyncio", {"loop_factory": VirtualLoop}
