"""These tests share one local Ray; tests without Ray are in test_parts.py."""

import pytest
from ray_support import deploy, ray_url

__all__ = ("deploy", "ray_url")


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/cluster/" in item.path.as_posix() and item.path.name != "test_parts.py":
            item.add_marker(pytest.mark.ray)
            # Ray and Starlette leave sockets and loops to the garbage collector.
            item.add_marker(pytest.mark.filterwarnings("default", "ignore::DeprecationWarning"))


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"
