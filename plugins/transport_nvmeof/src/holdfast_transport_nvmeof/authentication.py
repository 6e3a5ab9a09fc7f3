"""In-band authentication of one queue as two machines: the controller's end and the host's.

Messages in, messages out; randomness is handed in, so that a transaction can be repeated. What the
messages hold is in `dhchap.py`; that a queue takes nothing else before, `queue.py` sees to.

Source: NVM Express Base Specification 2.0, section 8.13.5 (DH-HMAC-CHAP) and figures 455 to 458.
"""

from __future__ import annotations

import enum
import hmac
import secrets
from collections.abc import Callable

import attrs

from holdfast.errors import RemoteProtocolError
from holdfast_transport_nvmeof import dhchap
from holdfast_transport_nvmeof.commands import AdminOpcode, Command, Completion, SglType
from holdfast_transport_nvmeof.dhchap import (
    SECP,
    Challenge,
    Failure,
    Group,
    Hash,
    MessageError,
    MessageId,
    Negotiate,
    Reply,
    Secret,
    Transaction,
)
from holdfast_transport_nvmeof.fabrics import FabricsType, fabrics_command
from holdfast_transport_nvmeof.status import Status

_EXPONENT_BYTES = 64
_PROTOCOL = SECP << 24 | 1 << 16 | 1 << 8
"""CDW10 of Authentication Send and Receive: SECP and both SPSP fields."""
RECEIVED_BYTES = 4096
"""More than any message of a controller takes."""


class Step(enum.Enum):
    """What the controller waits for."""

    NEGOTIATE = "negotiate"
    CHALLENGE = "challenge"
    """The host fetches the challenge."""
    REPLY = "reply"
    SUCCESS1 = "success1"
    """The host fetches the verdict, which is good."""
    SUCCESS2 = "success2"
    FAILURE1 = "failure1"
    """The host fetches the verdict, which is bad."""
    DONE = "done"
    FAILED = "failed"


