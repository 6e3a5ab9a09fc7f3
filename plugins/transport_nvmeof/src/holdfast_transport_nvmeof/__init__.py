"""Holdfast over NVMe-oF: the frontend `nvme-tcp`, an NVMe/TCP target in user space, and a host for it.

A stock Linux kernel attaches a volume with `nvme connect`; see the README.
"""

from holdfast_transport_nvmeof.frontend import NvmeTcpFrontend, NvmeTcpFrontendDriver
from holdfast_transport_nvmeof.options import NvmeTcpOptions

__all__ = ["NvmeTcpFrontend", "NvmeTcpFrontendDriver", "NvmeTcpOptions"]
