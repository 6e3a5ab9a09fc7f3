"""Exports, imports, drives and partitions as plans: what is done to a kernel, without one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import attrs
import pytest

from holdfast.units import GIB, MIB
from holdfast_transport_nvmeof.kernel import slices
from holdfast_transport_nvmeof.kernel.drives import (
    Drive,
    Partition,
    best_drive,
    partitions_of,
    probed,
)
from holdfast_transport_nvmeof.kernel.fabrics import (
    FoundController,
    Host,
    Import,
    Timeouts,
    best_port,
    found_controllers,
    plan_imports,
)
from holdfast_transport_nvmeof.kernel.slices import Slice
from holdfast_transport_nvmeof.kernel.steps import (
    Link,
    MakeDir,
    RemoveDir,
    Step,
    StepError,
    Unlink,
    Write,
    carry_out,
    output,
    run,
    shell,
)
from holdfast_transport_nvmeof.kernel.target import (
    Export,
    FoundSubsystem,
    FoundTarget,
    Port,
    found_target,
    plan_target,
)

TCP, RDMA = Port("tcp", "192.0.2.1", "4420"), Port("rdma", "192.0.2.1", "4421")
OURS, HOSTS = "nqn.ours:", "nqn.host:"
WANTED = Export(
    "nqn.ours:1", "/dev/sda1", "6f1a6a0e-6a0f-4a52-9a2b-3b6f6d64f00d", "nqn.host:a", (TCP,)
)
HOST = Host("nqn.host:a", "9b7c3f0e-0000-4000-8000-000000000000")


def target(found: FoundTarget, *wanted: Export) -> list[Step]:
    return plan_target(wanted, found, prefix=OURS, host_prefix=HOSTS, root="/nvmet")


def after(found: FoundTarget, steps: list[Step]) -> FoundTarget:
    """Carry steps out on values, with configfs' own refusals."""
    subsystems, ports, hosts = dict(found.subsystems), dict(found.ports), set(found.hosts)
    texts: dict[str, str] = {}
    for step in steps:
        match step:
            case MakeDir(path) if "/namespaces/" in path:
                assert path.split("/")[3] in subsystems
            case MakeDir(path) if "/subsystems/" in path:
                subsystems[path.split("/")[3]] = FoundSubsystem(path.split("/")[3])
            case MakeDir(path) if "/hosts/" in path:
                hosts.add(path.split("/")[3])
            case Write(path, text) if "/subsystems/" in path:
                name, key = path.split("/")[3], path.rpartition("/")[2]
                if key == "device_path":
                    subsystems[name] = attrs.evolve(subsystems[name], device=text)
                elif key == "enable":
                    subsystems[name] = attrs.evolve(subsystems[name], enabled=text == "1")
            case Write(path, text):
                texts[path.rpartition("addr_")[2]] = text
                if path.endswith("trsvcid"):
                    port = Port(texts["trtype"], texts["traddr"], text)
                    ports[int(path.split("/")[3])] = port
            case Link(path, _) if "/allowed_hosts/" in path:
                name, host = path.split("/")[3], path.split("/")[5]
                assert host in hosts
                assert not subsystems[name].ports, "the list changes while somebody is connected"
                known = subsystems[name]
                subsystems[name] = attrs.evolve(known, hosts=(*known.hosts, host))
            case Link(path, _):
                number, name = int(path.split("/")[3]), path.split("/")[5]
                assert number in ports
                assert subsystems[name].hosts, "reachable before there is a fence"
                known = subsystems[name]
                subsystems[name] = attrs.evolve(known, ports=(*known.ports, number))
            case Unlink(path) if "/allowed_hosts/" in path:
                name, host = path.split("/")[3], path.split("/")[5]
                kept = tuple(each for each in subsystems[name].hosts if each != host)
                subsystems[name] = attrs.evolve(subsystems[name], hosts=kept)
            case Unlink(path):
                number, name = int(path.split("/")[3]), path.split("/")[5]
                kept_ports = tuple(each for each in subsystems[name].ports if each != number)
                subsystems[name] = attrs.evolve(subsystems[name], ports=kept_ports)
            case RemoveDir(path) if "/namespaces/" in path:
                assert not subsystems[path.split("/")[3]].enabled
            case RemoveDir(path) if "/subsystems/" in path:
                gone = subsystems.pop(path.split("/")[3])
                assert not gone.ports
                assert not gone.hosts
            case RemoveDir(path) if "/ports/" in path:
                assert not any(
                    int(path.split("/")[3]) in each.ports for each in subsystems.values()
                )
                del ports[int(path.split("/")[3])]
            case RemoveDir(path):
                hosts.remove(path.split("/")[3])
    return FoundTarget(subsystems, ports, frozenset(hosts))


