"""Run a command of this machine on another Linux kernel: `python -m tests.guest COMMAND...`

Tests of the kernel's NVMe-oF and MD need modules that the machine at hand may lack. This boots Debian's
kernel under QEMU with this machine's file system, read-only, as its own, so that the command, its
interpreter and all its programs are the ones installed here; only /run, /mnt and /dev/shm can be written,
and nothing of it stays. Needs root and Debian's apt once, for the kernel; QEMU, busybox and kmod.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

CACHE = Path(os.environ.get("HOLDFAST_GUEST", "~/.cache/holdfast-guest")).expanduser()
KERNELS = ("linux-image-6.12-amd64", "linux-image-amd64")
MODULES = (
    *("crc32c_generic", "crc32_generic"),  # What others need and modules.dep does not say.
    *("virtio_pci", "virtio_net", "virtio_blk", "virtio_rng", "9pnet_virtio", "9p", "configfs"),
    *("nvme_tcp", "nvmet", "nvmet_tcp", "nvme_rdma", "nvmet_rdma", "rdma_rxe"),
    *("loop", "null_blk", "raid1", "raid10", "nbd", "xfs", "ext4"),
)
ENDED = "guest-ended"
CMDLINE = (
    "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off nokaslr no_timer_check nowatchdog "
    "cryptomgr.notests=1 net.ifnames=0"
)

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /host
mount -t devpts devpts /dev/pts; mount -t tmpfs tmpfs /dev/shm
while read -r module; do insmod $module 2>>/errors; done </modules/order
mount -t configfs configfs /sys/kernel/config
ip link set lo up; ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /host
for each in dev sys proc; do mount --rbind /$each /host/$each; done
mount -t tmpfs tmpfs /host/run; mount -t tmpfs tmpfs /host/mnt
chroot /host /bin/bash -c 'rdma link add rxe0 type rxe netdev eth0' 2>/dev/null
chroot /host /bin/bash -c "$(cat /job)"
echo "guest-ended $?"
poweroff -f
"""


def main(words: list[str]) -> int:
    """Run a command in the guest and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.guest")
    parser.add_argument("--cpus", type=int, default=2, help="of the guest (%(default)s)")
    parser.add_argument(
        "--reach-host", action="store_true", help="let it connect to 10.0.2.2, this machine"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER)
    chosen = parser.parse_args(words)
    command: list[str] = chosen.command
    lacking = [p for p in ("qemu-system-x86_64", "busybox", "depmod") if shutil.which(p) is None]
    if lacking or os.geteuid() != 0:
        sys.stderr.write(f"The guest needs root and {' and '.join(lacking or ['nothing else'])}.\n")
        return 1
    kernel, modules = _kernel()
    with tempfile.TemporaryDirectory() as folder:
        initrd = Path(folder, "initrd")
        _build(Path(folder, "tree"), modules, command, initrd)
        return _boot(kernel, initrd, chosen.cpus, reaches_host=chosen.reach_host)


def _kernel() -> tuple[Path, Path]:
    """Return the kernel and the root of its modules, downloaded and unpacked once."""
    root = CACHE / "root"
    if not (CACHE / "complete").exists():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        package = _package()
        for old in CACHE.glob("*.deb"):
            old.unlink()
        subprocess.run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package],
                       cwd=CACHE, check=True)  # fmt: skip
        subprocess.run(["dpkg-deb", "-x", str(next(CACHE.glob("*.deb"))), str(root)], check=True)
        version = next((root / "lib/modules").iterdir()).name
        subprocess.run(["depmod", "-b", str(root), version], check=True)
        (CACHE / "complete").touch()
    return next((root / "boot").glob("vmlinuz-*")), next((root / "lib/modules").iterdir())


def _package() -> str:
    for name in KERNELS:
        told = subprocess.run(
            ["apt-cache", "depends", name], capture_output=True, text=True, check=False
        )
        found = re.search(r"Depends: (linux-image-\S+)", told.stdout)
        if found is not None:
            return found[1]
    raise SystemExit("apt knows no kernel; try `apt-get update`.")


def _build(tree: Path, modules: Path, command: list[str], initrd: Path) -> None:
    for name in ("bin", "modules", "proc", "sys", "dev", "root"):
        (tree / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", tree / "bin/busybox")
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        name, _, rest = line.partition(":")
        needs[name] = rest.split()
    by_name = {Path(path).name.partition(".ko")[0].replace("-", "_"): path for path in needs}
    order: list[str] = []
    for wanted in MODULES:
        for path in [*reversed(needs.get(by_name.get(wanted, ""), [])), by_name.get(wanted, "")]:
            if path and path not in order:
                order.append(path)
    for path in order:
        target = tree / "modules" / Path(path).name.removesuffix(".xz")
        shutil.copy(modules / path, tree / "modules")
        if path.endswith(".xz"):
            subprocess.run(["xz", "-d", str(tree / "modules" / Path(path).name)], check=True)
        assert target.exists()
    names = [f"/modules/{Path(path).name.removesuffix('.xz')}" for path in order]
    # Drives come and go by configfs alone.
    lines = [f"{name} nr_devices=0" if "null_blk" in name else name for name in names]
    (tree / "modules/order").write_text("\n".join(lines) + "\n")
    settings = (
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin TMPDIR=/run HOME=/run "
        "HYPOTHESIS_STORAGE_DIRECTORY=/run/hypothesis"
    )
    here = shlex.quote(str(Path.cwd()))
    (tree / "job").write_text(f"cd {here}; export {settings}; {shlex.join(command)}\n")
    (tree / "init").write_text(INIT)
    (tree / "init").chmod(0o755)
    with initrd.open("wb") as out:
        find = subprocess.run(["find", "."], cwd=tree, capture_output=True, check=True)
        subprocess.run(["busybox", "cpio", "-o", "-H", "newc"], cwd=tree, input=find.stdout, stdout=out,
                       stderr=subprocess.DEVNULL, check=True)  # fmt: skip


def _boot(kernel: Path, initrd: Path, cpus: int, *, reaches_host: bool) -> int:
    network = "user,id=n0" if reaches_host else "user,id=n0,restrict=on"
    qemu = [
        "qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot", "-M", "q35", "-m", "3072",
        # One thread: with several, emulated kernels crash now and then before QEMU 8.1.
        "-smp", str(cpus), "-accel", "tcg,thread=single", "-cpu", "max,la57=off", "-kernel", str(kernel),
        "-initrd", str(initrd), "-serial", "stdio", "-append",
        CMDLINE,
        "-device", "virtio-rng-pci", "-netdev", network,
        "-device", "virtio-net-pci,netdev=n0,romfile=",
        "-virtfs", "local,path=/,mount_tag=host,security_model=none,multidevs=remap,readonly=on",
    ]  # fmt: skip
    code = 125
    # The guest goes with us, also when we are told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with subprocess.Popen(qemu, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                          errors="replace") as process:  # fmt: skip
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith(ENDED):
                    code = int(line.split()[1])
                    break
                sys.stdout.write(line)
                sys.stdout.flush()
        finally:
            process.kill()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
