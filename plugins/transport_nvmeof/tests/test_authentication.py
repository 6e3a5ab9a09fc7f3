"""DH-HMAC-CHAP without sockets: secrets, numbers, both ends together, and what hosts may get wrong."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import struct
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plugins.transport_nvmeof.tests.machines import HOST, Target, joined
from plugins.transport_nvmeof.tests.test_queue import answers, capsule, command, status_of

from holdfast.errors import ConfigError, RemoteProtocolError
from holdfast_transport_nvmeof import dhchap, secrets_file
from holdfast_transport_nvmeof.authentication import (
    ControllerAuthentication,
    HostAuthentication,
    Step,
    receive_command,
    send_command,
)
from holdfast_transport_nvmeof.commands import AdminOpcode, Command, IoOpcode
from holdfast_transport_nvmeof.dhchap import (
    Challenge,
    Failure,
    Group,
    Hash,
    MessageId,
    Negotiate,
    Reply,
    Secret,
    Transaction,
)
from holdfast_transport_nvmeof.fabrics import Property, property_get
from holdfast_transport_nvmeof.namespace import nqn_of
from holdfast_transport_nvmeof.pdu import PduType
from holdfast_transport_nvmeof.queue import Phase
from holdfast_transport_nvmeof.status import STATUS_MASK, ConnectStatus, Status

SUBSYSTEM = nqn_of("db")
PRIMES = {
    Group.FFDHE2048: "9cd3b7f336872f46c09428d1bbc19877a4d440512cda8d1c1cf0cd6e33698966",
    Group.FFDHE3072: "0eaf67db3a839156d5013494a5318a772b5697d270d721f37f092efc69ea5a17",
    Group.FFDHE4096: "4648414224ac881b3d0dc59b466f96d06a558278776807797ecf1f66ff397b3e",
    Group.FFDHE6144: "227ac9066b3ddd9e193670cda2388fa884f65ba0cf98b742d1fe77a6687c79c7",
    Group.FFDHE8192: "770b14efaf6f049929c523113b3fa99a8d11dab1b18af3609590122075d19833",
}
"""SHA-256 of the primes that RFC 7919 prints."""


def text_of(key: bytes, kind: str = "00") -> str:
    crc = binascii.crc32(key).to_bytes(4, "little")
    return f"DHHC-1:{kind}:{base64.b64encode(key + crc).decode()}:"


HOST_SECRET = Secret.parse(text_of(bytes(range(32)), "01"))
OWN_SECRET = Secret.parse(text_of(bytes(range(64)), "03"))


def ends(
    *,
    hashes: tuple[Hash, ...] = tuple(Hash),
    groups: tuple[Group, ...] = (Group.FFDHE2048, Group.NULL),
    mutual: bool = True,
) -> tuple[HostAuthentication, ControllerAuthentication]:
    own = OWN_SECRET if mutual else None
    host = HostAuthentication(HOST, SUBSYSTEM, HOST_SECRET, own)
    return host, ControllerAuthentication(HOST, SUBSYSTEM, HOST_SECRET, own, hashes, groups)


def send(controller: ControllerAuthentication, message: bytes) -> int:
    return controller.send(send_command(len(message)), message)


def receive(controller: ControllerAuthentication) -> bytes:
    completion = controller.receive(receive_command()._replace(sgl_length=4096, sgl_type=0x5A))
    assert not completion.status
    return completion.data


def failure_of(controller: ControllerAuthentication) -> Failure:
    kind, message, _ = dhchap.head(data := receive(controller))
    assert (kind, message) == (0, MessageId.FAILURE1)
    assert controller.step is Step.FAILED
    return Failure(data[7])


@pytest.mark.parametrize("kind", list(Hash))
@pytest.mark.parametrize("group", [Group.NULL, Group.FFDHE2048, Group.FFDHE3072])
@pytest.mark.parametrize("mutual", [False, True])
def test_both_ends_come_to_trust_each_other(kind: Hash, group: Group, *, mutual: bool) -> None:
    host, controller = ends(hashes=(kind,), groups=(group,), mutual=mutual)
    assert send(controller, host.negotiate()) == 0
    assert send(controller, host.on_challenge(receive(controller))) == 0
    last = host.on_success1(receive(controller))
    assert bool(last) is mutual
    if mutual:
        assert controller.step is Step.SUCCESS2
        assert send(controller, last) == 0
    assert controller.step is Step.DONE


@pytest.mark.parametrize("group", PRIMES)
def test_the_primes_are_those_of_the_rfc(group: Group) -> None:
    raw = dhchap.prime(group).to_bytes(dhchap.value_bytes(group), "big")
    assert hashlib.sha256(raw).hexdigest() == PRIMES[group]


def test_a_response_is_made_of_what_the_specification_names() -> None:
    agreed = Transaction("host", "subsystem", 7, Hash.SHA384, Group.FFDHE2048, bytes(256))
    key = hmac.digest(bytes(range(32)), b"hostNVMe-over-Fabrics", "sha256")
    session = hashlib.sha384(bytes(256)).digest()
    augmented = hmac.digest(session, b"c" * 48, "sha384")
    told = augmented + struct.pack("<IHB", 9, 7, 0) + b"HostHosthost\0subsystem"
    right = hmac.digest(key, told, "sha384")
    assert agreed.host_response(HOST_SECRET, b"c" * 48, 9) == right
    plain = attrs.evolve(agreed, group=Group.NULL, hash=Hash.SHA256)
    told = b"c" * 32 + struct.pack("<IHB", 9, 7, 0) + b"Controllersubsystem\0host"
    right = hmac.digest(bytes(48), told, "sha256")
    assert plain.controller_response(Secret(bytes(48)), b"c" * 32, 9) == right


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "form"),
        ("DHHC-2:00:AAAA:", "form"),
        (text_of(bytes(32), "04"), "form"),
        (text_of(bytes(32))[:-1], "form"),
        ("DHHC-1:00:A?AA:", "base64"),
        (text_of(bytes(31)), "32, 48 or 64"),
        (text_of(bytes(32), "02"), "48 bytes"),
        ("DHHC-1:00:" + base64.b64encode(bytes(32) + b"crc!").decode() + ":", "checksum"),
    ],
)
def test_what_is_no_secret_is_refused_without_being_repeated(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        Secret.parse(text)
    assert not text or text not in str(caught.value)
    assert "range" not in repr(HOST_SECRET)
    assert repr(HOST_SECRET.key) not in repr(HOST_SECRET)


def test_the_file_of_secrets_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    secret = text_of(bytes(range(32)))
    path.write_text(f"# hosts\n\n{HOST} {secret} {secret} # with a comment\nnqn.other {secret}\n")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="may be read by others"):
        secrets_file.read(str(path))
    path.chmod(0o600)
    found = secrets_file.read(str(path))
    assert found[HOST].controller == Secret(bytes(range(32)))
    assert found["nqn.other"].controller is None
    for wrong in (f"{HOST}", f"{HOST} {secret[:-2]}", f"a {secret}\na {secret}", "a b c d"):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match=r"line [12]") as caught:
            secrets_file.read(str(path))
        assert secret[10:30] not in caught.value.message
    with pytest.raises(ConfigError, match="cannot be read"):
        secrets_file.read(str(tmp_path / "none"))
    if os.geteuid() == 0:
        path.write_text("")
        os.chown(path, 12345, 0)
        os.seteuid(12346)
        try:
            with pytest.raises(ConfigError):
                secrets_file.read(str(path))
        finally:
            os.seteuid(0)


def test_a_wrong_secret_is_told_and_the_end() -> None:
    host, controller = ends()
    host.secret = Secret(bytes(32))
    send(controller, host.negotiate())
    send(controller, host.on_challenge(receive(controller)))
    assert controller.step is Step.FAILURE1
    with pytest.raises(RemoteProtocolError, match="AUTHENTICATION_FAILED"):
        host.on_success1(receive(controller))


def test_a_controller_with_a_wrong_secret_is_not_believed() -> None:
    host, controller = ends()
    controller.own = Secret(bytes(32))
    send(controller, host.negotiate())
    send(controller, host.on_challenge(receive(controller)))
    with pytest.raises(RemoteProtocolError, match="does not know"):
        host.on_success1(receive(controller))
    send(controller, dhchap.failure(MessageId.FAILURE2, host._number, Failure(1)))
    assert controller.step is Step.FAILED


def test_a_controller_without_a_secret_of_its_own_cannot_be_asked_to_prove_itself() -> None:
    host, controller = ends(mutual=False)
    host.theirs = OWN_SECRET
    send(controller, host.negotiate())
    send(controller, host.on_challenge(receive(controller)))
    assert failure_of(controller) is Failure.AUTHENTICATION_FAILED


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"\0", Failure.INCORRECT_PAYLOAD),
        (b"\0\0\0\0\1\0", Failure.INCORRECT_PAYLOAD),
        (Negotiate(1, (9,), (0,)).pack(), Failure.HASH_NOT_USABLE),
        (Negotiate(1, (1,), (5, 9)).pack(), Failure.DH_GROUP_NOT_USABLE),
        (Negotiate(1, (1,), (0,)).pack()[:8] + bytes(64), Failure.PROTOCOL_NOT_USABLE),
        (
            b"\0\0\0\0\1\0\1" + Negotiate(1, (1,), (0,)).pack()[7:],
            Failure.SECURE_CHANNEL_CONCATENATION_MISMATCH,
        ),
        (Reply(0, bytes(32), 1).pack(), Failure.INCORRECT_PROTOCOL_MESSAGE),
        (dhchap.success2(0), Failure.INCORRECT_PROTOCOL_MESSAGE),
        (dhchap.success2(5), Failure.INCORRECT_PAYLOAD),
    ],
)
def test_a_first_message_that_is_none_is_answered_by_why(message: bytes, why: Failure) -> None:
    _, controller = ends()
    assert send(controller, message) == 0
    assert failure_of(controller) is why


@pytest.mark.parametrize("value", [0, 1, dhchap.prime(Group.FFDHE2048) - 1])
def test_a_value_that_gives_the_key_away_is_refused(value: int) -> None:
    _, controller = ends(groups=(Group.FFDHE2048,))
    send(controller, Negotiate(1, (1,), (1,)).pack())
    receive(controller)
    send(controller, Reply(1, bytes(32), 1, public=value.to_bytes(256, "big")).pack())
    assert failure_of(controller) is Failure.INCORRECT_PAYLOAD


def test_a_question_is_not_answered_by_the_question() -> None:
    host, controller = ends(groups=(Group.NULL,))
    send(controller, host.negotiate())
    asked = Challenge.parse(data := receive(controller))
    reply = Reply.parse(host.on_challenge(data))
    send(controller, attrs.evolve(reply, challenge=asked.challenge).pack())
    assert failure_of(controller) is Failure.AUTHENTICATION_FAILED


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"cdw10": 0}, Status.INVALID_FIELD_IN_COMMAND),
        ({"cdw11": 0}, Status.INVALID_FIELD_IN_COMMAND),
        ({"cdw11": 80}, Status.DATA_SGL_LENGTH_INVALID),
        ({"sgl_length": 80}, Status.DATA_SGL_LENGTH_INVALID),
        ({"sgl_type": 0x5A}, Status.SGL_DESCRIPTOR_TYPE_INVALID),
        ({"sgl_address": 1}, Status.SGL_DESCRIPTOR_TYPE_INVALID),
    ],
)
def test_a_wrong_command_has_its_own_status(change: dict[str, int], status: int) -> None:
    host, controller = ends()
    message = host.negotiate()
    sqe = send_command(len(message))._replace(**change)
    assert controller.send(sqe, message) == status
    assert controller.step is Step.NEGOTIATE


@settings(max_examples=300, deadline=None)
@given(
    steps=st.integers(0, 2),
    kind=st.integers(0, 2),
    message=st.sampled_from([*MessageId, 7]),
    rest=st.binary(max_size=300),
)
def test_no_message_lets_a_host_in_that_does_not_know_the_secret(
    steps: int, kind: int, message: int, rest: bytes
) -> None:
    _, controller = ends(groups=(Group.NULL,))
    raw = struct.pack("<BBHH", kind, message, 0, 0) + rest
    for each in [Negotiate(0, (1, 2, 3), (0,)).pack(), b""][:steps]:
        if each:
            send(controller, each)
        else:
            receive(controller)
    send(controller, raw)
    receive(controller)
    assert controller.step not in {Step.DONE, Step.SUCCESS1, Step.SUCCESS2}


# --- on a queue ----------------------------------------------------------------------------


def locked(qid: int = 1) -> tuple[Target, HostAuthentication]:
    """Return a queue that waits for its host to authenticate, and the host's end."""
    target = Target(qid=qid)
    host, controller = ends(groups=(Group.NULL,))
    target.queue.authentication = controller
    target.queue.phase = Phase.AUTHENTICATE
    return target, host


