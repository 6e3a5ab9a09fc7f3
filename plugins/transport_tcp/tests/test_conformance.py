"""The transport `tcp` under the kit: each compression, on asyncio's own loop and on uvloop."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.testing.checks.transport import Capabilities, OpenTransport
from holdfast.testing.conformance_transport import TransportConformance
from holdfast_transport_tcp import TcpOptions, TcpTransportDriver


class TcpConformance(TransportConformance):
    compression = "lz4"

    @pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> Any:
        return "asyncio", {"use_uvloop": request.param}

    @pytest.fixture
    def open_transport(self) -> OpenTransport:
        options = TcpOptions(port=0, compression=self.compression)
        return lambda cluster, node: TcpTransportDriver.open(options, cluster, node)


class TestLz4(TcpConformance):
    compression = "lz4"


class TestZstd(TcpConformance):
    compression = "zstd"


class TestPlain(TcpConformance):
    compression = "none"
    capabilities = Capabilities(compresses=False)
