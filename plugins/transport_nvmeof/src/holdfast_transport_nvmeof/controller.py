"""One controller as a machine: properties, admin commands, features, log pages, asynchronous events.

A controller belongs to one host, from the Connect of its admin queue to the end of that connection.
Commands go in, completions come out; those of Asynchronous Event Requests come later, from `events`.
It knows no connections, PDUs, sessions or clocks: time is an argument, and I/O commands do not pass
through here (`queue.py` carries them).

Source: NVM Express Base Specification 2.0, sections 3.1.3 (properties), 3.9 (keep alive), 5 (admin
commands); sections are named where they matter.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Mapping

import attrs

from holdfast import __version__
from holdfast_transport_nvmeof import identify, logpages
from holdfast_transport_nvmeof.commands import (
    FUSE_MASK,
    NSID_ALL,
    PSDT_MASK,
    PSDT_SGL,
    AdminOpcode,
    Command,
    Completion,
)
from holdfast_transport_nvmeof.fabrics import Csts, FabricsType, Property
from holdfast_transport_nvmeof.identify import (
    ASYNC_EVENTS_MAX,
    ERROR_LOG_ENTRIES,
    Cns,
    ControllerFacts,
    ControllerType,
    Oaes,
)
from holdfast_transport_nvmeof.logpages import Counters, DiscoveryLog, ErrorEntry, LogPage
from holdfast_transport_nvmeof.namespace import NSID, Namespace
from holdfast_transport_nvmeof.status import Status, field_of

KATO_MS_MAX = 60 * 60 * 1000
CC_ENABLE = 1
CC_SHUTDOWN = 3 << 14
_TIMEOUT_500_MS = 30
"""CAP.TO: how long becoming ready may take; here it takes no time."""


class Feature(enum.IntEnum):
    """FID."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    WRITE_ATOMICITY_NORMAL = 0x0A
    ASYNCHRONOUS_EVENT_CONFIGURATION = 0x0B
    KEEP_ALIVE_TIMER = 0x0F
    HOST_IDENTIFIER = 0x81


class Notice(enum.IntEnum):
    """Information of an asynchronous event of type Notice."""

    NAMESPACE_ATTRIBUTE_CHANGED = 0x00
    ANA_CHANGE = 0x03
    DISCOVERY_LOG_PAGE_CHANGE = 0xF0


_NOTICE_TYPE = 2
_NOTICES: Mapping[Notice, tuple[LogPage, Oaes]] = {
    Notice.NAMESPACE_ATTRIBUTE_CHANGED: (
        LogPage.CHANGED_NAMESPACE_LIST,
        Oaes.NAMESPACE_ATTRIBUTE,
    ),
    Notice.ANA_CHANGE: (LogPage.ASYMMETRIC_NAMESPACE_ACCESS, Oaes.ANA_CHANGE),
    Notice.DISCOVERY_LOG_PAGE_CHANGE: (LogPage.DISCOVERY, Oaes.DISCOVERY_LOG_CHANGE),
}
"""The log page to read, and the bit that asks for the notice."""

_PLAIN_FEATURES: Mapping[int, int] = {
    Feature.ARBITRATION: 0,
    Feature.POWER_MANAGEMENT: 0,
    Feature.TEMPERATURE_THRESHOLD: 0xFFFF,
    Feature.ERROR_RECOVERY: 0,
    Feature.WRITE_ATOMICITY_NORMAL: 0,
}
"""Features that are remembered and change nothing, with their values at the start."""


def _no_counters() -> Counters:
    return Counters()


def _no_abort(_qid: int, _cid: int) -> bool:
    return False


def _no_controllers() -> list[int]:
    return []