@attrs.define(eq=False)
class ControllerAuthentication:
    """The controller's end; a host may begin again at any time."""

    host: str
    subsystem: str
    """Their NQNs."""
    secret: Secret
    """The host's."""
    own: Secret | None
    """The controller's; None: it cannot authenticate itself."""
    hashes: tuple[Hash, ...]
    groups: tuple[Group, ...]
    """What may be used, the best first."""
    draw: Callable[[int], bytes] = attrs.field(default=secrets.token_bytes, repr=False)
    step: Step = Step.NEGOTIATE
    failure: Failure | None = None
    """Why it failed."""
    _number: int = 0
    _transaction: Transaction | None = None
    _challenge: Challenge | None = None
    _reply: Reply | None = None
    _private: int = attrs.field(default=0, repr=False)

    def send(self, command: Command, data: bytes) -> int:
        """Take Authentication Send; return its status."""
        if _names_no_protocol(command):
            return Status.INVALID_FIELD_IN_COMMAND
        if command.sgl_type != SglType.DATA_BLOCK_OFFSET or command.sgl_address:
            return Status.SGL_DESCRIPTOR_TYPE_INVALID
        if not len(data) == command.sgl_length == command.cdw11:
            return Status.DATA_SGL_LENGTH_INVALID
        try:
            self._on_message(data)
        except MessageError as error:
            self.step, self.failure = Step.FAILURE1, error.failure
        return 0

    def _on_message(self, data: bytes) -> None:
        kind, message, number = dhchap.head(data)
        if (kind, message) == (0, MessageId.NEGOTIATE):
            self._number = number
            self._on_negotiate(Negotiate.parse(data))
        elif number != self._number:
            raise MessageError(Failure.INCORRECT_PAYLOAD)
        elif (kind, message) == (0, MessageId.FAILURE2):
            self.step, self.failure = Step.FAILED, Failure.AUTHENTICATION_FAILED
        elif (kind, message, self.step) == (1, MessageId.REPLY, Step.REPLY):
            self._on_reply(Reply.parse(data))
        elif (kind, message, self.step) == (1, MessageId.SUCCESS2, Step.SUCCESS2):
            self.step = Step.DONE
        else:
            raise MessageError(Failure.INCORRECT_PROTOCOL_MESSAGE)

    def _on_negotiate(self, offered: Negotiate) -> None:
        hashes = [each for each in self.hashes if each in offered.hashes]
        groups = [each for each in self.groups if each in offered.groups]
        if not hashes:
            raise MessageError(Failure.HASH_NOT_USABLE)
        if not groups:
            raise MessageError(Failure.DH_GROUP_NOT_USABLE)
        names = (self.host, self.subsystem, offered.number)
        self._transaction = Transaction(*names, hashes[0], groups[0])
        self.step = Step.CHALLENGE

    def _on_reply(self, reply: Reply) -> None:
        asked, agreed = self._challenge, self._transaction
        assert asked is not None
        assert agreed is not None
        if len(reply.response) != agreed.hash.size:
            raise MessageError(Failure.INCORRECT_PAYLOAD)
        if agreed.group is not Group.NULL:
            value = dhchap.shared(agreed.group, self._private, reply.public)
            agreed = self._transaction = attrs.evolve(agreed, shared=value)
        right = agreed.host_response(self.secret, asked.challenge, asked.sequence)
        if not hmac.compare_digest(right, reply.response):
            raise MessageError(Failure.AUTHENTICATION_FAILED)
        if reply.challenge and (self.own is None or reply.challenge == asked.challenge):
            # There is nothing to prove itself by; or the host sends the question back, to have
            # it answered for it.
            raise MessageError(Failure.AUTHENTICATION_FAILED)
        self._reply, self.step = reply, Step.SUCCESS1

    def receive(self, command: Command) -> Completion:
        """Answer Authentication Receive."""
        if _names_no_protocol(command):
            return Completion(Status.INVALID_FIELD_IN_COMMAND)
        if command.sgl_type != SglType.TRANSPORT_DATA_BLOCK:
            return Completion(Status.SGL_DESCRIPTOR_TYPE_INVALID)
        if command.sgl_length != command.cdw11 or command.cdw11 > 1 << 16:
            return Completion(Status.DATA_SGL_LENGTH_INVALID)
        message = self._next_message()
        if len(message) > command.cdw11:
            return Completion(Status.INVALID_FIELD_IN_COMMAND)
        return Completion(data=message.ljust(command.cdw11, b"\0"))

    def _next_message(self) -> bytes:
        agreed, reply = self._transaction, self._reply
        if self.step is Step.CHALLENGE and agreed is not None:
            self._challenge = self._ask(agreed)
            self.step = Step.REPLY
            return self._challenge.pack()
        if self.step is Step.SUCCESS1 and agreed is not None and reply is not None:
            response = b""
            if reply.challenge and self.own is not None:
                response = agreed.controller_response(self.own, reply.challenge, reply.sequence)
            self.step = Step.SUCCESS2 if response else Step.DONE
            return dhchap.success1(self._number, agreed.hash.size, response)
        self.failure = self.failure or Failure.INCORRECT_PROTOCOL_MESSAGE
        self.step = Step.FAILED
        return dhchap.failure(MessageId.FAILURE1, self._number, self.failure)

    def _ask(self, agreed: Transaction) -> Challenge:
        public = b""
        if agreed.group is not Group.NULL:
            self._private = dhchap.exponent(agreed.group, self.draw(_EXPONENT_BYTES))
            public = dhchap.public(agreed.group, self._private)
        sequence = int.from_bytes(self.draw(4), "little") or 1
        challenge = self.draw(agreed.hash.size)
        return Challenge(agreed.number, agreed.hash, agreed.group, sequence, challenge, public)


def is_authentication(command: Command) -> bool:
    """Return whether a command belongs to authentication."""
    kinds = (FabricsType.AUTHENTICATION_SEND, FabricsType.AUTHENTICATION_RECEIVE)
    return command.opcode == AdminOpcode.FABRICS and command.fctype in kinds


def _names_no_protocol(command: Command) -> bool:
    """Return whether SECP or an SPSP field is another one, or the length nothing."""
    return command.cdw10 != _PROTOCOL or not command.cdw11


