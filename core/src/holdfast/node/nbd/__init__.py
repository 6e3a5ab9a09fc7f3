"""The NBD frontend: volumes as network block devices for qemu, libnbd, the Linux kernel and fio."""

from holdfast.node.nbd.server import NbdFrontend, NbdFrontendDriver, NbdOptions

__all__ = ["NbdFrontend", "NbdFrontendDriver", "NbdOptions"]