@attrs.define(eq=False)
class Controller:
    """One controller of one host."""

    facts: ControllerFacts
    host: str
    """The host's NQN."""
    host_id: bytes
    queues_max: int
    """I/O queues that the host may connect."""
    kato_ms: int = 0
    namespace: Namespace | None = None
    """None for a discovery controller."""
    log: DiscoveryLog = attrs.field(factory=DiscoveryLog, repr=False)
    counters: Callable[[], Counters] = attrs.field(default=_no_counters, repr=False)
    siblings: Callable[[], list[int]] = attrs.field(default=_no_controllers, repr=False)
    """Ids of the controllers of this subsystem on this node."""
    abort_io: Callable[[int, int], bool] = attrs.field(default=_no_abort, repr=False)
    """Takes queue and command identifier of an I/O command; returns whether it was taken back."""
    seen_at: float = 0.0
    """When the host last sent anything, by the clock of `has_expired`."""
    events: list[tuple[int, Completion]] = attrs.field(factory=list)
    """CIDs of Asynchronous Event Requests and their completions; the admin queue takes them away."""
    cc: int = 0
    csts: int = 0
    _held: deque[int] = attrs.field(factory=deque)
    """CIDs of Asynchronous Event Requests that wait."""
    _queued: deque[Notice] = attrs.field(factory=deque)
    _masked: set[LogPage] = attrs.field(factory=set)
    """Log pages that a notice has named and the host has not read since."""
    _wanted: int = 0
    """Asynchronous Event Configuration."""
    _features: dict[int, int] = attrs.field(factory=lambda: dict(_PLAIN_FEATURES), repr=False)
    _errors: deque[ErrorEntry] = attrs.field(
        factory=lambda: deque(maxlen=ERROR_LOG_ENTRIES), repr=False
    )
    _error_count: int = 0
    _has_changed: bool = False
    """The namespace has, since the host last read the list."""

    @property
    def is_ready(self) -> bool:
        """Whether commands other than Fabrics ones are taken."""
        return bool(self.csts & Csts.RDY)

    @property
    def is_discovery(self) -> bool:
        """Whether it only tells of other controllers."""
        return self.facts.kind is ControllerType.DISCOVERY

    def has_expired(self, now: float) -> bool:
        """Return whether the host has been silent for longer than its keep-alive timeout.

        One unit of granularity (KAS) is added, as section 3.9 has a controller round up.
        """
        timeout_s = self.kato_ms / 1000 + identify.KAS / 10
        return self.kato_ms > 0 and now - self.seen_at > timeout_s

    # --- events ----------------------------------------------------------------------------

    def notify(self, notice: Notice) -> None:
        """Tell the host, once until it has read the log page, if it wants to know."""
        page, bit = _NOTICES[notice]
        if notice is Notice.NAMESPACE_ATTRIBUTE_CHANGED:
            self._has_changed = True
        if not self._wanted & bit or page in self._masked:
            return
        self._masked.add(page)
        self._queued.append(notice)
        self._send_events()

    def _send_events(self) -> None:
        while self._held and self._queued:
            notice = self._queued.popleft()
            page, _ = _NOTICES[notice]
            dw0 = page << 16 | notice << 8 | _NOTICE_TYPE
            self.events.append((self._held.popleft(), Completion(dw0=dw0)))

    def note_error(self, qid: int, cid: int, status: int, *, lba: int = 0) -> None:
        """Put a failed command into the error log."""
        self._error_count += 1
        entry = ErrorEntry(self._error_count, qid, cid, field_of(status), NSID, lba)
        self._errors.appendleft(entry)

    # --- admin commands --------------------------------------------------------------------

    def execute(self, command: Command, data: bytes = b"") -> Completion | None:
        """Carry an admin command out; None when its completion comes later.

        Args:
            command: Any of the admin queue but Connect and Disconnect.
            data: What came with it.
        """
        if command.flags & FUSE_MASK or command.flags & PSDT_MASK != PSDT_SGL:
            return Completion(Status.INVALID_FIELD_IN_COMMAND)
        if command.opcode == AdminOpcode.FABRICS:
            return self._fabrics(command)
        if not self.is_ready:
            return Completion(Status.COMMAND_SEQUENCE_ERROR)
        match command.opcode:
            case AdminOpcode.IDENTIFY:
                return self._identify(command)
            case AdminOpcode.GET_LOG_PAGE:
                return self._get_log_page(command)
            case AdminOpcode.KEEP_ALIVE:
                return Completion()
            case AdminOpcode.ASYNCHRONOUS_EVENT_REQUEST:
                return self._hold(command.cid)
            case AdminOpcode.SET_FEATURES:
                return self._set_features(command)
            case AdminOpcode.GET_FEATURES:
                return self._get_features(command)
            case AdminOpcode.ABORT if not self.is_discovery:
                return self._abort(command)
        return Completion(Status.INVALID_COMMAND_OPCODE)

    def _hold(self, cid: int) -> Completion | None:
        if len(self._held) >= ASYNC_EVENTS_MAX:
            return Completion(Status.ASYNCHRONOUS_EVENT_REQUEST_LIMIT_EXCEEDED)
        self._held.append(cid)
        self._send_events()
        return None

    def _abort(self, command: Command) -> Completion:
        """Abort an Asynchronous Event Request, or an I/O command that has not been passed on yet."""
        qid, cid = command.cdw10 & 0xFFFF, command.cdw10 >> 16
        if qid == 0 and cid in self._held:
            self._held.remove(cid)
            self.events.append((cid, Completion(Status.COMMAND_ABORT_REQUESTED)))
            return Completion(dw0=0)
        return Completion(dw0=0 if qid and self.abort_io(qid, cid) else 1)

    # --- properties ------------------------------------------------------------------------

    def _fabrics(self, command: Command) -> Completion:
        if command.fctype == FabricsType.PROPERTY_GET:
            return self._get_property(command.cdw11, is_8_bytes=bool(command.cdw10 & 7))
        if command.fctype == FabricsType.PROPERTY_SET:
            return self._set_property(command.cdw11, command.cdw12, size=command.cdw10 & 7)
        return Completion(Status.INVALID_COMMAND_OPCODE)

    def _get_property(self, offset: int, *, is_8_bytes: bool) -> Completion:
        if is_8_bytes:
            if offset != Property.CAP:
                return Completion(Status.INVALID_FIELD_IN_COMMAND)
            return Completion(dw0=self.capabilities & 0xFFFFFFFF, dw1=self.capabilities >> 32)
        values = {
            Property.VS: identify.VERSION,
            Property.CC: self.cc,
            Property.CSTS: self.csts,
            Property.NSSR: 0,
        }
        if offset not in values:
            return Completion(Status.INVALID_FIELD_IN_COMMAND)
        return Completion(dw0=values[Property(offset)])

    @property
    def capabilities(self) -> int:
        """CAP: queue size, contiguous queues, readiness timeout, NVM command set, 4 KiB pages."""
        return (self.facts.entries_max - 1) | 1 << 16 | _TIMEOUT_500_MS << 24 | 1 << 37

    def _set_property(self, offset: int, value: int, *, size: int) -> Completion:
        if offset != Property.CC or size:
            return Completion(Status.INVALID_FIELD_IN_COMMAND)
        was_enabled, self.cc = self.cc & CC_ENABLE, value
        if value & CC_ENABLE and not was_enabled:
            self.csts = Csts.RDY
        elif was_enabled and not value & CC_ENABLE:
            self._reset()
        if value & CC_SHUTDOWN:
            self.csts |= Csts.SHST_COMPLETE
        return Completion()

    def _reset(self) -> None:
        self.csts &= ~(Csts.RDY | Csts.CFS)
        self._held.clear()
        self._queued.clear()
        self._masked.clear()
        self._wanted = 0
        self._features = dict(_PLAIN_FEATURES)

    # --- identify --------------------------------------------------------------------------

    def _identify(self, command: Command) -> Completion:
        cns = command.cdw10 & 0xFF
        if cns == Cns.CONTROLLER:
            return Completion(data=identify.controller(self.facts))
        space, nsid = self.namespace, command.nsid
        if space is None:
            return Completion(Status.INVALID_FIELD_IN_COMMAND)
        if cns in {Cns.ACTIVE_NAMESPACES, Cns.ACTIVE_NAMESPACES_OF_COMMAND_SET, 0x10}:
            if nsid >= NSID_ALL - 1:
                return Completion(Status.INVALID_NAMESPACE_OR_FORMAT)
            return Completion(data=identify.namespace_list(after=nsid))
        if cns in {Cns.CONTROLLERS, Cns.CONTROLLERS_OF_NAMESPACE}:
            if cns == Cns.CONTROLLERS_OF_NAMESPACE and nsid != NSID:
                return Completion(Status.INVALID_FIELD_IN_COMMAND)
            listed = identify.controller_list(self.siblings(), least=command.cdw10 >> 16)
            return Completion(data=listed)
        if cns == Cns.COMMAND_SETS:
            return Completion(data=identify.command_sets())
        return self._identify_namespace(cns, command, space)

    def _identify_namespace(self, cns: int, command: Command, space: Namespace) -> Completion:
        command_set = command.cdw11 >> 24
        of_nvm = {Cns.NAMESPACE_OF_COMMAND_SET, Cns.CONTROLLER_OF_COMMAND_SET}
        if cns in of_nvm and command_set:
            return Completion(Status.INVALID_FIELD_IN_COMMAND)
        if cns == Cns.CONTROLLER_OF_COMMAND_SET:
            return Completion(data=identify.controller_of_command_set())
        makers: dict[int, Callable[[Namespace], bytes]] = {
            Cns.NAMESPACE: identify.namespace,
            Cns.ALLOCATED_NAMESPACE: identify.namespace,
            Cns.NAMESPACE_DESCRIPTORS: identify.namespace_descriptors,
            Cns.NAMESPACE_INDEPENDENT: identify.namespace_independent,
            Cns.NAMESPACE_OF_COMMAND_SET: lambda _: bytes(identify.IDENTIFY_BYTES),
        }
        maker = makers.get(cns)
        if maker is None:
            return Completion(Status.INVALID_FIELD_IN_COMMAND)
        nsid = command.nsid
        if nsid == NSID or (nsid == NSID_ALL and cns == Cns.NAMESPACE):
            return Completion(data=maker(space))
        if 0 < nsid < NSID_ALL - 1 and cns in {Cns.NAMESPACE, Cns.ALLOCATED_NAMESPACE}:
            # An inactive namespace: all zeros (5.17.2.1), unless its id is beyond the last one.
            if nsid > NSID:
                return Completion(Status.INVALID_NAMESPACE_OR_FORMAT)
        return Completion(Status.INVALID_NAMESPACE_OR_FORMAT)

    # --- log pages -------------------------------------------------------------------------

    @property
    def log_pages(self) -> tuple[LogPage, ...]:
        """The log pages that there are."""
        if self.is_discovery:
            return (LogPage.SUPPORTED_LOG_PAGES, LogPage.ERROR_INFORMATION, LogPage.DISCOVERY)
        return tuple(page for page in LogPage if page is not LogPage.DISCOVERY)

    def _get_log_page(self, command: Command) -> Completion:
        lid, keeps_event = command.cdw10 & 0xFF, bool(command.cdw10 & 1 << 15)
        length = ((command.cdw10 >> 16 | (command.cdw11 & 0xFFFF) << 16) + 1) * 4
        offset = command.cdw12 | command.cdw13 << 32
        if lid not in self.log_pages:
            return Completion(Status.INVALID_LOG_PAGE)
        if length > identify.TRANSFER_BYTES_MAX or offset % 4:
            return Completion(Status.INVALID_FIELD_IN_COMMAND)
        page = self._page(LogPage(lid), specific=command.cdw10 >> 8 & 0x7F)
        if offset > len(page):
            return Completion(Status.INVALID_FIELD_IN_COMMAND)
        if not keeps_event:
            self._masked.discard(LogPage(lid))
            if lid == LogPage.CHANGED_NAMESPACE_LIST:
                self._has_changed = False
        return Completion(data=page[offset : offset + length].ljust(length, b"\0"))

    def _page(self, lid: LogPage, *, specific: int) -> bytes:
        space = self.namespace
        match lid:
            case LogPage.SUPPORTED_LOG_PAGES:
                return logpages.supported(self.log_pages)
            case LogPage.ERROR_INFORMATION:
                return logpages.errors(self._errors).ljust(64 * ERROR_LOG_ENTRIES, b"\0")
            case LogPage.DISCOVERY:
                return logpages.discovery(self.log.generation, self.log.entries)
            case LogPage.FIRMWARE_SLOT:
                return logpages.firmware(__version__)
            case LogPage.COMMANDS_SUPPORTED_AND_EFFECTS:
                has = self.facts.has_reservations
                return logpages.effects(is_io=not self.is_discovery, has_reservations=has)
            case LogPage.CHANGED_NAMESPACE_LIST:
                return logpages.changed_namespaces(has_changed=self._has_changed)
        assert space is not None
        if lid is LogPage.ASYMMETRIC_NAMESPACE_ACCESS:
            return logpages.ana(space, groups_only=bool(specific & 1))
        counters = attrs.evolve(self.counters(), error_entries=self._error_count)
        return logpages.smart(counters, is_read_only=not space.is_writable)

    # --- features --------------------------------------------------------------------------

    def _set_features(self, command: Command) -> Completion:
        feature, value = command.cdw10 & 0xFF, command.cdw11
        if command.cdw10 >> 31:
            return Completion(Status.FEATURE_IDENTIFIER_NOT_SAVEABLE)
        match feature:
            case Feature.ASYNCHRONOUS_EVENT_CONFIGURATION:
                self._wanted = value
                return Completion()
            case Feature.KEEP_ALIVE_TIMER:
                if value > KATO_MS_MAX:
                    return Completion(Status.KEEP_ALIVE_TIMEOUT_INVALID)
                self.kato_ms = value
                return Completion()
        if self.is_discovery:
            return Completion(Status.INVALID_FIELD_IN_COMMAND)
        match feature:
            case Feature.NUMBER_OF_QUEUES:
                if value & 0xFFFF == 0xFFFF or value >> 16 == 0xFFFF:
                    return Completion(Status.INVALID_FIELD_IN_COMMAND)
                return Completion(dw0=(self.queues_max - 1) * 0x1_0001)
            case Feature.VOLATILE_WRITE_CACHE:
                # It cannot be switched off: acknowledged is replicated, flushed is on disk.
                if value & 1:
                    return Completion()
                return Completion(Status.FEATURE_NOT_CHANGEABLE)
            case Feature.HOST_IDENTIFIER:
                return Completion(Status.FEATURE_NOT_CHANGEABLE)
        if feature in self._features:
            self._features[feature] = value
            return Completion()
        return Completion(Status.INVALID_FIELD_IN_COMMAND)

    def _get_features(self, command: Command) -> Completion:
        feature = command.cdw10 & 0xFF
        values = {
            Feature.ASYNCHRONOUS_EVENT_CONFIGURATION: self._wanted,
            Feature.KEEP_ALIVE_TIMER: self.kato_ms,
        }
        if not self.is_discovery:
            values[Feature.NUMBER_OF_QUEUES] = (self.queues_max - 1) * 0x1_0001
            values[Feature.VOLATILE_WRITE_CACHE] = 1
            if feature == Feature.HOST_IDENTIFIER:
                if not command.cdw11 & 1:
                    return Completion(Status.HOST_IDENTIFIER_INCONSISTENT_FORMAT)
                return Completion(data=self.host_id)
            if feature in self._features:
                return Completion(dw0=self._features[feature])
        for known, value in values.items():
            if known == feature:
                return Completion(dw0=value)
        return Completion(Status.INVALID_FIELD_IN_COMMAND)