def send_command(length: int) -> Command:
    """Return Authentication Send of a message of `length` bytes."""
    kind = FabricsType.AUTHENTICATION_SEND
    return fabrics_command(0, kind, _PROTOCOL, length, length=length)


def receive_command() -> Command:
    """Return Authentication Receive of a message of up to `RECEIVED_BYTES`."""
    return fabrics_command(0, FabricsType.AUTHENTICATION_RECEIVE, _PROTOCOL, RECEIVED_BYTES)


@attrs.define(eq=False)
class HostAuthentication:
    """The host's end, one transaction: `negotiate`, `on_challenge`, `on_success1` in turn."""

    host: str
    subsystem: str
    secret: Secret
    theirs: Secret | None = None
    """The controller's; None: it need not prove who it is."""
    hashes: tuple[Hash, ...] = tuple(Hash)
    groups: tuple[Group, ...] = tuple(Group)
    draw: Callable[[int], bytes] = attrs.field(default=secrets.token_bytes, repr=False)
    _number: int = 0
    _agreed: Transaction | None = None
    _own_challenge: bytes = b""
    _own_sequence: int = 0

    def negotiate(self) -> bytes:
        """Return the first message."""
        self._number = int.from_bytes(self.draw(2), "little")
        return Negotiate(self._number, self.hashes, self.groups).pack()

    def on_challenge(self, data: bytes) -> bytes:
        """Return the reply to a challenge.

        Raises:
            RemoteProtocolError: The controller refuses, or asks for what was not offered.
        """
        self._check(data, MessageId.CHALLENGE)
        try:
            asked = Challenge.parse(data)
            agreed, public = self._agree(asked)
        except MessageError as error:
            raise RemoteProtocolError(
                f"The controller's challenge is wrong: {error.failure.name}."
            ) from error
        self._agreed = agreed
        response = agreed.host_response(self.secret, asked.challenge, asked.sequence)
        self._own_sequence = int.from_bytes(self.draw(4), "little") or 1
        if self.theirs is not None:
            self._own_challenge = self.draw(agreed.hash.size)
        return Reply(self._number, response, self._own_sequence, self._own_challenge, public).pack()

    def _agree(self, asked: Challenge) -> tuple[Transaction, bytes]:
        if asked.hash not in self.hashes or asked.group not in self.groups:
            raise MessageError(Failure.INCORRECT_PAYLOAD)
        kinds = (Hash(asked.hash), Group(asked.group))
        agreed = Transaction(self.host, self.subsystem, self._number, *kinds)
        if agreed.group is Group.NULL:
            return agreed, b""
        private = dhchap.exponent(agreed.group, self.draw(_EXPONENT_BYTES))
        value = dhchap.shared(agreed.group, private, asked.public)
        return attrs.evolve(agreed, shared=value), dhchap.public(agreed.group, private)

    def on_success1(self, data: bytes) -> bytes:
        """Return the last message; empty when the controller waits for none.

        Raises:
            RemoteProtocolError: The controller refuses, or is not the one that it should be.
        """
        self._check(data, MessageId.SUCCESS1)
        if self.theirs is None:
            return b""
        assert self._agreed is not None
        right = self._agreed.controller_response(
            self.theirs, self._own_challenge, self._own_sequence
        )
        if not hmac.compare_digest(right, dhchap.response_of_success1(data)):
            raise RemoteProtocolError("The controller does not know its own secret.")
        return dhchap.success2(self._number)

    def _check(self, data: bytes, wanted: MessageId) -> None:
        try:
            kind, message, number = dhchap.head(data)
        except MessageError as error:
            raise RemoteProtocolError("The controller's message is too short.") from error
        if (kind, message) == (0, MessageId.FAILURE1):
            raise RemoteProtocolError(
                f"The controller refuses to authenticate: {dhchap.reason_of(data)}."
            )
        if (kind, message, number) != (1, wanted, self._number):
            raise RemoteProtocolError(f"The controller sent another message than {wanted.name}.")
