"""The transport `nvme-tcp` under the kit: with all digests and none, on asyncio's loop and on uvloop."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.testing.checks.transport import Capabilities, OpenTransport
from holdfast.testing.conformance_transport import TransportConformance
from holdfast_transport_nvmeof import Digests, NvmeTcpTransportDriver, NvmeTcpTransportOptions


class NvmeTcpConformance(TransportConformance):
    digests = Digests.BOTH
    capabilities = Capabilities(compresses=False)

    @pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> Any:
        return "asyncio", {"use_uvloop": request.param}

    @pytest.fixture
    def open_transport(self) -> OpenTransport:
        options = NvmeTcpTransportOptions(port=0, digests=self.digests)
        return lambda cluster, node: NvmeTcpTransportDriver.open(options, cluster, node)


class TestBothDigests(NvmeTcpConformance):
    digests = Digests.BOTH


class TestNoDigests(NvmeTcpConformance):
    digests = Digests.NONE
