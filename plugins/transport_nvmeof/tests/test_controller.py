"""Controllers without queues: properties, features, log pages, events, time."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plugins.transport_nvmeof.tests.machines import HOST_ID, SIZE, make_controller

from holdfast_transport_nvmeof import logpages
from holdfast_transport_nvmeof.commands import AdminOpcode, Command, Completion
from holdfast_transport_nvmeof.controller import Controller, Feature, Notice
from holdfast_transport_nvmeof.fabrics import Csts, Property, property_get, property_set
from holdfast_transport_nvmeof.identify import Cns, Oaes
from holdfast_transport_nvmeof.logpages import DiscoveryEntry, LogPage, Subtype
from holdfast_transport_nvmeof.namespace import AnaState, nqn_of, volume_of
from holdfast_transport_nvmeof.status import Status, errno_of_status, field_of, name_of_status


def admin(opcode: int, *, nsid: int = 0, cid: int = 1, **fields: int) -> Command:
    base = Command(opcode, 0x40, cid, nsid, 0, 0, 0, 4096, 0x5A)
    return base._replace(**fields)


def done(controller: Controller, command: Command) -> Completion:
    completion = controller.execute(command)
    assert completion is not None
    return completion


def log_page(controller: Controller, page: int, length: int, **fields: int) -> bytes:
    cdw10 = page | (length // 4 - 1) << 16 | fields.pop("rae", 0) << 15
    completion = done(controller, admin(AdminOpcode.GET_LOG_PAGE, cdw10=cdw10, **fields))
    assert not completion.status, name_of_status(completion.status)
    return completion.data


def test_a_controller_becomes_ready_shuts_down_and_is_reset() -> None:
    controller = make_controller(is_ready=False)
    refused = done(controller, admin(AdminOpcode.KEEP_ALIVE))
    assert refused.status == Status.COMMAND_SEQUENCE_ERROR
    done(controller, property_set(1, Property.CC, 0x460001))
    assert done(controller, property_get(1, Property.CSTS)).dw0 == Csts.RDY
    assert not done(controller, admin(AdminOpcode.KEEP_ALIVE)).status
    done(controller, property_set(1, Property.CC, 0x464001))
    assert done(controller, property_get(1, Property.CSTS)).dw0 == Csts.RDY | Csts.SHST_COMPLETE
    done(controller, property_set(1, Property.CC, 0x460000))
    assert not done(controller, property_get(1, Property.CSTS)).dw0 & Csts.RDY


def test_capabilities_say_queue_depth_and_command_set() -> None:
    completion = done(make_controller(), property_get(1, Property.CAP, is_8_bytes=True))
    assert completion.dw0 & 0xFFFF == 127
    assert completion.dw1 >> 5 & 1, "the NVM command set"
    wrong = done(make_controller(), property_get(1, Property.VS, is_8_bytes=True))
    assert wrong.status == Status.INVALID_FIELD_IN_COMMAND


def test_identify_says_what_the_volume_is() -> None:
    controller = make_controller()
    page = done(controller, admin(AdminOpcode.IDENTIFY, nsid=1, cdw10=Cns.NAMESPACE)).data
    assert struct.unpack_from("<QQ", page) == (SIZE // 512, SIZE // 512)
    assert page[104:120] == bytes(15) + b"\1"
    assert page[130] == 9
    other = done(controller, admin(AdminOpcode.IDENTIFY, nsid=2, cdw10=Cns.NAMESPACE))
    assert other.status == Status.INVALID_NAMESPACE_OR_FORMAT
    page = done(controller, admin(AdminOpcode.IDENTIFY, cdw10=Cns.ACTIVE_NAMESPACES)).data
    assert struct.unpack_from("<II", page) == (1, 0)
    page = done(controller, admin(AdminOpcode.IDENTIFY, cdw10=Cns.CONTROLLER)).data
    assert page[768:].startswith(nqn_of("db").encode() + b"\0")
    assert struct.unpack_from("<H", page, 78) == (7,)
    page = done(
        controller, admin(AdminOpcode.IDENTIFY, nsid=1, cdw10=Cns.NAMESPACE_DESCRIPTORS)
    ).data
    assert page[:4] == b"\2\x10\0\0"
    assert page[20:24] == b"\3\x10\0\0"


def test_log_pages_are_read_in_pieces_and_only_within_themselves() -> None:
    controller = make_controller()
    whole = log_page(controller, LogPage.ASYMMETRIC_NAMESPACE_ACCESS, 52)
    assert whole[16:20] == b"\1\0\0\0"
    assert whole[32] == AnaState.OPTIMIZED
    tail = log_page(controller, LogPage.ASYMMETRIC_NAMESPACE_ACCESS, 36, cdw12=16)
    assert tail == whole[16:]
    beyond = admin(AdminOpcode.GET_LOG_PAGE, cdw10=0x0C, cdw12=4096)
    assert done(controller, beyond).status == Status.INVALID_FIELD_IN_COMMAND
    unknown = admin(AdminOpcode.GET_LOG_PAGE, cdw10=0x70)
    assert done(controller, unknown).status == Status.INVALID_LOG_PAGE


def test_the_error_log_has_the_newest_error_first() -> None:
    controller = make_controller()
    controller.note_error(1, 10, Status.LBA_OUT_OF_RANGE, lba=99)
    controller.note_error(2, 11, Status.WRITE_FAULT)
    page = log_page(controller, LogPage.ERROR_INFORMATION, 128)
    count, qid, cid, status = struct.unpack_from("<QHHH", page)
    assert (count, qid, cid, status >> 1 & 0x7FF) == (2, 2, 11, Status.WRITE_FAULT)
    assert struct.unpack_from("<Q", page, 64 + 16) == (99,)
    smart = log_page(controller, LogPage.SMART_HEALTH, 512)
    assert int.from_bytes(smart[176:192], "little") == 2


def test_an_event_is_sent_once_until_its_log_page_is_read() -> None:
    controller = make_controller()
    config = admin(
        AdminOpcode.SET_FEATURES,
        cdw10=Feature.ASYNCHRONOUS_EVENT_CONFIGURATION,
        cdw11=Oaes.ANA_CHANGE,
    )
    done(controller, config)
    controller.notify(Notice.NAMESPACE_ATTRIBUTE_CHANGED)
    assert controller.execute(admin(AdminOpcode.ASYNCHRONOUS_EVENT_REQUEST, cid=9)) is None
    assert not controller.events, "this notice was not asked for"
    controller.notify(Notice.ANA_CHANGE)
    assert controller.events == [(9, Completion(dw0=0x0C0302))]
    controller.events.clear()
    assert controller.execute(admin(AdminOpcode.ASYNCHRONOUS_EVENT_REQUEST, cid=10)) is None
    controller.notify(Notice.ANA_CHANGE)
    log_page(controller, LogPage.ASYMMETRIC_NAMESPACE_ACCESS, 52, rae=1)
    controller.notify(Notice.ANA_CHANGE)
    assert not controller.events
    log_page(controller, LogPage.ASYMMETRIC_NAMESPACE_ACCESS, 52)
    controller.notify(Notice.ANA_CHANGE)
    assert [cid for cid, _ in controller.events] == [10]


def test_event_requests_have_a_limit_and_can_be_aborted() -> None:
    controller = make_controller()
    for cid in range(4):
        assert controller.execute(admin(AdminOpcode.ASYNCHRONOUS_EVENT_REQUEST, cid=cid)) is None
    fifth = done(controller, admin(AdminOpcode.ASYNCHRONOUS_EVENT_REQUEST, cid=4))
    assert fifth.status == Status.ASYNCHRONOUS_EVENT_REQUEST_LIMIT_EXCEEDED
    assert done(controller, admin(AdminOpcode.ABORT, cdw10=2 << 16)).dw0 == 0
    assert controller.events == [(2, Completion(Status.COMMAND_ABORT_REQUESTED))]
    assert done(controller, admin(AdminOpcode.ABORT, cdw10=2 << 16)).dw0 == 1


def test_features_are_got_as_they_were_set() -> None:
    controller = make_controller()
    set_kato = admin(AdminOpcode.SET_FEATURES, cdw10=Feature.KEEP_ALIVE_TIMER, cdw11=7000)
    assert not done(controller, set_kato).status
    get = admin(AdminOpcode.GET_FEATURES, cdw10=Feature.KEEP_ALIVE_TIMER)
    assert done(controller, get).dw0 == controller.kato_ms == 7000
    queues = admin(AdminOpcode.SET_FEATURES, cdw10=Feature.NUMBER_OF_QUEUES, cdw11=0x3F003F)
    assert done(controller, queues).dw0 == 0x000F000F
    cache = admin(AdminOpcode.SET_FEATURES, cdw10=Feature.VOLATILE_WRITE_CACHE, cdw11=0)
    assert done(controller, cache).status == Status.FEATURE_NOT_CHANGEABLE
    host = admin(AdminOpcode.GET_FEATURES, cdw10=Feature.HOST_IDENTIFIER, cdw11=1)
    assert done(controller, host).data == HOST_ID


def test_a_silent_host_expires_after_its_timeout_and_one_unit() -> None:
    controller = make_controller()
    controller.kato_ms, controller.seen_at = 5000, 100.0
    assert not controller.has_expired(105.9)
    assert controller.has_expired(106.1)
    controller.kato_ms = 0
    assert not controller.has_expired(1e9)


@given(
    st.builds(
        Command,
        opcode=st.sampled_from([*AdminOpcode, 0, 0xC0]),
        flags=st.sampled_from([0x40, 0x40, 0, 1]),
        cid=st.integers(0, 5),
        nsid=st.sampled_from([0, 1, 2, 4, 8, 0xFFFFFFFF]),
        cdw23=st.just(0),
        mptr=st.just(0),
        sgl_address=st.just(0),
        sgl_length=st.just(4096),
        sgl_type=st.just(0x5A),
        cdw10=st.integers(0, 0xFFFFFFFF) | st.integers(0, 0x20),
        cdw11=st.integers(0, 0xFFFFFFFF) | st.integers(0, 0x20),
        cdw12=st.integers(0, 0xFFFFFFFF) | st.just(0),
        cdw13=st.integers(0, 1),
        cdw14=st.just(0),
        cdw15=st.just(0),
    )
)
def test_every_admin_command_is_answered_or_held(command: Command) -> None:
    completion = make_controller().execute(command)
    if completion is None:
        assert command.opcode == AdminOpcode.ASYNCHRONOUS_EVENT_REQUEST
    else:
        assert not (completion.status and completion.data)


def test_discovery_entries_survive_packing() -> None:
    entries = [
        DiscoveryEntry(nqn_of("db"), "192.0.2.7", 4420, Subtype.NVM, 3),
        DiscoveryEntry("nqn.x", "2001:db8::1", 8009, Subtype.REFERRAL),
    ]
    page = logpages.discovery(5, entries)
    assert struct.unpack_from("<QQH", page) == (5, 2, 0)
    assert DiscoveryEntry.unpack(page[1024:2048]) == entries[0]
    assert DiscoveryEntry.unpack(page[2048:]) == entries[1]
    assert page[1024:1027] == b"\3\1\2"


@pytest.mark.parametrize("name", ["db", "a volume", "ü/%"])
def test_nqns_name_volumes(name: str) -> None:
    assert volume_of(nqn_of(name)) == name
    assert volume_of("nqn.2014-08.org.nvmexpress:uuid:x") is None


def test_statuses_have_names_and_errnos() -> None:
    assert name_of_status(field_of(Status.LBA_OUT_OF_RANGE)) == "LBA_OUT_OF_RANGE"
    assert name_of_status(0x182, is_fabrics=True) == "CONNECT_INVALID_PARAMETERS"
    assert name_of_status(0x7FE) == "status 0x7fe"
    assert errno_of_status(0) == 0
    assert all(errno_of_status(status) for status in Status if status)