def test_an_export_is_made_once_and_removed_without_a_trace() -> None:
    made = after(FoundTarget(), target(FoundTarget(), WANTED))
    known = made.subsystems["nqn.ours:1"]
    assert (known.device, known.enabled, known.hosts) == ("/dev/sda1", True, ("nqn.host:a",))
    assert made.ports[known.ports[0]] == TCP
    assert target(made, WANTED) == []
    assert after(made, target(made)) == FoundTarget()


def test_another_user_throws_the_former_one_off_first() -> None:
    made = after(FoundTarget(), target(FoundTarget(), WANTED))
    other = attrs.evolve(WANTED, host="nqn.host:b")
    steps = target(made, other)
    assert isinstance(steps[0], Unlink)
    assert "/ports/" in steps[0].path, "its controllers end with that"
    moved = after(made, steps)
    assert moved.subsystems["nqn.ours:1"].hosts == ("nqn.host:b",)
    assert moved.hosts == {"nqn.host:b"}


def test_a_half_made_export_and_another_device_are_made_anew() -> None:
    half = FoundTarget({"nqn.ours:1": FoundSubsystem("nqn.ours:1")})
    made = after(half, target(half, WANTED))
    assert target(made, WANTED) == []
    renamed = attrs.evolve(WANTED, device="/dev/sdb1")
    assert after(made, target(made, renamed)).subsystems["nqn.ours:1"].device == "/dev/sdb1"


def test_what_others_export_is_not_touched() -> None:
    theirs = FoundTarget(
        {"nqn.theirs": FoundSubsystem("nqn.theirs", "/dev/x", True, ("nqn.other",), (1,))},
        {1: Port("tcp", "192.0.2.1", "4420")},
        frozenset({"nqn.other"}),
    )
    assert target(theirs) == []
    made = after(
        theirs, target(theirs, WANTED, attrs.evolve(WANTED, nqn="nqn.ours:2", ports=(RDMA,)))
    )
    assert after(made, target(made)) == theirs


def test_a_target_is_read_from_configfs(tmp_path: Path) -> None:
    assert found_target(str(tmp_path / "absent")) == FoundTarget()
    port = tmp_path / "ports/7"
    (port / "subsystems").mkdir(parents=True)
    for name, text in (("trtype", "tcp"), ("traddr", "192.0.2.1"), ("trsvcid", "4420")):
        (port / f"addr_{name}").write_text(text + "\n")
    space = tmp_path / "subsystems/nqn.x/namespaces/1"
    space.mkdir(parents=True)
    (space / "device_path").write_text("/dev/sda1\n")
    (space / "enable").write_text("1\n")
    (port / "subsystems/nqn.x").symlink_to(tmp_path / "subsystems/nqn.x")
    found = found_target(str(tmp_path))
    assert found.ports == {7: TCP}
    assert found.subsystems["nqn.x"] == FoundSubsystem(
        "nqn.x", "/dev/sda1", enabled=True, ports=(7,)
    )


def test_imports_are_connected_dropped_and_left_to_the_kernel_while_they_reconnect() -> None:
    wanted = [Import("nqn.x:1", TCP), Import("nqn.x:2", TCP)]
    found = [
        FoundController("nvme0", "nqn.x:1", TCP, HOST.nqn, "connecting"),
        FoundController("nvme1", "nqn.x:3", TCP, HOST.nqn, "live"),
    ]
    drops, connects = plan_imports(wanted, found, HOST, timeouts=Timeouts(), queues=4)
    assert drops == [Write("/sys/class/nvme/nvme1/delete_controller", "1")]
    words = [dict(part.split("=") for part in each.options.split(",")) for each in connects]
    assert [each["nqn"] for each in words] == ["nqn.x:2"]
    timeouts = ("keep_alive_tmo", "fast_io_fail_tmo", "ctrl_loss_tmo", "reconnect_delay")
    assert [words[0][key] for key in timeouts] == ["1", "1", "3", "1"], "MeshStor's"