def tell(target: Target, message: bytes) -> int:
    target.feed(capsule(target, send_command(len(message))._replace(cid=3), message))
    (pdu,) = answers(target)
    return status_of(pdu) & STATUS_MASK


def hear(target: Target) -> bytes:
    sqe = receive_command()._replace(cid=4, sgl_length=4096, sgl_type=0x5A)
    target.feed(capsule(target, sqe))
    (pdu,) = answers(target)
    assert pdu[0] == PduType.C2H_DATA
    return pdu[pdu[3] :][:4096]


@pytest.mark.parametrize("qid", [0, 1])
def test_a_queue_takes_nothing_else_until_its_host_has_authenticated(qid: int) -> None:
    target, host = locked(qid)
    tried: list[Command] = [property_get(8, Property.CSTS)]
    tried += (
        [command(IoOpcode.READ)]
        if qid
        else [command(AdminOpcode.IDENTIFY, cdw10=1, sgl_length=4096)]
    )
    for sqe in tried:
        target.feed(capsule(target, sqe))
        (pdu,) = answers(target)
        assert status_of(pdu) & STATUS_MASK == ConnectStatus.AUTHENTICATION_REQUIRED
    assert not target.asked
    assert tell(target, host.negotiate()) == 0
    assert tell(target, host.on_challenge(hear(target))) == 0
    last = host.on_success1(hear(target))
    target.feed(capsule(target, tried[-1]))
    (pdu,) = answers(target)
    assert status_of(pdu) & STATUS_MASK == ConnectStatus.AUTHENTICATION_REQUIRED, "half way is out"
    assert tell(target, last) == 0
    target.feed(capsule(target, tried[-1]))
    assert answers(target)[0][0] == PduType.C2H_DATA
    assert tell(target, host.negotiate()) == 0, "it may be asked to do so again, while it goes on"
    target.feed(capsule(target, tried[-1]))
    assert answers(target)[0][0] == PduType.C2H_DATA
    assert tell(target, dhchap.success2(0)) == 0
    assert target.queue.phase is Phase.CLOSED, "and what goes wrong then is the end at once"


def test_data_for_a_queue_that_is_not_authenticated_ends_the_connection() -> None:
    target, _ = locked()
    raw = joined(target.queue.wire.framing.pdu(PduType.H2C_DATA, 4, bytes(16), b"x" * 512))
    with pytest.raises(RemoteProtocolError):
        target.feed(raw)
    assert not target.asked
