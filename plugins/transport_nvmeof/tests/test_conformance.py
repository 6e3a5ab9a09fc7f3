"""The public kit of frontends, over our own host: one queue, and several with both digests."""

from __future__ import annotations

import pytest

from holdfast.interfaces.frontend import Frontend, VolumeProvider
from holdfast.testing.checks.frontend import Client, Subject
from holdfast.testing.conformance_frontend import FrontendConformance
from holdfast_transport_nvmeof import NvmeTcpFrontendDriver, NvmeTcpOptions
from holdfast_transport_nvmeof.initiator import NvmeTcpHost

HOST_ID = bytes(range(16))


async def open_frontend(provider: VolumeProvider) -> Frontend:
    options = NvmeTcpOptions(listen="127.0.0.1:0", discovery_listen="127.0.0.1:0")
    return await NvmeTcpFrontendDriver.open(options, provider)


class TestOneQueue(FrontendConformance):
    @pytest.fixture
    def subject(self) -> Subject:
        async def connect(uri: str) -> Client:
            return await NvmeTcpHost.connect_uri(uri, host_id=HOST_ID)

        return Subject(open=open_frontend, connect=connect)


class TestFourQueuesWithDigests(FrontendConformance):
    @pytest.fixture
    def subject(self) -> Subject:
        async def connect(uri: str) -> Client:
            return await NvmeTcpHost.connect_uri(uri, host_id=HOST_ID, queues=4, digests=3)

        return Subject(open=open_frontend, connect=connect)