def test_controllers_are_ours_by_their_host(tmp_path: Path) -> None:
    for index, host in enumerate(("nqn.host:a", "nqn.theirs")):
        folder = tmp_path / f"class/nvme/nvme{index}"
        folder.mkdir(parents=True)
        for name, text in (
            ("hostnqn", host), ("subsysnqn", f"nqn.x:{index}"), ("transport", "tcp"), ("state", "live"),
            ("address", "traddr=192.0.2.1,trsvcid=4420"),
        ):  # fmt: skip
            (folder / name).write_text(text + "\n")
        space = tmp_path / f"class/nvme-subsystem/nvme-subsys{index}/nvme{index}n1"
        (space.parent / f"nvme{index}c0n1").mkdir(parents=True)
        space.mkdir()
        (space.parent / "subsysnqn").write_text(f"nqn.x:{index}\n")
        (space / "size").write_text("2048\n")
    found = found_controllers("nqn.host:a", str(tmp_path))
    assert found == [
        FoundController("nvme0", "nqn.x:0", TCP, "nqn.host:a", "live", "/dev/nvme0n1", MIB)
    ]


def test_rdma_is_preferred_where_both_have_it_and_a_failed_port_comes_last() -> None:
    assert best_port([TCP, RDMA], rdma=True) == RDMA
    assert best_port([TCP, RDMA], rdma=False) == TCP
    assert best_port([TCP, RDMA], rdma=True, failed=[str(RDMA)]) == TCP
    assert best_port([RDMA], rdma=False) is None
    assert Port.parse("tcp://[2001:db8::1]:4420").family == "ipv6"
    for port in (TCP, RDMA):
        assert Port.parse(str(port)) == port
    with pytest.raises(ValueError, match="no port"):
        Port.parse("tcp://192.0.2.1")


def part(number: int, start: int, size: int, label: str = "theirs") -> Partition:
    uuid = f"{number:08d}-0000-4000-8000-000000000000"
    return Partition(number, f"/dev/nvme0n1p{number}", label, uuid, start, size)


GPT = Drive("/dev/nvme0n1", "M", "S", GIB, 4096, "gpt", chosen=True)


def test_room_is_counted_between_partitions_and_only_where_it_may_be_used() -> None:
    drive = attrs.evolve(
        GPT, partitions=(part(1, 100 * MIB, 50 * MIB), part(2, 400 * MIB, 100 * MIB))
    )
    assert drive.gaps == [
        (MIB, 99 * MIB), (150 * MIB, 250 * MIB), (500 * MIB, 1023 * MIB - 500 * MIB)
    ]  # fmt: skip
    assert drive.free_bytes == 523 * MIB
    for lacking in (
        {"chosen": False}, {"table": "dos"}, {"table": "", "content": "xfs"},
        {"table": "", "use": "mounted at /"},
    ):  # fmt: skip
        assert attrs.evolve(drive, **lacking).free_bytes == 0
    assert attrs.evolve(GPT, table="").usable, "a blank drive gets a GPT"
    assert best_drive([drive], 80 * MIB, 4096) == (drive, MIB), "the smallest gap that fits"
    assert best_drive([drive], 80 * MIB, 512) is None
    assert best_drive([drive], 80 * MIB, 4096, taken=[drive.path]) is None


def test_partitions_are_read_from_sfdisk_and_ours_known_by_label() -> None:
    told = {
        "sectorsize": 4096,
        "partitions": [
            {
                "node": "/dev/nvme0n1p1",
                "start": 256,
                "size": 512,
                "uuid": "AB",
                "name": "holdfast-db-0",
            },
            {"node": "/dev/nvme0n1p12", "start": 1024, "size": 256},
        ],
    }
    first, second = partitions_of(told, 512)
    assert (first.number, first.start_bytes, first.size_bytes, first.uuid) == (
        1,
        MIB,
        2 * MIB,
        "ab",
    )
    assert (first.is_ours, second.is_ours, second.number) == (True, False, 12)
    drive = attrs.evolve(GPT, partitions=(attrs.evolve(first, size_bytes=2 * MIB), second))
    (found,) = slices.slices_on([drive])
    assert (found.drive, found.number, found.room_bytes) == (GPT.path, 1, 3 * MIB)


