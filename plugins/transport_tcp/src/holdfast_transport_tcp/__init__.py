"""The transport `tcp`: replication and session traffic in compressed frames over TCP, port 5703."""

from holdfast_transport_tcp.layout import layout_tables
from holdfast_transport_tcp.options import TcpOptions
from holdfast_transport_tcp.transport import TcpTransport, TcpTransportDriver

__all__ = ["TcpOptions", "TcpTransport", "TcpTransportDriver", "layout_tables"]
