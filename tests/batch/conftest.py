import pytest
from http_support import running_server


@pytest.fixture
def anyio_backend():
    """Real sockets need the real clock."""
    return "asyncio"


@pytest.fixture
async def server():
    async with running_server() as server:
        yield server