def test_a_slice_is_ready_only_when_it_was_zeroed() -> None:
    steps = [shell(each) for each in slices.make_on_drive(
        attrs.evolve(GPT, table=""), MIB, 64 * MIB, "u", "holdfast-db-0", zeroed=True
    )]  # fmt: skip
    assert "label: gpt" in steps[0]
    assert 'name="holdfast-db-0-new"' in steps[1]
    assert steps[2:] == [
        "blkdiscard --force --zeroout /dev/nvme0n1p1",
        "sfdisk --quiet --no-reread --part-label /dev/nvme0n1 1 holdfast-db-0",
    ]
    half = Slice("u", "/dev/nvme0n1p1", "holdfast-db-0-new", MIB, GPT.path, 1)
    assert not half.ready
    assert [shell(each) for each in slices.finish(half)] == steps[2:]
    whole = slices.make_on_drive(GPT, MIB, MIB, "u", "holdfast-db-0", zeroed=False)
    assert not any("blkdiscard" in shell(each) for each in whole)


def test_a_file_that_is_not_ours_is_not_removed(tmp_path: Path) -> None:
    uuid = "6f1a6a0e-6a0f-4a52-9a2b-3b6f6d64f00d"
    theirs = Slice(uuid, "", "holdfast-x", MIB, str(tmp_path / f"notes-{uuid}.img"))
    with pytest.raises(StepError, match="not one of ours"):
        asyncio.run(slices.check_removable(theirs))
    ours = attrs.evolve(theirs, drive=str(tmp_path / f"holdfast-{uuid}.img"))
    asyncio.run(slices.check_removable(ours))
    other = attrs.evolve(ours, uuid="00000000-0000-4000-8000-000000000000")
    with pytest.raises(StepError, match="not one of ours"):
        asyncio.run(slices.check_removable(other))


def test_steps_print_as_shell_and_say_what_failed(tmp_path: Path) -> None:
    assert shell(run("mdadm", "--stop", "/dev/md1")) == "mdadm --stop /dev/md1"
    assert shell(run("cat", stdin="a b\n")) == "printf %s 'a b\n' | cat"
    folder = tmp_path / "a"
    steps: list[Step] = [
        MakeDir(str(folder)), MakeDir(str(folder)), Link(f"{folder}/l", str(tmp_path)),
        Unlink(f"{folder}/l"), RemoveDir(str(folder)), RemoveDir(str(folder)),
    ]  # fmt: skip
    asyncio.run(carry_out(steps))
    assert not folder.exists()
    with pytest.raises(StepError, match="it is not there"):
        asyncio.run(carry_out([Write(str(tmp_path / "absent"), "1")]))
    with pytest.raises(StepError, match="failed with 3: so it is"):
        asyncio.run(output("sh", "-c", "echo so it is >&2; exit 3"))
    with pytest.raises(StepError, match="cannot be run"):
        asyncio.run(output("no-such-program"))
    with pytest.raises(StepError, match="did not end within"):
        asyncio.run(output("sleep", "60", timeout_s=0.1))


def test_a_drive_is_blank_only_if_it_can_be_read_and_has_nothing_but_zeros(tmp_path: Path) -> None:
    """What blkid does not know may be somebody's database; a GPT would be the end of it."""
    drive = tmp_path / "drive"
    drive.write_bytes(bytes(4 * MIB))
    assert asyncio.run(probed(str(drive))) == {}
    for at in (4096, 4 * MIB - 512):
        drive.write_bytes(bytes(4 * MIB))
        with drive.open("r+b") as file:
            file.seek(at)
            file.write(b"precious")
        assert asyncio.run(probed(str(drive)))["TYPE"] == "unknown data"
    with pytest.raises(StepError, match="cannot be read"):
        asyncio.run(probed(str(tmp_path / "gone")))
