"""The transport under the public kit."""

from __future__ import annotations

import pytest
from holdfast_tally import TallyOptions, TallyTransportDriver

from holdfast.testing.checks.transport import OpenTransport
from holdfast.testing.conformance_transport import TransportConformance


class TestTally(TransportConformance):
    @pytest.fixture
    def open_transport(self) -> OpenTransport:
        options = TallyOptions(port=0)
        return lambda cluster, node: TallyTransportDriver.open(options, cluster, node)
