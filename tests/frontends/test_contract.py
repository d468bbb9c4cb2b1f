"""The frontend contract on a simulated engine that is slow enough to leave streams early."""

import pytest
from contracts.frontend_contract import FrontendContract
from http_support import InProcess, OverHTTP, running_server
from socket_support import over_socket


@pytest.fixture
async def slow_server():
    async with running_server(time_scale=0.5) as server:
        yield server


class TestInProcess(FrontendContract):
    @pytest.fixture
    def client(self, slow_server):
        return InProcess(slow_server.manager)


class TestHTTP(FrontendContract):
    @pytest.fixture
    def client(self, slow_server):
        return OverHTTP(slow_server)


class TestSocket(FrontendContract):
    @pytest.fixture
    async def client(self):
        async with over_socket(time_scale=0.5) as client:
            yield client


class TestUnixSocket(FrontendContract):
    @pytest.fixture
    async def client(self, tmp_path):
        async with over_socket(listen=f"unix://{tmp_path}/llmserve.sock", time_scale=0.5) as client:
            yield client
