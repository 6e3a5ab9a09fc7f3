"""Holdfast over NVMe-oF, in user space: a frontend for stock kernels, a transport between nodes.

Frontend and transport are both called `nvme-tcp`, each in its own section of the configuration. A stock
Linux kernel attaches a volume from the frontend with `nvme connect`; see the README.
"""

from holdfast_transport_nvmeof.frontend import NvmeTcpFrontend, NvmeTcpFrontendDriver
from holdfast_transport_nvmeof.options import NvmeTcpOptions
from holdfast_transport_nvmeof.transport import NvmeTcpTransport, NvmeTcpTransportDriver
from holdfast_transport_nvmeof.transport_options import Digests, NvmeTcpTransportOptions

__all__ = [
    "Digests",
    "NvmeTcpFrontend",
    "NvmeTcpFrontendDriver",
    "NvmeTcpOptions",
    "NvmeTcpTransport",
    "NvmeTcpTransportDriver",
    "NvmeTcpTransportOptions",
]
